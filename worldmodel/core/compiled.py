"""What the compiled loops over codes share: products, gates and draws in float32, on one thread.

Numba keeps what it compiles until the file of the loop itself changes: after a change here, touch those that import it.
"""

from collections.abc import Callable

import numpy as np
from numba import njit

# Multiply and add in one, sums in any order; infinities stay what they are.
OPTIONS = {"fastmath": {"contract", "reassoc", "arcp", "nsz"}, "error_model": "numpy", "nogil": True}
AT_ONCE = 4  # rows of a product, and inputs: what the registers hold


def cached(function: Callable) -> Callable:
    """Compile at the first call, and keep the result beside its file or else in the user's cache folder."""
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
def add_product(x, weight, out, rows):
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
    """As :func:`worldmodel.core.sampling.draw` from logits (K,), which become probabilities, not yet normalized."""
    likeliest = 0
    for k in range(len(logits)):
        if logits[k] > logits[likeliest]:
            likeliest = k
    if temperature == ZERO:
        return likeliest
    most, total, cumulated = logits[likeliest], 0.0, 0.0  # the sums are float64: next to no rounding
    for k in range(len(logits)):
        logits[k] = exp(max((logits[k] - most) / temperature, LEAST))
    for k in range(len(logits)):
        total += logits[k]
    for k in range(len(logits)):
        cumulated += logits[k]
        if cumulated > uniform * total:
            return k
    return len(logits) - 1
