"""The kernel of :meth:`WavefrontNet.sample` for the CPU: float32, one thread.

A frame is some four hundred products of a few rows with a small matrix. Each takes a few microseconds, about as long as
a library call, so the whole loop is one compiled function.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numba import njit

from worldmodel.models.autoregressive.wavefront import TAPS, WavefrontNet, wavefronts
from worldmodel.models.kernels.numba_ops import (
    NO_OFFSET,
    OPTIONS,
    PAD_ROWS,
    ZERO,
    add_product,
    cached_njit,
    gate,
    pack_matrix,
    padded_columns,
    sample_code,
)


class Weights(NamedTuple):
    """The weights of a :class:`WavefrontNet` with C hidden channels, float32; the matrices of products are packed."""

    first: np.ndarray  # (4, K + 1, 2·C), the first layer's output for each code at each tap; zeros for no code
    rest: np.ndarray  # (layers - 1, blocks, 5·C, LANES)
    readout: np.ndarray  # (blocks, C, LANES)
    logits: np.ndarray  # (blocks, E, LANES)
    bias: np.ndarray  # (K,)


class Order(NamedTuple):
    """The positions of B grids in sampling order."""

    positions: np.ndarray  # (B·H·W,) int64, flat indices into (B, H, W)
    cells: np.ndarray  # (B·H·W + PAD_ROWS,) int64, flat indices into (B, H + 1, W + 2): a border above, left and right
    starts: np.ndarray  # (wavefronts + 1,) int64, where each wavefront begins and the last one ends
    offsets: np.ndarray  # (5,) int64, from a cell to its taps
    rows: np.ndarray  # (n,) int64, 0, 1, …


class Scratch(NamedTuple):
    """Buffers of a call; n is the length of the longest wavefront plus PAD_ROWS."""

    codes: np.ndarray  # (cells,) int64, K where none is sampled yet
    inputs: np.ndarray  # (layers - 1, cells, C), the input of each layer but the first
    x: np.ndarray  # (n, C)
    gates: np.ndarray  # (n, 2·C)
    readout: np.ndarray  # (n, E)
    probabilities: np.ndarray  # (n, K), logits, then probabilities


@torch.no_grad()
def pack_weights(net: WavefrontNet) -> Weights:
    """Return the weights of a float32 network in the kernel's layout."""
    dim = net.embedding.embedding_dim
    first = net.first.weight.unflatten(1, (-1, dim)).transpose(0, 1)  # (4, 2·C, E)
    table = torch.cat([net.embedding.weight @ first.transpose(1, 2), first.new_zeros(len(first), 1, 2 * net.hidden)], 1)
    return Weights(
        table.contiguous().numpy(),
        np.stack([pack_matrix(layer.weight.t().numpy()) for layer in net.rest]),
        pack_matrix(net.readout.weight.t().numpy()),
        pack_matrix(net.logits.weight.t().numpy()),
        net.logits.bias.detach().numpy().copy(),
    )


def sample(biases: np.ndarray, uniforms: np.ndarray, temperature: float, weights: Weights) -> np.ndarray:
    """Sample all codes as :meth:`WavefrontNet.sample` does.

    Args:
        biases: projected condition, (B, H, W, layers·2·C + E) float32.
        uniforms: (B, H, W) float32.

    Returns:
        (B, H, W) int64.

    Raises:
        ValueError: if the shapes do not match.
    """
    codes, hidden, layers = len(weights.bias), weights.first.shape[2] // 2, 1 + len(weights.rest)
    dim = weights.logits.shape[1]
    expected = (*uniforms.shape, layers * 2 * hidden + dim)
    if uniforms.ndim != 3 or biases.shape != expected:
        raise ValueError(f"uniforms must be (B, H, W) for conditions {biases.shape[:-1]}, got {uniforms.shape}")
    batch, height, width = uniforms.shape
    order = _sampling_order(batch, height, width)
    cells, rows = batch * (height + 1) * (width + 2), len(order.rows)
    shapes = {
        "inputs": (layers - 1, cells, hidden),
        "x": (rows, hidden),
        "gates": (rows, padded_columns(2 * hidden)),
        "readout": (rows, padded_columns(dim)),
        "probabilities": (rows, padded_columns(codes)),
    }
    scratch = Scratch(
        np.full(cells, codes, np.int64), **{name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    )
    out = np.empty(uniforms.size, np.int64)
    biases, uniforms = (np.ascontiguousarray(array, np.float32) for array in (biases, uniforms))
    _sample(biases.reshape(len(out), -1), uniforms.reshape(-1), np.float32(temperature), weights, order, scratch, out)
    return out.reshape(batch, height, width)


@lru_cache(maxsize=32)
def _sampling_order(batch: int, height: int, width: int) -> Order:
    positions, cells, starts, rows = [], [], [0], np.arange(batch)[:, None]
    for front in wavefronts(height, width):
        i, j = front.rows.numpy(), front.columns.numpy()
        positions += ((rows * height + i) * width + j).ravel().tolist()
        cells += ((rows * (height + 1) + i + 1) * (width + 2) + j + 1).ravel().tolist()
        starts.append(len(cells))
    offsets = [-up * (width + 2) - left for up, left in TAPS]
    longest = int(np.diff(starts).max()) + PAD_ROWS
    fields = (positions, cells + cells[-1:] * PAD_ROWS, starts, offsets, range(longest))
    return Order(*(np.array(values, np.int64) for values in fields))


@njit(**OPTIONS)
def _copy_biases(biases, positions, start, out, channels):
    """Copy ``channels`` channels of the positions' biases, from channel ``start`` on, into the rows of out."""
    for r in range(len(positions)):
        for c in range(channels):
            out[r, c] = biases[positions[r], start + c]


@cached_njit
def _sample(biases, uniforms, temperature, weights, order, scratch, out):
    codes, x, gates, readout = scratch.codes, scratch.x, scratch.gates, scratch.readout
    probabilities, hidden, dim, size = scratch.probabilities, x.shape[1], weights.logits.shape[1], len(weights.bias)
    for number in range(len(order.starts) - 1):
        start, end = order.starts[number], order.starts[number + 1]
        positions, cells = order.positions[start:end], order.cells[start:]
        rows = end - start
        for layer in range(1 + len(weights.rest)):
            _copy_biases(biases, positions, layer * 2 * hidden, gates, 2 * hidden)
            if layer == 0:
                for r in range(rows):
                    for tap in range(len(weights.first)):
                        code = codes[cells[r] + order.offsets[tap]]
                        for c in range(2 * hidden):
                            gates[r, c] += weights.first[tap, code, c]
                    for c in range(hidden):
                        x[r, c] = ZERO
            else:
                inputs = scratch.inputs[layer - 1]
                for r in range(rows):
                    for c in range(hidden):
                        inputs[cells[r], c] = x[r, c]
                add_product(inputs, 0, cells, order.offsets, weights.rest[layer - 1], gates, rows)
            for r in range(rows):
                for c in range(hidden):
                    x[r, c] += gate(gates[r, c], gates[r, hidden + c])
        _copy_biases(biases, positions, (1 + len(weights.rest)) * 2 * hidden, readout, dim)
        add_product(x, 0, order.rows, NO_OFFSET, weights.readout, readout, rows)
        for r in range(rows):
            for c in range(dim):
                readout[r, c] = max(readout[r, c], ZERO)
            for k in range(size):
                probabilities[r, k] = weights.bias[k]
        add_product(readout, 0, order.rows, NO_OFFSET, weights.logits, probabilities, rows)
        for r in range(rows):
            code = sample_code(probabilities[r, :size], uniforms[positions[r]], temperature)
            out[positions[r]] = code
            codes[cells[r]] = code
