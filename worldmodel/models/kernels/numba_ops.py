"""What the compiled loops over codes share: products, gates and draws in float32, on one thread."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# Multiply and add in one, sums in any order; infinities stay what they are.
OPTIONS = {"fastmath": {"contract", "reassoc", "arcp", "nsz"}, "error_model": "numpy", "nogil": True}
STRIDE = 32  # probabilities that are added up to see whether a draw is among them
EXTRA = 5  # rows that a product may read and write beyond the last: tiles have up to six


def _lanes() -> int:
    """Columns of a tile: with six rows they fill the vector registers, 32 of 64 bytes or 16 of 32 bytes."""
    try:
        return 32 if binding.get_host_cpu_features().get("avx512f") else 16
    except RuntimeError:  # LLVM cannot tell
        return 16


LANES = _lanes()
ITSELF = np.zeros(1, np.int64)  # the offset of a product whose rows see one line each


def cached(function: Callable) -> Callable:
    """Compile at the first call, and keep the result beside its file or else in the user's cache folder.

    Numba knows a kept result by the content of the function's own file. What is compiled into it from here is told by
    the name, so that a change in either file compiles anew.
    """
    function.__qualname__ += "_" + hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    try:
        return njit(function, cache=True, **OPTIONS)
    except RuntimeError:  # neither can be written
        return njit(function, **OPTIONS)


ZERO, ONE, HALF, TWO, FAR, LEAST = (np.float32(value) for value in (0, 1, 0.5, 2, 40, -87))
LOG2E, LN2_HIGH, LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
C0, C1, C2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
C3, C4, C5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
HALF_ROOT, P, A1, A2 = (np.float32(value) for value in (0.5**0.5, 0.3275911, 0.254829592, -0.284496736))
A3, A4, A5 = (np.float32(value) for value in (1.421413741, -1.453152027, 1.061405429))
BIAS, UNIT = np.float32(127), np.float32(1 << 23)  # of the exponent in the bits of a float32


@njit(**OPTIONS)
def exp(x):
    """e^x for -87 <= x <= 87 to 1e-7 of itself (Cephes, expf), without branches: loops over it are vectorised."""
    power = np.floor(x * LOG2E + HALF)
    x = x - power * LN2_HIGH - power * LN2_LOW
    series = ((((C0 * x + C1) * x + C2) * x + C3) * x + C4) * x + C5
    return (series * x * x + x + ONE) * np.int32((power + BIAS) * UNIT).view(np.float32)


@njit(**OPTIONS)
def gate(a, b):
    """tanh(a)·sigmoid(b) as one fraction."""
    a = exp(min(max(-TWO * a, -FAR), FAR))
    b = exp(min(max(-b, -FAR), FAR))
    return (ONE - a) / ((ONE + a) * (ONE + b))


@njit(**OPTIONS)
def gelu(x):
    """x times the normal distribution function, by erf to 2e-7 (Abramowitz & Stegun, 7.1.26)."""
    z = abs(x) * HALF_ROOT
    t = ONE / (ONE + P * z)
    tail = ((((A5 * t + A4) * t + A3) * t + A2) * t + A1) * t * exp(max(-z * z, LEAST))  # 1 - erf(z)
    return HALF * (x + abs(x) * (ONE - tail))


def packed(weight: np.ndarray) -> np.ndarray:
    """A matrix (inputs, outputs) as :func:`add_product` takes it: (blocks, inputs, LANES) float32, filled up with 0."""
    inputs, outputs = weight.shape
    blocks = -(-outputs // LANES)
    filled = np.zeros((inputs, blocks * LANES), np.float32)
    filled[:, :outputs] = weight
    return np.ascontiguousarray(filled.reshape(inputs, blocks, LANES).transpose(1, 0, 2))


def columns(outputs: int) -> int:
    """How wide the array must be that :func:`add_product` adds so many outputs to."""
    return -(-outputs // LANES) * LANES


def _tile(rows: int) -> Any:
    """A function that adds to ``rows`` rows and LANES columns of ``out``, which stay in registers meanwhile.

    Row r gets the sum over taps t and channels c of
    ``x[cells[r] + offsets[t], begin + c] * weight[block, t·channels + c]``.
    Written in LLVM's instructions because Numba has no vectors, and LLVM does not find these by itself.
    """

    @intrinsic
    def add_tile(_, x, begin, cells, offsets, weight, block, out, row):
        def generate(context, builder, signature, arguments):
            arrays = [
                context.make_array(kind)(context, builder, value) if isinstance(kind, types.Array) else value
                for kind, value in zip(signature.args, arguments, strict=True)
            ]
            x, begin, cells, offsets, weight, block, out, row = arrays
            integer, vector = block.type, ir.VectorType(ir.FloatType(), LANES)
            multiply_add = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{LANES}f32"
            )

            def number(value):
                return ir.Constant(integer, value)

            def size(array, axis):
                return cgutils.unpack_tuple(builder, array.shape)[axis]

            def place(array, *terms):  # the address of the element whose index is the sum of the terms
                index = terms[0]
                for term in terms[1:]:
                    index = builder.add(index, term)
                return builder.gep(getattr(array, "data", array), [index])

            def as_vector(address):
                return builder.bitcast(address, vector.as_pointer())

            def spread(value):
                first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
                everywhere = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
                return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), everywhere)

            length, inputs, width = size(x, 1), size(weight, 1), size(out, 1)
            channels = builder.udiv(inputs, size(offsets, 0))
            column, numbers = builder.mul(block, number(LANES)), [builder.add(row, number(r)) for r in range(rows)]
            targets = [as_vector(place(out, builder.mul(r, width), column)) for r in numbers]
            sums = [cgutils.alloca_once_value(builder, builder.load(target, align=4)) for target in targets]
            seen = [builder.load(place(cells, r)) for r in numbers]
            with cgutils.for_range(builder, size(offsets, 0), intp=integer) as tap:
                offset = builder.load(place(offsets, tap.index))
                lines = [place(x, builder.mul(builder.add(cell, offset), length), begin) for cell in seen]
                skipped = builder.add(builder.mul(block, inputs), builder.mul(tap.index, channels))
                weights = place(weight, builder.mul(skipped, number(LANES)))
                with cgutils.for_range(builder, channels, intp=integer) as c:
                    factors = builder.load(as_vector(place(weights, builder.mul(c.index, number(LANES)))), align=4)
                    for line, total in zip(lines, sums, strict=True):
                        value = spread(builder.load(place(line, c.index)))
                        builder.store(builder.call(multiply_add, [value, factors, builder.load(total)]), total)
            for target, total in zip(targets, sums, strict=True):
                builder.store(builder.load(total), target, align=4)
            return context.get_dummy_value()

        return types.void(x, begin, cells, offsets, weight, block, out, row), generate

    return add_tile


_four, _five, _six = _tile(4), _tile(5), _tile(6)


@njit(**OPTIONS)
def add_product(x, begin, cells, offsets, weight, out, rows):
    """Add to each of ``rows`` rows of ``out`` what its cell sees times a matrix.

    Args:
        x: (lines, channels) float32, contiguous; C channels from ``begin`` on are seen.
        cells: (rows + EXTRA,) int64: row r sees the lines ``cells[r] + offsets`` of x.
        offsets: (taps,) int64.
        weight: as :func:`packed` lays out (taps·C, outputs).
        out: (rows + EXTRA, columns(outputs)) float32, contiguous; rows beyond the last may change.
    """
    size = 4
    for other in (5, 6):  # the one that leaves the fewest rows over
        if -(-rows // other) * other <= -(-rows // size) * size:
            size = other
    for block in range(len(weight)):
        if size == 4:
            for row in range(0, rows, 4):
                _four(x, begin, cells, offsets, weight, block, out, row)
        elif size == 5:
            for row in range(0, rows, 5):
                _five(x, begin, cells, offsets, weight, block, out, row)
        else:
            for row in range(0, rows, 6):
                _six(x, begin, cells, offsets, weight, block, out, row)


@njit(**OPTIONS)
def add_row(x, weight, out):
    """Add x (inputs, a multiple of 8) times weight (inputs, outputs) to out (outputs,)."""
    inputs, outputs = weight.shape
    for k in range(0, inputs, 8):
        a0, a1, a2, a3, a4, a5, a6, a7 = x[k], x[k + 1], x[k + 2], x[k + 3], x[k + 4], x[k + 5], x[k + 6], x[k + 7]
        for j in range(outputs):
            first = a0 * weight[k, j] + a1 * weight[k + 1, j] + a2 * weight[k + 2, j] + a3 * weight[k + 3, j]
            second = a4 * weight[k + 4, j] + a5 * weight[k + 5, j] + a6 * weight[k + 6, j] + a7 * weight[k + 7, j]
            out[j] += first + second


@njit(**OPTIONS)
def code_drawn(logits, uniform, temperature):
    """Draw a code as ``sampling.draw`` does from logits (K,), which become probabilities, not yet normalized."""
    count, most = len(logits), logits[0]
    for k in range(count):
        most = logits[k] if logits[k] > most else most
    if temperature == ZERO:
        for k in range(count):
            if logits[k] == most:
                return k
    for k in range(count):
        logits[k] = exp(max((logits[k] - most) / temperature, LEAST))
    total, below = 0.0, 0.0  # the sums are float64: next to no rounding
    for k in range(count):
        total += logits[k]
    for start in range(0, count, STRIDE):
        stride = logits[start : start + STRIDE]
        part = 0.0
        for k in range(len(stride)):
            part += stride[k]
        if below + part > uniform * total:
            for k in range(len(stride)):
                below += stride[k]
                if below > uniform * total:
                    return start + k
        else:
            below += part
    return count - 1
