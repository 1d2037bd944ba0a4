"""The loop of :meth:`WavefrontNet.sample` compiled for the CPU: float32, one thread.

A frame is some four hundred products of a few rows with a small matrix. Each takes a few microseconds, about what it
costs to call a library for it, so the whole loop is one function here. It keeps no weights between calls: those that
it is given are those that it uses.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit

from worldmodel.core.wavefront import TAPS, wavefronts

# Multiply and add in one, sums in any order; infinities stay what they are.
OPTIONS = {"fastmath": {"contract", "reassoc", "arcp", "nsz"}, "error_model": "numpy", "nogil": True}
AT_ONCE = 4  # rows of a product, and inputs: what the registers hold


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


def _cached(function: Callable) -> Callable:
    """Compile at the first call, and keep the result beside this file or else in the user's cache folder."""
    try:
        return njit(function, cache=True, **OPTIONS)
    except RuntimeError:  # neither can be written
        return njit(function, **OPTIONS)


ZERO, ONE, HALF, TWO, FAR, LEAST = (np.float32(value) for value in (0, 1, 0.5, 2, 40, -87))
LOG2E, LN2_HIGH, LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
C0, C1, C2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
C3, C4, C5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
BIAS, UNIT = np.float32(127), np.float32(1 << 23)  # of the exponent in the bits of a float32


@njit(**OPTIONS)
def _exp(x):
    """e^x for -87 <= x <= 87 to 1e-7 of itself (Cephes, expf), without branches: loops over it are vectorised."""
    power = np.floor(x * LOG2E + HALF)
    x = x - power * LN2_HIGH - power * LN2_LOW
    series = ((((C0 * x + C1) * x + C2) * x + C3) * x + C4) * x + C5
    return (series * x * x + x + ONE) * np.int32((power + BIAS) * UNIT).view(np.float32)


@njit(**OPTIONS)
def _add_product(x, weight, out, rows):
    """Add x (rows, inputs) times weight (inputs, outputs) to out; rows beyond, up to a multiple of 4, are touched."""
    inputs, outputs = weight.shape
    for r in range(0, rows, AT_ONCE):
        for k in range(0, inputs, AT_ONCE):
            a0, a1, a2, a3 = x[r, k], x[r, k + 1], x[r, k + 2], x[r, k + 3]
            b0, b1, b2, b3 = x[r + 1, k], x[r + 1, k + 1], x[r + 1, k + 2], x[r + 1, k + 3]
            c0, c1, c2, c3 = x[r + 2, k], x[r + 2, k + 1], x[r + 2, k + 2], x[r + 2, k + 3]
            d0, d1, d2, d3 = x[r + 3, k], x[r + 3, k + 1], x[r + 3, k + 2], x[r + 3, k + 3]
            for j in range(outputs):
                w0, w1, w2, w3 = weight[k, j], weight[k + 1, j], weight[k + 2, j], weight[k + 3, j]
                out[r, j] += a0 * w0 + a1 * w1 + a2 * w2 + a3 * w3
                out[r + 1, j] += b0 * w0 + b1 * w1 + b2 * w2 + b3 * w3
                out[r + 2, j] += c0 * w0 + c1 * w1 + c2 * w2 + c3 * w3
                out[r + 3, j] += d0 * w0 + d1 * w1 + d2 * w2 + d3 * w3


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


@njit(**OPTIONS)
def _draw(logits, uniform, temperature):
    """As :func:`worldmodel.core.wavefront.draw` from logits (K,), which become probabilities, not yet normalized."""
    likeliest = 0
    for k in range(len(logits)):
        if logits[k] > logits[likeliest]:
            likeliest = k
    if temperature == ZERO:
        return likeliest
    most, total, cumulated = logits[likeliest], 0.0, 0.0  # the sums are float64: next to no rounding
    for k in range(len(logits)):
        logits[k] = _exp(max((logits[k] - most) / temperature, LEAST))
    for k in range(len(logits)):
        total += logits[k]
    for k in range(len(logits)):
        cumulated += logits[k]
        if cumulated > uniform * total:
            return k
    return len(logits) - 1


@_cached
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
                _add_product(scratch.seen_codes, weights.first, gates, rows)
                for r in range(rows):
                    for c in range(hidden):
                        x[r, c] = ZERO
            else:
                for r in range(rows):
                    for c in range(hidden):
                        scratch.kept[layer - 1, cells[r], c] = x[r, c]
                _gather(scratch.kept[layer - 1], cells, order.offsets, scratch.seen)
                _add_product(scratch.seen, weights.rest[layer - 1], gates, rows)
            for r in range(rows):
                for c in range(hidden):  # tanh(a)·sigmoid(b) as one fraction
                    a = _exp(min(max(-TWO * gates[r, c], -FAR), FAR))
                    b = _exp(min(max(-gates[r, hidden + c], -FAR), FAR))
                    x[r, c] += (ONE - a) / ((ONE + a) * (ONE + b))
        _copy(told, positions, (1 + len(weights.rest)) * 2 * hidden, read)
        _add_product(x, weights.readout, read, rows)
        for r in range(rows):
            for c in range(read.shape[1]):
                read[r, c] = max(read[r, c], ZERO)
            for k in range(len(weights.bias)):
                chances[r, k] = weights.bias[k]
        _add_product(read, weights.logits, chances, rows)
        for r in range(rows):
            code = _draw(chances[r], uniforms[positions[r]], temperature)
            drawn[positions[r]] = code
            for c in range(read.shape[1]):
                scratch.embedded[cells[r], c] = weights.embedding[code, c]
