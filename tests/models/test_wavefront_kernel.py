"""The compiled kernel samples what torch samples, from the weights as they are, and can be done without."""

import subprocess
import sys

import pytest
import torch

from worldmodel.episodes.segments import read_clip
from worldmodel.episodes.store import EpisodeStore
from worldmodel.models import rollout
from worldmodel.models.autoregressive import sampling, wavefront
from worldmodel.models.autoregressive.wavefront import WavefrontNet
from worldmodel.models.kernels import wavefront as wavefront_kernel
from worldmodel.world_model import WorldModel


def net(batch: int, height: int, width: int, layers: int = 3) -> tuple[WavefrontNet, torch.Tensor, torch.Tensor]:
    """A small net, a condition (batch, height, width, 6) and uniforms (batch, height, width)."""
    torch.manual_seed(0)
    made = WavefrontNet(torch.nn.Embedding(37, 12), condition_channels=6, hidden_channels=8, num_layers=layers)
    return made, torch.randn(batch, height, width, 6), torch.rand(batch, height, width)


def both(monkeypatch, made: WavefrontNet, *arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes sampled by the compiled kernel and by torch."""
    with monkeypatch.context() as patch:
        patch.setattr(wavefront, "sample_categorical", lambda *_: pytest.fail("the torch loop was used"))
        compiled = made.sample(*arguments)
        assert torch.equal(made.sample(*arguments, weights=made.pack_weights()), compiled)
    return compiled, made.sample_in_torch(*arguments)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("height", "width"), [(5, 7), (7, 5), (1, 4), (4, 1), (13, 9)])
@pytest.mark.parametrize("batch", [1, 2, 5, 20])
def test_the_same_chance_gives_the_same_codes(batch, height, width, temperature, monkeypatch):
    made, condition, uniforms = net(batch, height, width)
    compiled, expected = both(monkeypatch, made, condition, uniforms, temperature)
    assert torch.equal(compiled, expected)
    alone = [made.sample(condition[b : b + 1], uniforms[b : b + 1], temperature) for b in range(batch)]
    assert torch.equal(torch.cat(alone), compiled)


@pytest.mark.parametrize(("layers", "scale"), [(2, 1), (6, 1), (3, 30)])
def test_it_holds_for_other_depths_and_for_gates_and_logits_far_from_zero(layers, scale, monkeypatch):
    made, condition, uniforms = net(2, 6, 6, layers)
    for parameter in made.parameters():
        parameter.data.mul_(scale)
    assert torch.equal(*both(monkeypatch, made, condition, uniforms))


@pytest.mark.parametrize(("dim", "hidden", "codes"), [(8, 7, 11), (5, 16, 33), (64, 64, 512)])
def test_it_holds_for_all_sizes(dim, hidden, codes, monkeypatch):
    torch.manual_seed(0)
    made = WavefrontNet(torch.nn.Embedding(codes, dim), condition_channels=6, hidden_channels=hidden, num_layers=2)
    assert torch.equal(*both(monkeypatch, made, torch.randn(2, 7, 7, 6), torch.rand(2, 7, 7)))


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.slow
def test_a_dream_of_the_shipped_world_is_the_same(temperature, monkeypatch):
    dreams = []
    for numba in (True, False):
        if not numba:
            monkeypatch.setattr(rollout, "load_kernel", lambda _: None)
            monkeypatch.setattr(wavefront, "load_kernel", lambda _: None)
        model = WorldModel.load(precision="float32")
        real, taken = read_clip(EpisodeStore(model.clips_folder), 0, 0, 6)
        state = model.start(real[None].expand(2, -1, -1, -1, -1), taken[None].expand(2, -1))
        dreams.append(model.imagine(state, torch.tensor([[1] * 4, [5] * 4]), 3, temperature))
    assert torch.equal(*dreams)


@pytest.mark.parametrize("shape", [(1, 21, 21), (16, 21), (16, 21, 20)])
def test_chance_of_another_shape_is_refused_at_the_door(shape):
    made, condition, _ = net(16, 21, 21)
    with pytest.raises(ValueError, match=r"uniforms must be \(16, 21, 21\)"):
        made.sample(condition, torch.rand(shape))


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


def test_double_precision_is_drawn_by_torch(monkeypatch):
    monkeypatch.setattr(wavefront_kernel, "sample", lambda *_: pytest.fail("the compiled kernel was used"))
    made, condition, uniforms = net(1, 4, 5)
    made = made.double()
    assert made.pack_weights() is None
    assert made.sample(condition.double(), uniforms).shape == uniforms.shape


def test_without_numba_the_codes_are_the_same(monkeypatch):
    made, condition, uniforms = net(2, 5, 7)
    expected = made.sample(condition, uniforms)
    monkeypatch.setitem(sys.modules, "numba", None)  # what import then raises is an ImportError
    monkeypatch.delitem(sys.modules, "worldmodel.models.kernels.wavefront")
    sampling.load_kernel.cache_clear()
    assert sampling.load_kernel("wavefront") is None
    assert torch.equal(made.sample(condition, uniforms), expected)
    sampling.load_kernel.cache_clear()


@pytest.mark.slow
def test_importing_a_world_does_not_import_numba():
    code = "import sys, worldmodel.world_model; print('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
