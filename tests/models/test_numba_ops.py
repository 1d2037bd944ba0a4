"""What the compiled kernels share: right for every shape, exact to rounding, and never older than its source."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from worldmodel.models.kernels import numba_ops

LOOP = """
import numpy as np
from compiled import cached_njit, doubled

@cached_njit
def loop(x):
    return doubled(x)

print(loop(np.float32(3)))
"""
DOUBLED = """

@njit(**OPTIONS)
def doubled(x):
    return {} * x
"""


@njit(**numba_ops.OPTIONS)
def product(x, begin, cells, offsets, weight, out, rows):
    numba_ops.add_product(x, begin, cells, offsets, weight, out, rows)


@pytest.mark.parametrize("rows", range(1, 15))
@pytest.mark.slow
def test_a_product_is_that_of_numpy_for_every_number_of_rows(rows):
    random = np.random.default_rng(rows)
    for taps, channels, outputs, begin in ((1, 1, 1, 0), (5, 12, 37, 3), (9, 8, 64, 0), (1, 49, 32, 7)):
        x = random.standard_normal((60, begin + channels + 2)).astype(np.float32)
        offsets, weight = random.integers(-9, 9, taps), random.standard_normal((taps * channels, outputs))
        cells = np.concatenate([random.integers(10, 50, rows), np.full(numba_ops.PAD_ROWS, 10)])
        out = np.ones((rows + numba_ops.PAD_ROWS, numba_ops.padded_columns(outputs)), np.float32)
        product(x, begin, cells, offsets, numba_ops.pack_matrix(weight), out, rows)
        seen = np.concatenate([x[cells[:rows] + offset, begin : begin + channels] for offset in offsets], 1)
        assert np.allclose(out[:rows, :outputs], 1 + seen @ weight, atol=1e-4)


@pytest.mark.slow
def test_a_row_of_a_product_does_not_depend_on_the_rows_beside_it():
    random = np.random.default_rng(0)
    x, weight = (
        random.standard_normal((40, 100)).astype(np.float32),
        numba_ops.pack_matrix(random.standard_normal((100, 50))),
    )
    cells, offsets = np.arange(40), np.zeros(1, np.int64)
    results = []
    for rows in (1, 5, 6, 23):
        out = np.zeros((rows + numba_ops.PAD_ROWS, numba_ops.padded_columns(50)), np.float32)
        product(x, 0, cells, offsets, weight, out, rows)
        results.append(out[0])
    assert all((result == results[0]).all() for result in results), "to the bit"


def test_its_exponential_is_exact_to_rounding():
    x = np.linspace(-87, 87, 2001, dtype=np.float32)
    ratio = np.array([numba_ops.exp(value) for value in x], np.float64) / np.exp(x.astype(np.float64))
    assert np.abs(ratio - 1).max() < 3e-7


def test_its_gelu_is_exact_to_rounding():
    for x in np.linspace(-12, 12, 2001, dtype=np.float32):
        exact = x * (1 + math.erf(float(x) / math.sqrt(2))) / 2
        assert abs(numba_ops.gelu(x) - exact) < 3e-7 * max(1, abs(x))


def test_where_nothing_can_be_cached_it_is_compiled_all_the_same(monkeypatch):
    def refuse(function, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(function, **options)

    monkeypatch.setattr(numba_ops, "njit", refuse)
    assert numba_ops.cached_njit(lambda x: x + 1)(2) == 3


@pytest.mark.slow
def test_a_kept_loop_is_never_older_than_what_is_compiled_into_it(tmp_path):
    shared, source = tmp_path / "compiled.py", Path(numba_ops.__file__).read_text()
    (tmp_path / "loop.py").write_text(LOOP)
    for factor in (2, 5):
        shared.write_text(source + DOUBLED.format(factor))
        said = subprocess.run([sys.executable, "loop.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert float(said.stdout) == factor * 3
    assert len(list(tmp_path.glob("__pycache__/loop*.nbi"))) == 2, "both were kept"
