"""The kernel of :meth:`Rollout.predict`'s transformer for the CPU: float32, one thread.

For a single dream the matrix products are small, and in torch everything between them costs as much as they do. A few
dreams at a time go through all blocks, so that their activations stay in the cache.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from worldmodel.models.kernels.numba_ops import (
    LANES,
    MIN_EXPONENT,
    NO_OFFSET,
    OPTIONS,
    PAD_ROWS,
    ZERO,
    add_product,
    cached_njit,
    exp,
    gate,
    gelu,
    pack_matrix,
    padded_columns,
)
from worldmodel.models.transformer import SpatioTemporalBlock

CHUNK_DREAMS = 4  # dreams that go through all blocks together


class Weights(NamedTuple):
    """The weights of all blocks, stacked; the matrices of linear layers are packed."""

    lag_bias: np.ndarray  # (blocks, heads, M), oldest frame first
    norms: np.ndarray  # (blocks, 3, 2, width), scales and biases
    query: np.ndarray
    query_bias: np.ndarray
    over_time: np.ndarray
    over_time_bias: np.ndarray
    spatial: np.ndarray
    spatial_bias: np.ndarray
    over_space: np.ndarray
    over_space_bias: np.ndarray
    up: np.ndarray
    up_bias: np.ndarray
    down: np.ndarray
    down_bias: np.ndarray


class Scratch(NamedTuple):
    """Buffers of a call; n is the number of patches of the dreams of a chunk, plus PAD_ROWS."""

    x: np.ndarray  # (n, padded_columns(width))
    normed: np.ndarray  # (n, width)
    wide: np.ndarray  # (n, padded_columns(4·width)), time queries, then spatial q, k, v, then feed-forward inputs
    attended: np.ndarray  # (n, width)
    hidden: np.ndarray  # (n, 4·width)
    time_scores: np.ndarray  # (patches·heads, M), of one dream
    keys: np.ndarray  # (blocks, width / heads, LANES), of one dream and head, packed
    values: np.ndarray  # (blocks, patches, LANES), of one dream and head, packed
    scores: np.ndarray  # (patches + PAD_ROWS, padded_columns(patches))
    mean: np.ndarray  # (patches + PAD_ROWS, padded_columns(width / heads)), of the values
    rows: np.ndarray  # (n,) int64, 0, 1, …


@torch.no_grad()
def pack_weights(blocks: Sequence[SpatioTemporalBlock]) -> Weights:
    """Return the weights of blocks in the layout of :func:`forward_blocks`."""

    def stack(arrays: Sequence[Tensor]) -> np.ndarray:
        return torch.stack([array.detach().contiguous() for array in arrays]).numpy()

    def pack_layers(name: str) -> tuple[np.ndarray, np.ndarray]:
        layers = [cast(nn.Linear, block.get_submodule(name)) for block in blocks]
        weights = np.stack([pack_matrix(layer.weight.t().numpy()) for layer in layers])
        return weights, stack([layer.bias for layer in layers])

    norms = [torch.stack([torch.stack([norm.weight, norm.bias]) for norm in block.norms]) for block in blocks]
    names = ("query", "over_time", "spatial", "over_space", "feed_forward.0", "feed_forward.2")
    linears = [array for name in names for array in pack_layers(name)]
    return Weights(stack([block.lag_bias.flip(1) for block in blocks]), stack(norms), *linears)


def forward_blocks(features: Tensor, kv_cache: tuple[Tensor, ...], cache_length: Tensor, weights: Weights) -> Tensor:
    """Apply all blocks to the newest frame of each dream.

    Args:
        features: (B, patches, width).
        kv_cache: keys and values of past frames, as in :class:`worldmodel.models.dream_state.DreamState`.
        cache_length: (B,) int64, number of newest frames in the cache that are real.

    Returns:
        (B, patches, width).
    """
    batch, patches, width = features.shape
    rows, heads, count = min(CHUNK_DREAMS, batch) * patches + PAD_ROWS, weights.lag_bias.shape[1], len(kv_cache)
    size = width // heads
    shapes = {
        "x": (rows, padded_columns(width)),
        "normed": (rows, width),
        "wide": (rows, padded_columns(4 * width)),
        "attended": (rows, width),
        "hidden": (rows, 4 * width),
        "time_scores": (patches * heads, count),
        "keys": (padded_columns(patches) // LANES, size, LANES),
        "values": (padded_columns(size) // LANES, patches, LANES),
        "scores": (patches + PAD_ROWS, padded_columns(patches)),
        "mean": (patches + PAD_ROWS, padded_columns(size)),
    }
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    out = torch.empty_like(features)
    _forward_blocks(
        features.numpy(),
        tuple(frame.numpy() for frame in kv_cache),
        cache_length.numpy(),
        weights,
        Scratch(**arrays, rows=np.arange(rows)),
        out.numpy(),
    )
    return out


def add_gated(x: Tensor, update: Tensor, action: Tensor) -> Tensor:
    """Compute :func:`worldmodel.models.transformer.add_gated`."""
    out = torch.empty_like(x)
    _add_gated(*(tensor.contiguous().numpy() for tensor in (x, update, action)), out.numpy())
    return out


@njit(**OPTIONS)
def _normalize(x, norm, out, rows):
    """Apply layer norm to rows of x, as wide as ``out``."""
    width = out.shape[1]
    for r in range(rows):
        mean = ZERO
        for c in range(width):
            mean += x[r, c]
        mean /= np.float32(width)
        variance = ZERO
        for c in range(width):
            variance += (x[r, c] - mean) * (x[r, c] - mean)
        scale = np.float32(1) / np.sqrt(variance / np.float32(width) + np.float32(1e-5))
        for c in range(width):
            out[r, c] = (x[r, c] - mean) * scale * norm[0, c] + norm[1, c]


@njit(**OPTIONS)
def _linear(x, weight, bias, out, scratch, rows, overwrite):
    """Add a linear layer of x to ``out``, or overwrite ``out`` with it."""
    for r in range(rows):
        for c in range(len(bias)):
            out[r, c] = bias[c] + (ZERO if overwrite else out[r, c])
    add_product(x, 0, scratch.rows, NO_OFFSET, weight, out, rows)


@njit(**OPTIONS)
def _softmax(scores, first, end):
    """Replace the scores from ``first`` to ``end`` by their softmax."""
    largest, total = scores[first], ZERO
    for k in range(first, end):
        largest = max(largest, scores[k])
    for k in range(first, end):
        scores[k] = exp(max(scores[k] - largest, MIN_EXPONENT))
    for k in range(first, end):
        total += scores[k]
    for k in range(first, end):
        scores[k] /= total


@njit(**OPTIONS)
def _attend_over_time(queries, kv_cache, b, start, lag_bias, cache_length, scratch, row):
    """Attend from each patch of dream b to itself in past frames, whose keys begin at channel ``start``."""
    (heads, count), width, patches = lag_bias.shape, scratch.attended.shape[1], kv_cache[0].shape[1]
    attended, scores, size, first = scratch.attended, scratch.time_scores, width // heads, count - cache_length
    scale = np.float32(1 / np.sqrt(size))
    for m in range(first, count):
        frame = kv_cache[m]
        for patch in range(patches):
            for head in range(heads):
                query, score = queries[row + patch, head * size : (head + 1) * size], ZERO
                key = frame[b, patch, start + head * size : start + (head + 1) * size]
                for c in range(size):
                    score += query[c] * key[c]
                scores[patch * heads + head, m] = score * scale + lag_bias[head, m]
    for n in range(patches * heads):
        _softmax(scores[n], first, count)
    for patch in range(patches):
        for c in range(width):
            attended[row + patch, c] = ZERO
    for m in range(first, count):
        frame = kv_cache[m]
        for patch in range(patches):
            for head in range(heads):
                weight, out = scores[patch * heads + head, m], attended[row + patch, head * size : (head + 1) * size]
                value = frame[b, patch, start + width + head * size : start + width + (head + 1) * size]
                for c in range(size):
                    out[c] += weight * value[c]


@njit(**OPTIONS)
def _attend_over_space(qkv, heads, scratch, row, patches):
    """Attend from the patches of one frame to each other; rows of ``qkv`` hold queries, keys and values."""
    width, keys, values, scores = scratch.attended.shape[1], scratch.keys, scratch.values, scratch.scores
    size = width // heads
    scale = np.float32(1 / np.sqrt(size))
    for head in range(heads):
        begin = head * size
        for patch in range(patches):
            r = row + patch
            for c in range(size):
                keys[patch // LANES, c, patch % LANES] = qkv[r, width + begin + c] * scale
                values[c // LANES, patch, c % LANES] = qkv[r, 2 * width + begin + c]
        scores[:] = ZERO
        add_product(qkv, begin, scratch.rows[row:], NO_OFFSET, keys, scores, patches)
        for patch in range(patches):
            _softmax(scores[patch], 0, patches)
        scratch.mean[:] = ZERO
        add_product(scores, 0, scratch.rows, NO_OFFSET, values, scratch.mean, patches)
        for patch in range(patches):
            for c in range(size):
                scratch.attended[row + patch, begin + c] = scratch.mean[patch, c]


@cached_njit
def _forward_blocks(features, kv_cache, cache_length, weights, scratch, out):
    x, normed, wide, attended, hidden = scratch.x, scratch.normed, scratch.wide, scratch.attended, scratch.hidden
    batch, patches, width = features.shape
    heads = weights.lag_bias.shape[1]
    for low in range(0, batch, CHUNK_DREAMS):
        high = min(low + CHUNK_DREAMS, batch)
        rows = (high - low) * patches
        for r in range(rows):
            for c in range(width):
                x[r, c] = features[low + r // patches, r % patches, c]
        for n in range(len(weights.norms)):
            _normalize(x, weights.norms[n, 0], normed, rows)
            _linear(normed, weights.query[n], weights.query_bias[n], wide, scratch, rows, True)
            for b in range(low, high):
                row = (b - low) * patches
                _attend_over_time(wide, kv_cache, b, n * 2 * width, weights.lag_bias[n], cache_length[b], scratch, row)
            _linear(attended, weights.over_time[n], weights.over_time_bias[n], x, scratch, rows, False)
            _normalize(x, weights.norms[n, 1], normed, rows)
            _linear(normed, weights.spatial[n], weights.spatial_bias[n], wide, scratch, rows, True)
            for b in range(high - low):
                _attend_over_space(wide, heads, scratch, b * patches, patches)
            _linear(attended, weights.over_space[n], weights.over_space_bias[n], x, scratch, rows, False)
            _normalize(x, weights.norms[n, 2], normed, rows)
            _linear(normed, weights.up[n], weights.up_bias[n], wide, scratch, rows, True)
            for r in range(rows):
                for c in range(4 * width):
                    hidden[r, c] = gelu(wide[r, c])
            _linear(hidden, weights.down[n], weights.down_bias[n], x, scratch, rows, False)
        for r in range(rows):
            for c in range(width):
                out[low + r // patches, r % patches, c] = x[r, c]


@cached_njit
def _add_gated(x, update, action, out):
    frames, height, width, channels = x.shape
    for n in range(frames):
        for i in range(height):
            for j in range(width):
                for c in range(channels):
                    a = update[n, i, j, c] + action[n, c]
                    b = update[n, i, j, channels + c] + action[n, channels + c]
                    out[n, i, j, c] = x[n, i, j, c] + gate(a, b)
