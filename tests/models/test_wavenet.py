"""The WaveNet: drawn either way it gives what full passes give, a code knows those before it; the prior of a line."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from worldmodel.benchmarks.peers import sample_without_cache
from worldmodel.experiments.global_codes.config import GlobalCodesConfig
from worldmodel.models.autoregressive import sampling, wavenet
from worldmodel.models.autoregressive.kinds import build_autoregressive
from worldmodel.models.autoregressive.wavenet import WaveNet
from worldmodel.models.config import SpatialPriorConfig
from worldmodel.models.kernels import wavenet as wavenet_kernel
from worldmodel.models.spatial_prior import CodeBatch, SpatialPrior

CODES, CHANNELS = 19, 8
WAYS = ("compiled", "torch")


@pytest.fixture(autouse=True)
def same_chance() -> None:
    torch.manual_seed(0)


def made(layers: int = 5, cycle: int = 3, dropout: float = 0.0) -> WaveNet:
    """A small net whose codes depend on each other more than those of a fresh one."""
    net = WaveNet(nn.Embedding(CODES, 16), CHANNELS, 8, layers, cycle, dropout).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(1.5)
    return net


def only(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Let all be drawn in one of both ways."""
    if way == "compiled":
        monkeypatch.setattr(wavenet, "sample_categorical", lambda *_: pytest.fail("the torch loop was used"))
    else:
        monkeypatch.setattr(wavenet_kernel, "sample", lambda *_: pytest.fail("the compiled kernel was used"))
        monkeypatch.setattr(wavenet, "MAX_COMPILED_BATCH", 0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("batch", "hop"), [(1, 1), (1, 6), (3, 4), (17, 12)])
def test_codes_drawn_with_what_is_kept_are_those_of_full_passes(batch, hop, temperature, way, monkeypatch):
    net, condition, uniforms = made(), torch.randn(batch, 24 // hop, CHANNELS), torch.rand(batch, 24)
    codes = sample_without_cache(net, condition, uniforms, temperature)
    only(monkeypatch, way)
    assert torch.equal(net.sample(condition, uniforms, temperature), codes)
    assert codes.unique().numel() > 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("layers", "cycle", "length"), [(1, 1, 5), (2, 1, 7), (6, 9, 10), (4, 9, 1), (3, 3, 0)])
def test_a_line_may_be_shorter_than_a_layer_looks_back(layers, cycle, length, way, monkeypatch):
    net, condition, uniforms = made(layers, cycle), torch.randn(2, 1, CHANNELS), torch.rand(2, length)
    codes = sample_without_cache(net, condition, uniforms) if length else torch.empty(2, 0, dtype=torch.int64)
    only(monkeypatch, way)
    assert torch.equal(net.sample(condition, uniforms), codes)


@pytest.mark.parametrize("way", WAYS)
def test_lines_at_once_are_each_what_they_are_alone_and_may_share_a_condition(way, monkeypatch):
    only(monkeypatch, way)
    net, condition, uniforms = made(), torch.randn(5, 4, CHANNELS), torch.rand(5, 32)
    drawn = net.sample(condition, uniforms)
    for number in range(5):
        assert torch.equal(net.sample(condition[number, None], uniforms[number, None])[0], drawn[number])
    shared = net.sample(condition[:1], uniforms)
    assert torch.equal(shared, net.sample(condition[:1].expand(5, -1, -1), uniforms))
    assert torch.equal(shared[0], drawn[0]) and not torch.equal(shared, drawn)
    assert torch.equal(net.sample(condition, uniforms.t().contiguous().t()), drawn)


@pytest.mark.parametrize(("layers", "cycle", "reach"), [(1, 9, 2), (3, 9, 8), (4, 2, 7), (3, 1, 4)])
def test_a_position_depends_on_as_many_codes_before_it_as_the_net_says_and_on_no_other(layers, cycle, reach):
    net, length, embedded = WaveNet(nn.Embedding(CODES, 16), CHANNELS, 8, layers, cycle), 12, []
    net.embedding.register_forward_hook(lambda *called: embedded.append(called[2]))
    logits = net(torch.randint(CODES, (1, length)), torch.randn(1, 3, CHANNELS))[0]
    weights = torch.randn(CODES)  # the sum of all logits might depend on less
    rows = [torch.autograd.grad(logit @ weights, embedded[0], retain_graph=True)[0] for logit in logits]
    back = torch.arange(length)[:, None] - torch.arange(length)
    assert torch.equal(torch.cat(rows).abs().sum(-1) > 0, (back > 0) & (back <= reach))
    assert net.receptive_field == reach


def test_each_condition_is_told_to_its_own_positions_first():
    net, condition = made(), torch.randn(1, 3, CHANNELS, requires_grad=True)
    logits = net(torch.randint(CODES, (1, 12)), condition)[0]
    for position, first in ((3, 0), (4, 1), (11, 2)):
        told = torch.autograd.grad(logits[position].sum(), condition, retain_graph=True)[0].abs().sum((0, 2)) > 0
        assert told[first] and not told[first + 1 :].any()


@pytest.mark.parametrize("name", [name for name, _ in made().named_parameters()])
def test_new_weights_count_at_once_however_they_came(name, monkeypatch):
    net, condition, uniforms = made(), torch.randn(4, 5, CHANNELS), torch.rand(4, 20)
    before, parameter = net.sample(condition, uniforms), net.get_parameter(name)
    parameter.data.add_(2 * torch.randn_like(parameter))  # past autograd: not even its version counter tells
    compiled = net.sample(condition, uniforms)
    only(monkeypatch, "torch")
    assert torch.equal(compiled, net.sample(condition, uniforms))
    assert not torch.equal(compiled, before)


@pytest.mark.parametrize("case", ["many", "double", "odd codes", "odd condition"])
def test_what_the_compiled_loop_is_not_made_for_is_drawn_by_torch(case, monkeypatch):
    monkeypatch.setattr(wavenet_kernel, "sample", lambda *_: pytest.fail("the compiled kernel was used"))
    net, batch = made(), wavenet.MAX_COMPILED_BATCH + 1 if case == "many" else 1
    condition, uniforms = torch.randn(batch, 1, CHANNELS), torch.rand(batch, 3)
    if case == "double":
        net, condition = net.double(), condition.double()
    if case == "odd codes":
        net = WaveNet(nn.Embedding(CODES, 12), CHANNELS, 8, 2)
    if case == "odd condition":
        net, condition = WaveNet(nn.Embedding(CODES, 16), 6, 8, 2), condition[..., :6]
    assert net.sample(condition, uniforms).shape == uniforms.shape


def test_without_numba_the_codes_are_the_same(monkeypatch):
    net, condition, uniforms = made(), torch.randn(2, 1, CHANNELS), torch.rand(2, 20)
    expected = net.sample(condition, uniforms)
    monkeypatch.setitem(sys.modules, "numba", None)  # what import then raises is an ImportError
    monkeypatch.delitem(sys.modules, "worldmodel.models.kernels.wavenet")
    sampling.load_kernel.cache_clear()
    assert sampling.load_kernel("wavenet") is None
    assert torch.equal(net.sample(condition, uniforms), expected)
    sampling.load_kernel.cache_clear()


def test_what_does_not_fit_is_refused():
    net, condition = made(), torch.randn(2, 3, CHANNELS)
    for call in (
        lambda: net(torch.zeros(2, 10, dtype=torch.int64), condition),
        lambda: net.sample(condition, torch.rand(2, 10)),
    ):
        with pytest.raises(ValueError, match="10 positions must be a multiple of the 3 conditions"):
            call()
    with pytest.raises(ValueError, match="a condition for each of 5 sequences, or one for all, got 2"):
        net.sample(condition, torch.rand(5, 6))
    for layers, cycle in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match=f"a cycle of 1 or more, got {layers} and {cycle}"):
            WaveNet(nn.Embedding(CODES, 8), CHANNELS, 8, layers, cycle)
    with pytest.raises(ValueError, match="must be pixelcnn, wavefront or wavenet, got transformer"):
        build_autoregressive("transformer", nn.Embedding(CODES, 8), CHANNELS, 8, 2)
    with pytest.raises(ValueError, match=r"model\.net must be pixelcnn or wavefront, got wavenet"):
        GlobalCodesConfig(net="wavenet")


LINE = SpatialPriorConfig(
    net="wavenet", codebook_size=CODES, grid=(12,), code_dim=16, hidden_channels=8, num_layers=4, dilation_cycle=2
)


def test_a_prior_over_lines_draws_what_it_expects_at_any_length():
    prior = SpatialPrior(replace(LINE, num_classes=3)).eval()
    assert prior.net.dilations == (1, 2, 1, 2)
    labels, uniforms = torch.tensor([0, 2, 2]), torch.rand(3, 31)
    drawn = prior.sample(labels, uniforms)
    condition = (prior.position + prior.label(labels)[:, None]).detach()  # (B, 1, hidden)
    assert torch.equal(drawn, sample_without_cache(prior.net, condition, uniforms))
    assert torch.equal(drawn[:, :12], prior.sample(labels, uniforms[:, :12])), "where a line ends tells it nothing"
    assert not torch.equal(drawn, prior.sample(2 - labels, uniforms))


def test_the_loss_of_lines_is_the_nats_of_their_codes_and_bits_are_those_over_ln_2():
    prior = SpatialPrior(LINE)
    for draws in (torch.randint(CODES, (3, 12)), torch.randint(CODES, (3, 12))[:, None].expand(-1, 2, -1)):
        codes = draws if draws.ndim == 2 else draws[:, 0]  # both draws are the same
        loss, metrics = prior(CodeBatch(draws, torch.zeros(3, dtype=torch.int64)))
        logits = prior.net(codes, prior.position[None])
        assert loss.item() == pytest.approx(F.cross_entropy(logits.flatten(0, 1), codes.flatten()).item(), rel=1e-5)
        bits = prior.bits_per_code(CodeBatch(codes, torch.arange(3)))
        assert bits.shape == (3,)
        assert bits.mean().item() == pytest.approx(loss.item() / math.log(2), rel=1e-5)
        assert metrics["bits_per_code"].item() == pytest.approx(bits.mean().item(), rel=1e-5)


def test_dropout_of_lines_is_of_the_generator_and_of_training_alone():
    prior = SpatialPrior(replace(LINE, dropout=0.5), torch.randn(CODES, 16))
    batch = CodeBatch(torch.randint(CODES, (2, 12)), torch.zeros(2, dtype=torch.int64))
    first, again, other = (prior(batch, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert first == again != other
    assert prior.eval()(batch)[0] == prior(batch)[0]


def test_a_prior_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"model\.grid must be one number for --model\.net wavenet, got \[4, 6\]"):
        SpatialPrior(replace(LINE, grid=(4, 6)))
    with pytest.raises(ValueError, match=r"must be a height and a width for --model\.net pixelcnn, got \[12\]"):
        SpatialPrior(SpatialPriorConfig(grid=(12,)))
    with pytest.raises(ValueError, match=r"samples \(B, N\) codes .* got \(3, 7\) for 2 labels"):
        SpatialPrior(LINE).sample(torch.arange(2), torch.rand(3, 7))
    with pytest.raises(ValueError, match=r"samples \(B, N\) codes .* got \(2, 3, 7\) for 2 labels"):
        SpatialPrior(LINE).sample(torch.arange(2), torch.rand(2, 3, 7))
