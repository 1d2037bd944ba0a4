"""Operations that the kernels share, in float32 on one thread: matrix products, gates and sampling."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# Allow fused multiply-add and sums in any order, but keep infinities and NaN.
OPTIONS = {"fastmath": {"contract", "reassoc", "arcp", "nsz"}, "error_model": "numpy", "nogil": True}
SUM_CHUNK = 32  # probabilities summed at a time when searching for the sampled code
PAD_ROWS = 5  # rows that a product may read and write beyond the last: tiles have up to six rows


def _num_lanes() -> int:
    """Return the columns of a tile: with six rows they fill the vector registers, 32 of 64 or 16 of 32 bytes."""
    try:
        return 32 if binding.get_host_cpu_features().get("avx512f") else 16
    except RuntimeError:  # LLVM does not know
        return 16


LANES = _num_lanes()
NO_OFFSET = np.zeros(1, np.int64)  # offsets of a plain matrix product, whose rows read one line each


def cached_njit(function: Callable) -> Callable:
    """Compile at the first call, and cache the result beside the source file or else in the user's cache folder.

    Numba's cache key covers only the function's own file. The hash of this file goes into the function's name, so that
    a change to either file recompiles.
    """
    function.__qualname__ += "_" + hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    try:
        return njit(function, cache=True, **OPTIONS)
    except RuntimeError:  # neither folder is writable
        return njit(function, **OPTIONS)


ZERO, ONE, HALF, TWO, GATE_LIMIT, MIN_EXPONENT = (np.float32(value) for value in (0, 1, 0.5, 2, 40, -87))
LOG2E, LN2_HIGH, LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
C0, C1, C2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
C3, C4, C5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
HALF_ROOT, P, A1, A2 = (np.float32(value) for value in (0.5**0.5, 0.3275911, 0.254829592, -0.284496736))
A3, A4, A5 = (np.float32(value) for value in (1.421413741, -1.453152027, 1.061405429))
EXPONENT_BIAS, EXPONENT_UNIT = np.float32(127), np.float32(1 << 23)  # in the bits of a float32


@njit(**OPTIONS)
def exp(x):
    """Return e^x for -87 <= x <= 87, to a relative 1e-7 (Cephes, expf); branch-free, so loops over it vectorize."""
    power = np.floor(x * LOG2E + HALF)
    x = x - power * LN2_HIGH - power * LN2_LOW
    series = ((((C0 * x + C1) * x + C2) * x + C3) * x + C4) * x + C5
    return (series * x * x + x + ONE) * np.int32((power + EXPONENT_BIAS) * EXPONENT_UNIT).view(np.float32)


@njit(**OPTIONS)
def gate(a, b):
    """Return tanh(a)·sigmoid(b), as one fraction."""
    a = exp(min(max(-TWO * a, -GATE_LIMIT), GATE_LIMIT))
    b = exp(min(max(-b, -GATE_LIMIT), GATE_LIMIT))
    return (ONE - a) / ((ONE + a) * (ONE + b))


@njit(**OPTIONS)
def gelu(x):
    """Return x times the standard normal CDF, with erf to 2e-7 (Abramowitz & Stegun, 7.1.26)."""
    z = abs(x) * HALF_ROOT
    t = ONE / (ONE + P * z)
    tail = ((((A5 * t + A4) * t + A3) * t + A2) * t + A1) * t * exp(max(-z * z, MIN_EXPONENT))  # 1 - erf(z)
    return HALF * (x + abs(x) * (ONE - tail))


def pack_matrix(weight: np.ndarray) -> np.ndarray:
    """Pack a matrix (inputs, outputs) for :func:`add_product`: (blocks, inputs, LANES) float32, padded with zeros."""
    inputs, outputs = weight.shape
    blocks = -(-outputs // LANES)
    padded = np.zeros((inputs, blocks * LANES), np.float32)
    padded[:, :outputs] = weight
    return np.ascontiguousarray(padded.reshape(inputs, blocks, LANES).transpose(1, 0, 2))


def padded_columns(outputs: int) -> int:
    """Return the width of an array to which :func:`add_product` can add ``outputs`` columns."""
    return -(-outputs // LANES) * LANES


def _build_add_tile(rows: int) -> Any:
    """Build a function that adds to a tile of ``out``, ``rows`` rows and LANES columns, held in registers.

    Row r receives the sum over taps t and channels c of
    ``x[cells[r] + offsets[t], begin + c] * weight[block, t·channels + c]``.
    It is written in LLVM instructions because Numba has no vector types and LLVM does not vectorize this by itself.
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

            def constant(value):
                return ir.Constant(integer, value)

            def size(array, axis):
                return cgutils.unpack_tuple(builder, array.shape)[axis]

            def address(array, *terms):  # of the element whose index is the sum of the terms
                index = terms[0]
                for term in terms[1:]:
                    index = builder.add(index, term)
                return builder.gep(getattr(array, "data", array), [index])

            def as_vector(pointer):
                return builder.bitcast(pointer, vector.as_pointer())

            def broadcast(value):
                first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
                zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
                return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)

            length, inputs, width = size(x, 1), size(weight, 1), size(out, 1)
            channels = builder.udiv(inputs, size(offsets, 0))
            column, indices = builder.mul(block, constant(LANES)), [builder.add(row, constant(r)) for r in range(rows)]
            targets = [as_vector(address(out, builder.mul(r, width), column)) for r in indices]
            sums = [cgutils.alloca_once_value(builder, builder.load(target, align=4)) for target in targets]
            row_cells = [builder.load(address(cells, r)) for r in indices]
            with cgutils.for_range(builder, size(offsets, 0), intp=integer) as tap:
                offset = builder.load(address(offsets, tap.index))
                lines = [address(x, builder.mul(builder.add(cell, offset), length), begin) for cell in row_cells]
                skipped = builder.add(builder.mul(block, inputs), builder.mul(tap.index, channels))
                weights = address(weight, builder.mul(skipped, constant(LANES)))
                with cgutils.for_range(builder, channels, intp=integer) as c:
                    factors = builder.load(as_vector(address(weights, builder.mul(c.index, constant(LANES)))), align=4)
                    for line, row_sum in zip(lines, sums, strict=True):
                        value = broadcast(builder.load(address(line, c.index)))
                        builder.store(builder.call(multiply_add, [value, factors, builder.load(row_sum)]), row_sum)
            for target, row_sum in zip(targets, sums, strict=True):
                builder.store(builder.load(row_sum), target, align=4)
            return context.get_dummy_value()

        return types.void(x, begin, cells, offsets, weight, block, out, row), generate

    return add_tile


_add_tile_4, _add_tile_5, _add_tile_6 = map(_build_add_tile, (4, 5, 6))


@njit(**OPTIONS)
def add_product(x, begin, cells, offsets, weight, out, rows):
    """Add a matrix product to ``rows`` rows of ``out``; the inputs of a row are gathered from several lines of x.

    Args:
        x: (lines, channels) float32, contiguous; the C channels from ``begin`` on are read.
        cells: (rows + PAD_ROWS,) int64: row r reads the lines ``cells[r] + offsets`` of x.
        offsets: (taps,) int64.
        weight: matrix (taps·C, outputs), packed by :func:`pack_matrix`.
        out: (rows + PAD_ROWS, padded_columns(outputs)) float32, contiguous; rows beyond the last may change.
    """
    size = 4
    for other in (5, 6):  # the size that wastes the fewest rows
        if -(-rows // other) * other <= -(-rows // size) * size:
            size = other
    for block in range(len(weight)):
        if size == 4:
            for row in range(0, rows, 4):
                _add_tile_4(x, begin, cells, offsets, weight, block, out, row)
        elif size == 5:
            for row in range(0, rows, 5):
                _add_tile_5(x, begin, cells, offsets, weight, block, out, row)
        else:
            for row in range(0, rows, 6):
                _add_tile_6(x, begin, cells, offsets, weight, block, out, row)


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
def sample_code(logits, uniform, temperature):
    """Sample a code as ``sample_categorical`` does; logits (K,) are overwritten with unnormalized probabilities."""
    count, largest = len(logits), logits[0]
    for k in range(count):
        largest = logits[k] if logits[k] > largest else largest
    if temperature == ZERO:
        for k in range(count):
            if logits[k] == largest:
                return k
    for k in range(count):
        logits[k] = exp(max((logits[k] - largest) / temperature, MIN_EXPONENT))
    total, below = 0.0, 0.0  # float64 sums, with next to no rounding
    for k in range(count):
        total += logits[k]
    for start in range(0, count, SUM_CHUNK):
        chunk = logits[start : start + SUM_CHUNK]
        part = 0.0
        for k in range(len(chunk)):
            part += chunk[k]
        if below + part > uniform * total:
            for k in range(len(chunk)):
                below += chunk[k]
                if below > uniform * total:
                    return start + k
        else:
            below += part
    return count - 1
