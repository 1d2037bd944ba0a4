"""The loop of :meth:`WaveNet.sample` compiled for the CPU: float32, one thread.

A code is some fifty products of one row, or a few, with a small matrix, and nearly all that it costs one line is to
read the weights once: they lie in the order in which they are read. None are kept between calls.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from worldmodel.models.kernels.numba_ops import (
    EXTRA,
    ITSELF,
    OPTIONS,
    ZERO,
    add_product,
    add_row,
    cached,
    code_drawn,
    columns,
    gate,
    packed,
)


class Weights(NamedTuple):
    """The weights of a :class:`WaveNet` with C hidden channels, as contiguous float32 arrays.

    For several lines, those of products are packed.
    """

    told: np.ndarray  # (channels of the condition, layers·2·C)
    told_bias: np.ndarray  # (layers·2·C,)
    start: np.ndarray  # (K + 1, C + E), what the first layer takes after each code, and after none; the readout's bias
    dilated: np.ndarray  # (layers, 2·C, 2·C), what lies before and what is here to the gates
    after: np.ndarray  # (layers, C, C + E), a layer's output to what it adds for the next layer and to what is read out
    residual: np.ndarray  # (layers, C), biases
    head: np.ndarray  # (E, E)
    head_bias: np.ndarray  # (E,)
    logits: np.ndarray  # (E, K)
    bias: np.ndarray  # (K,)


class Scratch(NamedTuple):
    """What is worked on during a call; n is the number of lines, and EXTRA where there are several."""

    condition: np.ndarray  # (n, channels of it)
    told: np.ndarray  # (n, layers·2·C), what the layers are told
    rings: np.ndarray  # (sum of distances, n, C), what each layer took as far back as it looks
    sums: np.ndarray  # (n, C + E), what the next layer takes, and what is read out
    seen: np.ndarray  # (n, 2·C)
    gates: np.ndarray  # (n, 2·C)
    out: np.ndarray  # (n, C)
    read: np.ndarray  # (n, E)
    head: np.ndarray  # (n, E)
    chances: np.ndarray  # (n, K), logits, then probabilities
    rows: np.ndarray  # (n,) int64, 0, 1, …


def sample(
    condition: np.ndarray, uniforms: np.ndarray, temperature: float, weights: Weights, dilations: Sequence[int]
) -> np.ndarray:
    """Draw all codes as :meth:`WaveNet.sample` does.

    Args:
        condition: (B, M, ·) float32, or (1, M, ·) for the same in every line, contiguous.
        uniforms: (B, N) float32, contiguous.
        dilations: how far back each layer looks.

    Returns:
        (B, N) int64.
    """
    lines, length = uniforms.shape
    rows = 1 if lines == 1 else lines + EXTRA
    sizes = np.minimum(dilations, max(length, 1))  # beyond the beginning there are zeros
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    (dim, codes), hidden = weights.logits.shape, weights.after.shape[1]
    shapes = {
        "condition": (rows, condition.shape[2]),
        "told": (rows, columns(len(weights.told_bias))),
        "rings": (starts[-1], rows, hidden),
        "sums": (rows, columns(hidden + dim)),
        "seen": (rows, 2 * hidden),
        "gates": (rows, columns(2 * hidden)),
        "out": (rows, hidden),
        "read": (rows, dim),
        "head": (rows, columns(dim)),
        "chances": (rows, columns(codes)),
    }
    scratch = Scratch(
        **{name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, rows=np.arange(rows, dtype=np.int64)
    )
    if lines > 1:
        weights = weights._replace(
            told=packed(weights.told),
            dilated=np.stack([packed(weight) for weight in weights.dilated]),
            after=np.stack([packed(weight) for weight in weights.after]),
            head=packed(weights.head),
            logits=packed(weights.logits),
        )
    drawn = np.empty(uniforms.shape, np.int64)
    _sample(condition, uniforms, np.float32(temperature), weights, starts, scratch, drawn)
    return drawn


@njit(**OPTIONS)
def _add(x, weight, out, rows, lines):
    if weight.ndim == 2:  # not packed
        add_row(x[0], weight, out[0])
    else:
        add_product(x, 0, rows, ITSELF, weight, out, lines)


@njit(**OPTIONS)
def _tell(condition, weights, scratch, lines):
    """What all layers are told from now on, from the conditions (1 or B, ·)."""
    for line in range(lines):
        same = line if len(condition) > 1 else 0
        for c in range(condition.shape[1]):
            scratch.condition[line, c] = condition[same, c]
        for c in range(len(weights.told_bias)):
            scratch.told[line, c] = weights.told_bias[c]
    _add(scratch.condition, weights.told, scratch.told, scratch.rows, lines)


@njit(**OPTIONS)
def _layer(slot, weights, layer, scratch, lines):
    """One position of one layer, with what it took before in its slot (n, C) of the ring."""
    sums, seen, gates, out = scratch.sums, scratch.seen, scratch.gates, scratch.out
    hidden = out.shape[1]
    for line in range(lines):
        for c in range(2 * hidden):
            gates[line, c] = scratch.told[line, layer * 2 * hidden + c]
        for c in range(hidden):
            seen[line, c] = slot[line, c]
            seen[line, hidden + c] = sums[line, c]
            slot[line, c] = sums[line, c]
    _add(seen, weights.dilated[layer], gates, scratch.rows, lines)
    for line in range(lines):
        for c in range(hidden):
            out[line, c] = gate(gates[line, c], gates[line, hidden + c])
            sums[line, c] += weights.residual[layer, c]
    _add(out, weights.after[layer], sums, scratch.rows, lines)


@cached
def _sample(condition, uniforms, temperature, weights, starts, scratch, drawn):
    rings, sums, read, head, chances = scratch.rings, scratch.sums, scratch.read, scratch.head, scratch.chances
    lines, length = drawn.shape
    hidden, dim, codes = scratch.out.shape[1], read.shape[1], len(weights.bias)
    each = length // condition.shape[1]
    for position in range(length):
        if position % each == 0:
            _tell(condition[:, position // each], weights, scratch, lines)
        for line in range(lines):
            before = drawn[line, position - 1] if position else codes
            for c in range(hidden + dim):
                sums[line, c] = weights.start[before, c]
        for layer in range(len(starts) - 1):
            slot = rings[starts[layer] + position % (starts[layer + 1] - starts[layer])]
            _layer(slot, weights, layer, scratch, lines)
        for line in range(lines):
            for c in range(dim):
                read[line, c] = max(sums[line, hidden + c], ZERO)
                head[line, c] = weights.head_bias[c]
        _add(read, weights.head, head, scratch.rows, lines)
        for line in range(lines):
            for c in range(dim):
                head[line, c] = max(head[line, c], ZERO)
            for k in range(codes):
                chances[line, k] = weights.bias[k]
        _add(head, weights.logits, chances, scratch.rows, lines)
        for line in range(lines):
            drawn[line, position] = code_drawn(chances[line, :codes], uniforms[line, position], temperature)
