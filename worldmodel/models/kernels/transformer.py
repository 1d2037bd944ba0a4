"""The context of :meth:`Rollout.look` compiled for the CPU: float32, one thread.

For a single dream the products are small, and what stands between them costs as much in torch as they do. A few dreams
at a time go through all blocks, so that what is worked on stays in the cache.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from worldmodel.models.kernels.numba_ops import (
    EXTRA,
    ITSELF,
    LANES,
    LEAST,
    OPTIONS,
    ZERO,
    add_product,
    cached,
    columns,
    exp,
    gate,
    gelu,
    packed,
)
from worldmodel.models.transformer import Block

TOGETHER = 4  # dreams


class Weights(NamedTuple):
    """The weights of all blocks, each stacked; those of linear layers are packed."""

    lag_bias: np.ndarray  # (blocks, heads, M), of the oldest frame first
    norms: np.ndarray  # (blocks, 3, 2, width), gains and biases
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
    """What is worked on during a call; n rows are the patches of the dreams of a part, and EXTRA."""

    x: np.ndarray  # (n, columns(width))
    normed: np.ndarray  # (n, width)
    wide: np.ndarray  # (n, columns(4·width)), queries, then queries, keys and values in space, then what is fed forward
    seen: np.ndarray  # (n, width)
    fed: np.ndarray  # (n, 4·width)
    recalled: np.ndarray  # (patches·heads, M), of one dream
    keys: np.ndarray  # (blocks, width / heads, LANES), of one dream and head, as a product takes them
    values: np.ndarray  # (blocks, patches, LANES), likewise
    scores: np.ndarray  # (patches + EXTRA, columns(patches))
    mean: np.ndarray  # (patches + EXTRA, columns(width / heads)), of the values
    rows: np.ndarray  # (n,) int64, 0, 1, …


@torch.no_grad()
def weights_of(blocks: Sequence[Block]) -> Weights:
    """The weights of blocks as :func:`attend` takes them."""

    def stacked(arrays: Sequence[Tensor]) -> np.ndarray:
        return torch.stack([array.detach().contiguous() for array in arrays]).numpy()

    def layers(name: str) -> tuple[np.ndarray, np.ndarray]:
        found: list[nn.Linear] = [block.get_submodule(name) for block in blocks]
        weights = np.stack([packed(layer.weight.t().numpy()) for layer in found])
        return weights, stacked([layer.bias for layer in found])

    norms = [torch.stack([torch.stack([norm.weight, norm.bias]) for norm in block.norms]) for block in blocks]
    names = ("query", "over_time", "spatial", "over_space", "feed_forward.0", "feed_forward.2")
    linear = [array for name in names for array in layers(name)]
    return Weights(stacked([block.lag_bias.flip(1) for block in blocks]), stacked(norms), *linear)


def attend(features: Tensor, frames: tuple[Tensor, ...], filled: Tensor, weights: Weights) -> Tensor:
    """All blocks for the newest frame of each dream.

    Args:
        features: (B, patches, width).
        frames: what is remembered, as :class:`worldmodel.models.dream_state.Memory` has it.
        filled: (B,) int64, how many of the frames are real: the newest.

    Returns:
        (B, patches, width).
    """
    batch, patches, width = features.shape
    rows, heads, count = min(TOGETHER, batch) * patches + EXTRA, weights.lag_bias.shape[1], len(frames)
    size = width // heads
    shapes = {
        "x": (rows, columns(width)),
        "normed": (rows, width),
        "wide": (rows, columns(4 * width)),
        "seen": (rows, width),
        "fed": (rows, 4 * width),
        "recalled": (patches * heads, count),
        "keys": (columns(patches) // LANES, size, LANES),
        "values": (columns(size) // LANES, patches, LANES),
        "scores": (patches + EXTRA, columns(patches)),
        "mean": (patches + EXTRA, columns(size)),
    }
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    out = torch.empty_like(features)
    _attend(
        features.numpy(),
        tuple(frame.numpy() for frame in frames),
        filled.numpy(),
        weights,
        Scratch(**arrays, rows=np.arange(rows)),
        out.numpy(),
    )
    return out


def add_gated(x: Tensor, change: Tensor, action: Tensor) -> Tensor:
    """As :func:`worldmodel.models.transformer.add_gated`."""
    out = torch.empty_like(x)
    _add_gated(*(tensor.contiguous().numpy() for tensor in (x, change, action)), out.numpy())
    return out


@njit(**OPTIONS)
def _normalize(x, norm, out, rows):
    """Layer norm of rows of x, as wide as ``out`` is."""
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
def _linear(x, weight, bias, out, scratch, rows, fresh):
    """Add a linear layer of x to ``out``, or put it there if that is to begin afresh."""
    for r in range(rows):
        for c in range(len(bias)):
            out[r, c] = bias[c] + (ZERO if fresh else out[r, c])
    add_product(x, 0, scratch.rows, ITSELF, weight, out, rows)


@njit(**OPTIONS)
def _softmax(scores, first, end):
    """Scores from ``first`` to ``end`` become shares of one."""
    most, total = scores[first], ZERO
    for k in range(first, end):
        most = max(most, scores[k])
    for k in range(first, end):
        scores[k] = exp(max(scores[k] - most, LEAST))
    for k in range(first, end):
        total += scores[k]
    for k in range(first, end):
        scores[k] /= total


@njit(**OPTIONS)
def _recall(queries, frames, b, start, lag_bias, filled, scratch, row):
    """Attention of each patch of dream b to itself in the remembered frames, whose keys begin at channel ``start``."""
    (heads, count), width, patches = lag_bias.shape, scratch.seen.shape[1], frames[0].shape[1]
    seen, recalled, size, first = scratch.seen, scratch.recalled, width // heads, count - filled
    scale = np.float32(1 / np.sqrt(size))
    for m in range(first, count):
        frame = frames[m]
        for patch in range(patches):
            for head in range(heads):
                query, score = queries[row + patch, head * size : (head + 1) * size], ZERO
                key = frame[b, patch, start + head * size : start + (head + 1) * size]
                for c in range(size):
                    score += query[c] * key[c]
                recalled[patch * heads + head, m] = score * scale + lag_bias[head, m]
    for n in range(patches * heads):
        _softmax(recalled[n], first, count)
    for patch in range(patches):
        for c in range(width):
            seen[row + patch, c] = ZERO
    for m in range(first, count):
        frame = frames[m]
        for patch in range(patches):
            for head in range(heads):
                share, out = recalled[patch * heads + head, m], seen[row + patch, head * size : (head + 1) * size]
                value = frame[b, patch, start + width + head * size : start + width + (head + 1) * size]
                for c in range(size):
                    out[c] += share * value[c]


@njit(**OPTIONS)
def _attend_in_space(mixed, heads, scratch, row, patches):
    """Attention of the patches of one frame to each other: mixed rows hold queries, keys and values."""
    width, keys, values, scores = scratch.seen.shape[1], scratch.keys, scratch.values, scratch.scores
    size = width // heads
    scale = np.float32(1 / np.sqrt(size))
    for head in range(heads):
        begin = head * size
        for patch in range(patches):
            r = row + patch
            for c in range(size):
                keys[patch // LANES, c, patch % LANES] = mixed[r, width + begin + c] * scale
                values[c // LANES, patch, c % LANES] = mixed[r, 2 * width + begin + c]
        scores[:] = ZERO
        add_product(mixed, begin, scratch.rows[row:], ITSELF, keys, scores, patches)
        for patch in range(patches):
            _softmax(scores[patch], 0, patches)
        scratch.mean[:] = ZERO
        add_product(scores, 0, scratch.rows, ITSELF, values, scratch.mean, patches)
        for patch in range(patches):
            for c in range(size):
                scratch.seen[row + patch, begin + c] = scratch.mean[patch, c]


@cached
def _attend(features, frames, filled, weights, scratch, out):
    x, normed, wide, seen, fed = scratch.x, scratch.normed, scratch.wide, scratch.seen, scratch.fed
    batch, patches, width = features.shape
    heads = weights.lag_bias.shape[1]
    for low in range(0, batch, TOGETHER):
        high = min(low + TOGETHER, batch)
        rows = (high - low) * patches
        for r in range(rows):
            for c in range(width):
                x[r, c] = features[low + r // patches, r % patches, c]
        for n in range(len(weights.norms)):
            _normalize(x, weights.norms[n, 0], normed, rows)
            _linear(normed, weights.query[n], weights.query_bias[n], wide, scratch, rows, True)
            for b in range(low, high):
                row = (b - low) * patches
                _recall(wide, frames, b, n * 2 * width, weights.lag_bias[n], filled[b], scratch, row)
            _linear(seen, weights.over_time[n], weights.over_time_bias[n], x, scratch, rows, False)
            _normalize(x, weights.norms[n, 1], normed, rows)
            _linear(normed, weights.spatial[n], weights.spatial_bias[n], wide, scratch, rows, True)
            for b in range(high - low):
                _attend_in_space(wide, heads, scratch, b * patches, patches)
            _linear(seen, weights.over_space[n], weights.over_space_bias[n], x, scratch, rows, False)
            _normalize(x, weights.norms[n, 2], normed, rows)
            _linear(normed, weights.up[n], weights.up_bias[n], wide, scratch, rows, True)
            for r in range(rows):
                for c in range(4 * width):
                    fed[r, c] = gelu(wide[r, c])
            _linear(fed, weights.down[n], weights.down_bias[n], x, scratch, rows, False)
        for r in range(rows):
            for c in range(width):
                out[low + r // patches, r % patches, c] = x[r, c]


@cached
def _add_gated(x, change, action, out):
    frames, height, width, channels = x.shape
    for n in range(frames):
        for i in range(height):
            for j in range(width):
                for c in range(channels):
                    a = change[n, i, j, c] + action[n, c]
                    b = change[n, i, j, channels + c] + action[n, channels + c]
                    out[n, i, j, c] = x[n, i, j, c] + gate(a, b)
