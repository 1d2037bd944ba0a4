"""The compiled loop draws what the torch one draws, from the weights as they are, and can be done without."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from worldmodel.core import compiled, sampling, wavefront, wavefront_kernel
from worldmodel.core.wavefront import WavefrontNet
from worldmodel.data.store import EpisodeStore
from worldmodel.dream import read
from worldmodel.world import WorldModel


def net(batch: int, height: int, width: int, layers: int = 3) -> tuple[WavefrontNet, torch.Tensor, torch.Tensor]:
    """A small net, a condition (batch, height, width, 6) and uniforms (batch, height, width)."""
    torch.manual_seed(0)
    made = WavefrontNet(torch.nn.Embedding(37, 12), condition=6, hidden=8, layers=layers)
    return made, torch.randn(batch, height, width, 6), torch.rand(batch, height, width)


def both(monkeypatch, made: WavefrontNet, *arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """What the compiled loop and the torch one draw."""
    with monkeypatch.context() as patch:
        patch.setattr(wavefront, "draw", lambda *_: pytest.fail("the torch loop was used"))
        compiled = made.sample(*arguments)
    with monkeypatch.context() as patch:
        patch.setattr(wavefront, "FEW", 0)
        patch.setattr(wavefront_kernel, "sample", lambda *_: pytest.fail("the compiled loop was used"))
        return compiled, made.sample(*arguments)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("height", "width"), [(5, 7), (7, 5), (1, 4), (4, 1), (13, 9)])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_same_chance_gives_the_same_codes(batch, height, width, temperature, monkeypatch):
    made, condition, uniforms = net(batch, height, width)
    compiled, expected = both(monkeypatch, made, condition, uniforms, temperature)
    assert torch.equal(compiled, expected)


@pytest.mark.parametrize(("layers", "scale"), [(2, 1), (6, 1), (3, 30)])
def test_it_holds_for_other_depths_and_for_gates_and_logits_far_from_zero(layers, scale, monkeypatch):
    made, condition, uniforms = net(2, 6, 6, layers)
    for parameter in made.parameters():
        parameter.data.mul_(scale)
    assert torch.equal(*both(monkeypatch, made, condition, uniforms))


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_dream_of_the_shipped_world_is_the_same(temperature, monkeypatch):
    model, dreams = WorldModel.load(), []
    real, taken = read(EpisodeStore(model.clips), 0, 0, 6)
    for few in (wavefront.FEW, 0):
        monkeypatch.setattr(wavefront, "FEW", few)
        state = model.start(real[None].expand(2, -1, -1, -1, -1), taken[None].expand(2, -1))
        dreams.append(model.imagine(state, torch.tensor([[1] * 4, [5] * 4]), 3, temperature))
    assert torch.equal(*dreams)


def test_it_repeats_itself_to_the_bit():
    made, condition, uniforms = net(2, 13, 9)
    assert torch.equal(made.sample(condition, uniforms), made.sample(condition, uniforms))


@pytest.mark.parametrize("name", [name for name, _ in net(1, 1, 1)[0].named_parameters()])
def test_new_weights_count_at_once_however_they_came(name, monkeypatch):
    made, condition, uniforms = net(4, 7, 7)
    before = made.sample(condition, uniforms)
    torch.manual_seed(1)
    parameter = made.get_parameter(name)
    parameter.data.add_(2 * torch.randn_like(parameter))  # past autograd: not even its version counter tells
    compiled, expected = both(monkeypatch, made, condition, uniforms)
    assert torch.equal(compiled, expected)
    assert not torch.equal(compiled, before)


def test_views_are_taken_as_they_are(monkeypatch):
    made, condition, uniforms = net(3, 7, 5)
    turned = condition.transpose(1, 2), uniforms.transpose(1, 2)
    assert torch.equal(*both(monkeypatch, made, *turned))


@pytest.mark.parametrize("case", ["many", "double", "odd"])
def test_what_it_is_not_made_for_is_drawn_by_torch(case, monkeypatch):
    monkeypatch.setattr(wavefront_kernel, "sample", lambda *_: pytest.fail("the compiled loop was used"))
    made, condition, uniforms = net(wavefront.FEW + 1 if case == "many" else 1, 4, 5)
    if case == "double":
        made, condition, uniforms = made.double(), condition.double(), uniforms
    if case == "odd":
        made = WavefrontNet(torch.nn.Embedding(11, 8), condition=6, hidden=7, layers=2)
    assert made.sample(condition, uniforms).shape == uniforms.shape


def test_without_numba_the_codes_are_the_same(monkeypatch):
    made, condition, uniforms = net(2, 5, 7)
    expected = made.sample(condition, uniforms)
    monkeypatch.setitem(sys.modules, "numba", None)  # what import then raises is an ImportError
    monkeypatch.delitem(sys.modules, "worldmodel.core.wavefront_kernel")
    sampling.compiled_loop.cache_clear()
    assert sampling.compiled_loop("wavefront_kernel") is None
    assert torch.equal(made.sample(condition, uniforms), expected)
    sampling.compiled_loop.cache_clear()


def test_importing_a_world_does_not_import_numba():
    code = "import sys, worldmodel.world; print('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_where_nothing_can_be_cached_it_is_compiled_all_the_same(monkeypatch):
    njit = compiled.njit

    def refuse(function, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(function, **options)

    monkeypatch.setattr(compiled, "njit", refuse)
    assert compiled.cached(lambda x: x + 1)(2) == 3


def test_its_exponential_is_exact_to_rounding():
    x = np.linspace(-87, 87, 2001, dtype=np.float32)
    ratio = np.array([compiled.exp(value) for value in x], np.float64) / np.exp(x.astype(np.float64))
    assert np.abs(ratio - 1).max() < 3e-7
