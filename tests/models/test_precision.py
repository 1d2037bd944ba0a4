"""Precision: what is converted, what stays exact, and dreams that stay what they were."""

import pytest
import torch
from torch import nn

from tests.models.test_dynamics import film, prior
from worldmodel.episodes.segments import read_clip
from worldmodel.episodes.store import EpisodeStore
from worldmodel.models import precision, rollout
from worldmodel.models.precision import CastLayer, PackedLinear, prepare_for_inference, resolve_precision
from worldmodel.models.rollout import Rollout
from worldmodel.world_model import WorldModel

CPU = torch.device("cpu")


def test_auto_is_what_the_hardware_multiplies(monkeypatch):
    for features, expected in (({}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda features=features: features)
        assert resolve_precision("auto", CPU) == expected
        assert (
            resolve_precision("float32", CPU) == torch.float32 and resolve_precision("bfloat16", CPU) == torch.bfloat16
        )


def test_another_precision_is_refused_by_name():
    with pytest.raises(ValueError, match="precision must be auto, float32 or bfloat16, got 'half'"):
        resolve_precision("half", CPU)


def test_layers_are_converted_once_and_all_else_stays_float32():
    net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 3)), nn.Embedding(4, 8))
    made = prepare_for_inference(net, torch.bfloat16, ("2",))
    assert isinstance(made[0], CastLayer) and made[0].layer.weight.dtype == torch.bfloat16
    assert made[1].weight.dtype == made[2][0].weight.dtype == made[3].weight.dtype == torch.float32
    assert net[0].weight.dtype == torch.float32, "a copy"
    x = torch.randn(5, 6)
    assert made[0](x).dtype == torch.float32
    assert torch.allclose(made[0](x), net[0](x), atol=0.02) and not torch.equal(made[0](x), net[0](x))


def test_packed_layers_give_what_the_layers_give(monkeypatch):
    monkeypatch.setattr(precision, "_cpu_has", lambda feature: feature == "avx512_f")
    net = nn.Sequential(nn.Linear(30, 17), nn.Conv2d(3, 4, 1))
    made = prepare_for_inference(net, torch.float32)
    assert isinstance(made[0], PackedLinear) and isinstance(made[1], nn.Conv2d)
    for rows in ((1,), (49,), (2, 3)):
        x = torch.randn(*rows, 30)
        assert torch.allclose(made[0](x), net[0](x), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("numba", [True, False])
def test_a_prior_in_bfloat16_sees_nearly_what_it_sees_in_float32(numba, monkeypatch):
    if not numba:
        monkeypatch.setattr(rollout, "load_kernel", lambda _: None)
    made, (codes, actions) = prior(), film(6)
    predictions = []
    for dtype in (torch.float32, torch.bfloat16):
        dreaming = Rollout(made, dtype)
        state = dreaming.start(codes, actions[:, :5])
        predictions.append(dreaming.predict(state, actions[:, 5])[1])
        parallel = dreaming.dynamics.predict(codes, actions).condition[:, -1]
        assert torch.allclose(predictions[-1].condition, parallel, atol=1e-5 if dtype == torch.float32 else 0.05)
        assert dreaming.dynamics.wavefront.logits.weight.dtype == torch.float32
    for exact, other in zip(*predictions, strict=True):
        assert torch.allclose(exact, other, atol=0.05) and not torch.equal(exact, other)


@pytest.mark.slow
def test_a_dream_of_the_shipped_world_in_bfloat16_decodes_to_nearly_the_same_picture():
    exact, other = (WorldModel.load(precision=name) for name in ("float32", "bfloat16"))
    real, taken = read_clip(EpisodeStore(exact.clips_folder), 0, 0, 6)
    assert torch.equal(exact.encode(real), other.encode(real)), "what decides a code is exact"
    codes = exact.encode(real[:1])
    difference = (exact.decode(codes).float() - other.decode(codes).float()).square().mean()
    assert 0 < difference < 2, "a fraction of a grey level"
    state = other.start(real[None], taken[None])
    assert other.imagine(state, torch.tensor([[1]])).shape == (1, 1, 21, 21)
