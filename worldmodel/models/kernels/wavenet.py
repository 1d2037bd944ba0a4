"""The kernel of :meth:`WaveNet.sample` for the CPU: float32, one thread.

A code is some fifty products of one row, or a few, with a small matrix. For a single sequence nearly all of its cost is
reading the weights once, so they are stored in the order of reading. None are kept between calls.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from worldmodel.models.kernels.numba_ops import (
    NO_OFFSET,
    OPTIONS,
    PAD_ROWS,
    ZERO,
    add_product,
    add_row,
    cached_njit,
    gate,
    pack_matrix,
    padded_columns,
    sample_code,
)


class Weights(NamedTuple):
    """The weights of a :class:`WaveNet` with C hidden channels, as contiguous float32 arrays.

    For several sequences, the matrices of products are packed.
    """

    condition: np.ndarray  # (channels of the condition, layers·2·C)
    condition_bias: np.ndarray  # (layers·2·C,)
    first: np.ndarray  # (K + 1, C + E), the first layer's input after each code and after none; the readout's bias
    dilated: np.ndarray  # (layers, 2·C, 2·C), from the past and the current input to the gates
    output: np.ndarray  # (layers, C, C + E), from a layer's output to the next layer's input and to the readout
    residual_bias: np.ndarray  # (layers, C)
    head: np.ndarray  # (E, E)
    head_bias: np.ndarray  # (E,)
    logits: np.ndarray  # (E, K)
    logits_bias: np.ndarray  # (K,)


class Scratch(NamedTuple):
    """Buffers of a call; n is the number of sequences, plus PAD_ROWS if there are several."""

    condition: np.ndarray  # (n, channels of the condition)
    biases: np.ndarray  # (n, layers·2·C), the projected condition
    rings: np.ndarray  # (sum of dilations, n, C), each layer's inputs as far back as it looks
    sums: np.ndarray  # (n, C + E), the next layer's input, and the readout
    taps: np.ndarray  # (n, 2·C), past and current input of a layer
    gates: np.ndarray  # (n, 2·C)
    out: np.ndarray  # (n, C)
    readout: np.ndarray  # (n, E)
    head: np.ndarray  # (n, E)
    probabilities: np.ndarray  # (n, K), logits, then probabilities
    rows: np.ndarray  # (n,) int64, 0, 1, …


def sample(
    condition: np.ndarray, uniforms: np.ndarray, temperature: float, weights: Weights, dilations: Sequence[int]
) -> np.ndarray:
    """Sample all codes as :meth:`WaveNet.sample` does.

    Args:
        condition: (B, M, ·) float32, or (1, M, ·) to share one condition, contiguous.
        uniforms: (B, N) float32, contiguous.
        dilations: distance in codes that each layer looks back.

    Returns:
        (B, N) int64.
    """
    batch, length = uniforms.shape
    rows = 1 if batch == 1 else batch + PAD_ROWS
    sizes = np.minimum(dilations, max(length, 1))  # nothing but zeros lies before the beginning
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    (dim, codes), hidden = weights.logits.shape, weights.output.shape[1]
    shapes = {
        "condition": (rows, condition.shape[2]),
        "biases": (rows, padded_columns(len(weights.condition_bias))),
        "rings": (starts[-1], rows, hidden),
        "sums": (rows, padded_columns(hidden + dim)),
        "taps": (rows, 2 * hidden),
        "gates": (rows, padded_columns(2 * hidden)),
        "out": (rows, hidden),
        "readout": (rows, dim),
        "head": (rows, padded_columns(dim)),
        "probabilities": (rows, padded_columns(codes)),
    }
    scratch = Scratch(
        **{name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, rows=np.arange(rows, dtype=np.int64)
    )
    if batch > 1:
        weights = weights._replace(
            condition=pack_matrix(weights.condition),
            dilated=np.stack([pack_matrix(weight) for weight in weights.dilated]),
            output=np.stack([pack_matrix(weight) for weight in weights.output]),
            head=pack_matrix(weights.head),
            logits=pack_matrix(weights.logits),
        )
    out = np.empty(uniforms.shape, np.int64)
    _sample(condition, uniforms, np.float32(temperature), weights, starts, scratch, out)
    return out


@njit(**OPTIONS)
def _add_linear(x, weight, out, rows, batch):
    if weight.ndim == 2:  # not packed
        add_row(x[0], weight, out[0])
    else:
        add_product(x, 0, rows, NO_OFFSET, weight, out, batch)


@njit(**OPTIONS)
def _project_condition(condition, weights, scratch, batch):
    """Compute the biases of all layers from the conditions (1 or B, ·)."""
    for b in range(batch):
        source = b if len(condition) > 1 else 0
        for c in range(condition.shape[1]):
            scratch.condition[b, c] = condition[source, c]
        for c in range(len(weights.condition_bias)):
            scratch.biases[b, c] = weights.condition_bias[c]
    _add_linear(scratch.condition, weights.condition, scratch.biases, scratch.rows, batch)


@njit(**OPTIONS)
def _forward_layer(slot, weights, layer, scratch, batch):
    """Evaluate one layer at one position; its slot (n, C) of the ring holds its past input and gets the current one."""
    sums, taps, gates, out = scratch.sums, scratch.taps, scratch.gates, scratch.out
    hidden = out.shape[1]
    for b in range(batch):
        for c in range(2 * hidden):
            gates[b, c] = scratch.biases[b, layer * 2 * hidden + c]
        for c in range(hidden):
            taps[b, c] = slot[b, c]
            taps[b, hidden + c] = sums[b, c]
            slot[b, c] = sums[b, c]
    _add_linear(taps, weights.dilated[layer], gates, scratch.rows, batch)
    for b in range(batch):
        for c in range(hidden):
            out[b, c] = gate(gates[b, c], gates[b, hidden + c])
            sums[b, c] += weights.residual_bias[layer, c]
    _add_linear(out, weights.output[layer], sums, scratch.rows, batch)


@cached_njit
def _sample(condition, uniforms, temperature, weights, starts, scratch, out):
    rings, sums, readout, head = scratch.rings, scratch.sums, scratch.readout, scratch.head
    probabilities, (batch, length) = scratch.probabilities, out.shape
    hidden, dim, codes = scratch.out.shape[1], readout.shape[1], len(weights.logits_bias)
    hop = length // condition.shape[1]
    for position in range(length):
        if position % hop == 0:
            _project_condition(condition[:, position // hop], weights, scratch, batch)
        for b in range(batch):
            previous = out[b, position - 1] if position else codes
            for c in range(hidden + dim):
                sums[b, c] = weights.first[previous, c]
        for layer in range(len(starts) - 1):
            slot = rings[starts[layer] + position % (starts[layer + 1] - starts[layer])]
            _forward_layer(slot, weights, layer, scratch, batch)
        for b in range(batch):
            for c in range(dim):
                readout[b, c] = max(sums[b, hidden + c], ZERO)
                head[b, c] = weights.head_bias[c]
        _add_linear(readout, weights.head, head, scratch.rows, batch)
        for b in range(batch):
            for c in range(dim):
                head[b, c] = max(head[b, c], ZERO)
            for k in range(codes):
                probabilities[b, k] = weights.logits_bias[k]
        _add_linear(head, weights.logits, probabilities, scratch.rows, batch)
        for b in range(batch):
            out[b, position] = sample_code(probabilities[b, :codes], uniforms[b, position], temperature)
