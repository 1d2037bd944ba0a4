"""The loop of :meth:`WavefrontNet.sample` compiled for the CPU: float32, one thread.

A frame is some four hundred products of a few rows with a small matrix. Each takes a few microseconds, about what it
costs to call a library for it, so the whole loop is one function here.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numba import njit

from worldmodel.models.autoregressive.wavefront import TAPS, WavefrontNet, wavefronts
from worldmodel.models.kernels.numba_ops import (
    EXTRA,
    ITSELF,
    OPTIONS,
    ZERO,
    add_product,
    cached,
    code_drawn,
    columns,
    gate,
    packed,
)


class Weights(NamedTuple):
    """The weights of a :class:`WavefrontNet` with C hidden channels, float32; those of products are packed."""

    first: np.ndarray  # (4, K + 1, 2·C), what the first layer makes of each code seen; of none, zeros
    rest: np.ndarray  # (layers - 1, blocks, 5·C, LANES)
    readout: np.ndarray  # (blocks, C, LANES)
    logits: np.ndarray  # (blocks, E, LANES)
    bias: np.ndarray  # (K,)


class Order(NamedTuple):
    """The positions of B grids in the order in which they are drawn."""

    positions: np.ndarray  # (B·H·W,) int64, in (B, H, W) laid out flat
    cells: np.ndarray  # (B·H·W + EXTRA,) int64, the same in (B, H + 1, W + 2): a border above, left and right
    starts: np.ndarray  # (wavefronts + 1,) int64, where each wavefront begins and the last one ends
    offsets: np.ndarray  # (5,) int64, from a cell to those that it sees
    rows: np.ndarray  # (n,) int64, 0, 1, …


class Scratch(NamedTuple):
    """What is worked on during a call; n is the longest wavefront and EXTRA."""

    codes: np.ndarray  # (cells,) int64, K where none is drawn
    kept: np.ndarray  # (layers - 1, cells, C), what goes into each layer but the first
    x: np.ndarray  # (n, C)
    gates: np.ndarray  # (n, 2·C)
    read: np.ndarray  # (n, E)
    chances: np.ndarray  # (n, K), logits, then probabilities


@torch.no_grad()
def weights_of(net: WavefrontNet) -> Weights:
    """The weights of a net in float32 as the loop takes them."""
    dim = net.embedding.embedding_dim
    first = net.first.weight.unflatten(1, (-1, dim)).transpose(0, 1)  # (4, 2·C, E)
    table = torch.cat([net.embedding.weight @ first.transpose(1, 2), first.new_zeros(len(first), 1, 2 * net.hidden)], 1)
    return Weights(
        table.contiguous().numpy(),
        np.stack([packed(layer.weight.t().numpy()) for layer in net.rest]),
        packed(net.readout.weight.t().numpy()),
        packed(net.logits.weight.t().numpy()),
        net.logits.bias.detach().numpy(),
    )


def sample(told: np.ndarray, uniforms: np.ndarray, temperature: float, weights: Weights) -> np.ndarray:
    """Draw all codes as :meth:`WavefrontNet.sample` does.

    Args:
        told: what the layers are told, (B, H, W, layers·2·C + E) float32.
        uniforms: (B, H, W) float32.

    Returns:
        (B, H, W) int64.

    Raises:
        ValueError: if the shapes do not fit.
    """
    codes, hidden, layers = len(weights.bias), weights.first.shape[2] // 2, 1 + len(weights.rest)
    dim = weights.logits.shape[1]
    expected = (*uniforms.shape, layers * 2 * hidden + dim)
    if uniforms.ndim != 3 or told.shape != expected:
        raise ValueError(f"uniforms must be (B, H, W) for conditions {told.shape[:-1]}, got {uniforms.shape}")
    batch, height, width = uniforms.shape
    order = _order(batch, height, width)
    cells, rows = batch * (height + 1) * (width + 2), len(order.rows)
    shapes = {
        "kept": (layers - 1, cells, hidden),
        "x": (rows, hidden),
        "gates": (rows, columns(2 * hidden)),
        "read": (rows, columns(dim)),
        "chances": (rows, columns(codes)),
    }
    scratch = Scratch(
        np.full(cells, codes, np.int64), **{name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    )
    drawn = np.empty(uniforms.size, np.int64)
    told, uniforms = (np.ascontiguousarray(array, np.float32) for array in (told, uniforms))
    _sample(told.reshape(len(drawn), -1), uniforms.reshape(-1), np.float32(temperature), weights, order, scratch, drawn)
    return drawn.reshape(batch, height, width)


@lru_cache(maxsize=32)
def _order(batch: int, height: int, width: int) -> Order:
    positions, cells, starts, rows = [], [], [0], np.arange(batch)[:, None]
    for front in wavefronts(height, width):
        i, j = front.rows.numpy(), front.columns.numpy()
        positions += ((rows * height + i) * width + j).ravel().tolist()
        cells += ((rows * (height + 1) + i + 1) * (width + 2) + j + 1).ravel().tolist()
        starts.append(len(cells))
    offsets = [-up * (width + 2) - left for up, left in TAPS]
    longest = int(np.diff(starts).max()) + EXTRA
    numbers = (positions, cells + cells[-1:] * EXTRA, starts, offsets, range(longest))
    return Order(*(np.array(values, np.int64) for values in numbers))


@njit(**OPTIONS)
def _copy(told, positions, start, out, channels):
    """Begin rows of out with so many channels of what their positions are told, from the channel ``start`` on."""
    for r in range(len(positions)):
        for c in range(channels):
            out[r, c] = told[positions[r], start + c]


@cached
def _sample(told, uniforms, temperature, weights, order, scratch, drawn):
    codes, x, gates, read, chances = scratch.codes, scratch.x, scratch.gates, scratch.read, scratch.chances
    hidden, dim, size = x.shape[1], weights.logits.shape[1], len(weights.bias)
    for number in range(len(order.starts) - 1):
        start, end = order.starts[number], order.starts[number + 1]
        positions, cells = order.positions[start:end], order.cells[start:]
        rows = end - start
        for layer in range(1 + len(weights.rest)):
            _copy(told, positions, layer * 2 * hidden, gates, 2 * hidden)
            if layer == 0:
                for r in range(rows):
                    for tap in range(len(weights.first)):
                        code = codes[cells[r] + order.offsets[tap]]
                        for c in range(2 * hidden):
                            gates[r, c] += weights.first[tap, code, c]
                    for c in range(hidden):
                        x[r, c] = ZERO
            else:
                kept = scratch.kept[layer - 1]
                for r in range(rows):
                    for c in range(hidden):
                        kept[cells[r], c] = x[r, c]
                add_product(kept, 0, cells, order.offsets, weights.rest[layer - 1], gates, rows)
            for r in range(rows):
                for c in range(hidden):
                    x[r, c] += gate(gates[r, c], gates[r, hidden + c])
        _copy(told, positions, (1 + len(weights.rest)) * 2 * hidden, read, dim)
        add_product(x, 0, order.rows, ITSELF, weights.readout, read, rows)
        for r in range(rows):
            for c in range(dim):
                read[r, c] = max(read[r, c], ZERO)
            for k in range(size):
                chances[r, k] = weights.bias[k]
        add_product(read, 0, order.rows, ITSELF, weights.logits, chances, rows)
        for r in range(rows):
            code = code_drawn(chances[r, :size], uniforms[positions[r]], temperature)
            drawn[positions[r]] = code
            codes[cells[r]] = code
