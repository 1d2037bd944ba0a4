"""The loop of :meth:`WavefrontNet.sample` compiled for the CPU: float32, one thread.

A frame is some four hundred products of a few rows with a small matrix. Each takes a few microseconds, about what it
costs to call a library for it, so the whole loop is one function here. It keeps no weights between calls: those that
it is given are those that it uses.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit

from worldmodel.core.compiled import AT_ONCE, OPTIONS, ZERO, add_product, cached, code_drawn, gate
from worldmodel.core.wavefront import TAPS, wavefronts


class Weights(NamedTuple):
    """The weights of a :class:`WavefrontNet` with C hidden channels, as contiguous float32 arrays."""

    embedding: np.ndarray  # (K, E)
    first: np.ndarray  # (4·E, 2·C)
    rest: np.ndarray  # (layers - 1, 5·C, 2·C)
    readout: np.ndarray  # (C, E)
    logits: np.ndarray  # (E, K)
    bias: np.ndarray  # (K,)


class Order(NamedTuple):
    """The positions of B grids in the order in which they are drawn."""

    positions: np.ndarray  # (B·H·W,) int64, in (B, H, W) laid out flat
    cells: np.ndarray  # (B·H·W,) int64, the same in (B, H + 1, W + 2): a border of zeros above, left and right
    starts: np.ndarray  # (wavefronts + 1,) int64, where each wavefront begins and the last one ends
    offsets: np.ndarray  # (5,) int64, from a cell to those that it sees


class Scratch(NamedTuple):
    """What is worked on during a call; n is the longest wavefront, rounded up."""

    embedded: np.ndarray  # (cells, E)
    kept: np.ndarray  # (layers - 1, cells, C), what goes into each layer but the first
    seen: np.ndarray  # (n, 5·C)
    seen_codes: np.ndarray  # (n, 4·E)
    x: np.ndarray  # (n, C)
    gates: np.ndarray  # (n, 2·C)
    read: np.ndarray  # (n, E)
    chances: np.ndarray  # (n, K), logits, then probabilities


def sample(told: np.ndarray, uniforms: np.ndarray, temperature: float, weights: Weights) -> np.ndarray:
    """Draw all codes as :meth:`WavefrontNet.sample` does.

    Args:
        told: what the layers are told, (B, H, W, layers·2·C + E) float32, contiguous.
        uniforms: (B, H, W) float32, contiguous.

    Returns:
        (B, H, W) int64.
    """
    batch, height, width, _ = told.shape
    order = _order(batch, height, width)
    (codes, dim), layers, hidden = weights.embedding.shape, 1 + len(weights.rest), len(weights.readout)
    cells, rows = batch * (height + 1) * (width + 2), int(np.diff(order.starts).max()) + AT_ONCE
    shapes = Scratch(
        embedded=(cells, dim),
        kept=(layers - 1, cells, hidden),
        seen=(rows, 5 * hidden),
        seen_codes=(rows, 4 * dim),
        x=(rows, hidden),
        gates=(rows, 2 * hidden),
        read=(rows, dim),
        chances=(rows, codes),
    )
    scratch = Scratch(*(np.zeros(shape, np.float32) for shape in shapes))
    drawn = np.empty(uniforms.size, np.int64)
    told = told.reshape(uniforms.size, -1)
    _sample(told, uniforms.reshape(-1), np.float32(temperature), weights, order, scratch, drawn)
    return drawn.reshape(uniforms.shape)


@lru_cache(maxsize=32)
def _order(batch: int, height: int, width: int) -> Order:
    positions, cells, starts, rows = [], [], [0], np.arange(batch)[:, None]
    for front in wavefronts(height, width):
        i, j = front.rows.numpy(), front.columns.numpy()
        positions += ((rows * height + i) * width + j).ravel().tolist()
        cells += ((rows * (height + 1) + i + 1) * (width + 2) + j + 1).ravel().tolist()
        starts.append(len(cells))
    offsets = [-up * (width + 2) - left for up, left in TAPS]
    return Order(*(np.array(numbers, np.int64) for numbers in (positions, cells, starts, offsets)))


@njit(**OPTIONS)
def _gather(kept, cells, offsets, seen):
    """Put side by side what cells (n,) see in kept (·, C), at each of the offsets (taps,): seen (n, taps·C)."""
    channels = kept.shape[1]
    for r in range(len(cells)):
        for tap in range(len(offsets)):
            for c in range(channels):
                seen[r, tap * channels + c] = kept[cells[r] + offsets[tap], c]


@njit(**OPTIONS)
def _copy(told, positions, start, out):
    """Begin rows of out (n, C) with C of what their positions are told, from the channel ``start`` on."""
    for r in range(len(positions)):
        for c in range(out.shape[1]):
            out[r, c] = told[positions[r], start + c]


@cached
def _sample(told, uniforms, temperature, weights, order, scratch, drawn):
    x, gates, read, chances = scratch.x, scratch.gates, scratch.read, scratch.chances
    hidden = x.shape[1]
    for number in range(len(order.starts) - 1):
        positions = order.positions[order.starts[number] : order.starts[number + 1]]
        cells = order.cells[order.starts[number] : order.starts[number + 1]]
        rows = len(cells)
        for layer in range(1 + len(weights.rest)):
            _copy(told, positions, layer * 2 * hidden, gates)
            if layer == 0:
                _gather(scratch.embedded, cells, order.offsets[:4], scratch.seen_codes)
                add_product(scratch.seen_codes, weights.first, gates, rows)
                for r in range(rows):
                    for c in range(hidden):
                        x[r, c] = ZERO
            else:
                for r in range(rows):
                    for c in range(hidden):
                        scratch.kept[layer - 1, cells[r], c] = x[r, c]
                _gather(scratch.kept[layer - 1], cells, order.offsets, scratch.seen)
                add_product(scratch.seen, weights.rest[layer - 1], gates, rows)
            for r in range(rows):
                for c in range(hidden):
                    x[r, c] += gate(gates[r, c], gates[r, hidden + c])
        _copy(told, positions, (1 + len(weights.rest)) * 2 * hidden, read)
        add_product(x, weights.readout, read, rows)
        for r in range(rows):
            for c in range(read.shape[1]):
                read[r, c] = max(read[r, c], ZERO)
            for k in range(len(weights.bias)):
                chances[r, k] = weights.bias[k]
        add_product(read, weights.logits, chances, rows)
        for r in range(rows):
            code = code_drawn(chances[r], uniforms[positions[r]], temperature)
            drawn[positions[r]] = code
            for c in range(read.shape[1]):
                scratch.embedded[cells[r], c] = weights.embedding[code, c]
