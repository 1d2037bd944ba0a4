"""The gated PixelCNN sees all that comes before and nothing else; drawing with what is kept is drawing without."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.benchmarks.peers import sample_without_cache
from worldmodel.models.autoregressive.pixelcnn import PixelCNN
from worldmodel.models.autoregressive.wavefront import WavefrontNet
from worldmodel.models.config import SpatialPriorConfig
from worldmodel.models.spatial_prior import CodeBatch, SpatialPrior, nats_per_code

CODES, CHANNELS = 16, 12
SMALL = SpatialPriorConfig(hidden_channels=12, num_layers=3, dropout=0.1)
NETS = {
    "pixelcnn": lambda: PixelCNN(nn.Embedding(CODES, 8), CHANNELS, hidden_channels=8, num_layers=4),
    "pixelcnn of 5": lambda: PixelCNN(nn.Embedding(CODES, 8), CHANNELS, hidden_channels=8, num_layers=2, kernel_size=5),
    "wavefront": lambda: WavefrontNet(nn.Embedding(CODES, 8), CHANNELS, hidden_channels=8, num_layers=3),
}


@pytest.fixture(autouse=True)
def same_chance() -> None:
    torch.manual_seed(0)


def made(name: str) -> nn.Module:
    """A net whose codes depend on each other more than those of a fresh one."""
    net = NETS[name]().eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(1.5)
    return net


def seen(net: nn.Module, height: int, width: int) -> Tensor:
    """What the logits of each position depend on, (H·W, H·W) bool: row by row the positions, in columns the codes."""
    codes, embedded = torch.randint(CODES, (1, height, width)), []
    hook = net.embedding.register_forward_hook(lambda *called: embedded.append(called[2]))
    logits = net(codes, torch.randn(1, height, width, CHANNELS)).flatten(0, 2)  # (H·W, K)
    hook.remove()
    weights = torch.randn(CODES)  # the sum of all logits might depend on less
    rows = [torch.autograd.grad(logit @ weights, embedded[0], retain_graph=True)[0] for logit in logits]
    return torch.stack(rows).abs().sum((1, 4)).flatten(1) > 0


@pytest.mark.parametrize(("height", "width"), [(4, 6), (6, 4), (1, 5), (5, 1)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_position_depends_on_every_code_before_it_and_on_no_other(height, width, kernel):
    net = PixelCNN(nn.Embedding(CODES, 24), CHANNELS, hidden_channels=8, num_layers=6, kernel_size=kernel)
    before = torch.ones(height * width, height * width, dtype=torch.bool).tril(-1)
    assert torch.equal(seen(net, height, width), before)


def test_a_shallow_net_sees_as_far_as_its_kernels_reach():
    height, width, layers = 6, 9, 2
    found = seen(PixelCNN(nn.Embedding(CODES, 24), CHANNELS, hidden_channels=8, num_layers=layers), height, width)
    expected = torch.zeros_like(found)
    for place in range(height * width):
        row, column = divmod(place, width)
        for other in range(place):
            up, left = row - other // width, column - other % width
            expected[place, other] = up <= layers and -layers <= left <= layers
    assert torch.equal(found, expected)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 5, 7), (3, 7, 5), (2, 1, 6), (2, 6, 1)])
@pytest.mark.parametrize("name", NETS)
def test_codes_drawn_with_what_is_kept_are_those_of_full_passes(name, batch, height, width, temperature):
    net, condition = made(name), torch.randn(batch, height, width, CHANNELS)
    uniforms = torch.rand(batch, height, width)
    codes = sample_without_cache(net, condition, uniforms, temperature)
    assert torch.equal(net.sample(condition, uniforms, temperature), codes)
    assert codes.unique().numel() > 1


@pytest.mark.parametrize("name", NETS)
def test_two_grids_at_once_are_each_what_they_are_alone(name):
    net, condition = made(name), torch.randn(2, 4, 6, CHANNELS)
    codes, uniforms = torch.randint(CODES, (2, 4, 6)), torch.rand(2, 4, 6)
    logits, drawn = net(codes, condition), net.sample(condition, uniforms)
    for number in range(2):
        one = slice(number, number + 1)
        assert torch.allclose(net(codes[one], condition[one]), logits[one], atol=1e-5)
        assert torch.equal(net.sample(condition[one], uniforms[one]), drawn[one])


def test_every_layer_is_told_the_condition_at_its_own_position():
    net = PixelCNN(nn.Embedding(CODES, 8), CHANNELS, hidden_channels=8, num_layers=3)
    condition = torch.randn(1, 4, 5, CHANNELS, requires_grad=True)
    logits = net(torch.randint(CODES, (1, 4, 5)), condition)
    told = torch.autograd.grad(logits[0, 2, 2].sum(), condition)[0].abs().sum(-1)[0] > 0
    assert told[2, 2] and told[1, 3] and told[2, 3] and not told[3].any(), "rows above and beside, none below"
    shared = torch.randn(1, 4, 5, CHANNELS)
    codes = torch.randint(CODES, (3, 4, 5))
    assert torch.allclose(net(codes, shared), net(codes, shared.expand(3, -1, -1, -1)), atol=1e-6)


def test_sizes_that_make_no_net_are_refused():
    for layers, kernel in ((1, 3), (4, 1), (4, 4)):
        with pytest.raises(ValueError, match=f"odd kernel of 3 or more, got {layers} and {kernel}"):
            PixelCNN(nn.Embedding(CODES, 8), CHANNELS, 8, layers, kernel)


def tiny(**more) -> SpatialPrior:
    return SpatialPrior(
        SpatialPriorConfig(codebook_size=CODES, grid=(4, 6), code_dim=8, hidden_channels=8, num_layers=3, **more)
    )


@pytest.mark.parametrize("net", ["pixelcnn", "wavefront"])
def test_the_class_changes_what_is_expected(net):
    prior = tiny(net=net, num_classes=3).eval()
    codes, labels = torch.randint(CODES, (2, 4, 6)), torch.tensor([0, 2])
    bits = prior.bits_per_code(CodeBatch(codes, labels))
    assert not torch.isclose(bits, prior.bits_per_code(CodeBatch(codes, 2 - labels))).any()
    uniforms = torch.rand(1, 4, 6).expand(3, -1, -1)
    drawn = prior.sample(torch.arange(3), uniforms)
    assert drawn.unique(dim=0).shape == (3, 4, 6)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\)"):
        prior.sample(torch.tensor([3]), uniforms[:1])
    with pytest.raises(ValueError, match=r"\(B, 4, 6\) codes .* got \(3, 4, 6\) for 2 labels"):
        prior.sample(torch.arange(2), uniforms)


def test_a_prior_without_classes_does_not_look_at_labels():
    prior, codes = tiny().eval(), torch.randint(CODES, (2, 4, 6))
    assert torch.equal(
        prior.bits_per_code(CodeBatch(codes, torch.tensor([0, 0]))), prior.bits_per_code(CodeBatch(codes, labels_of(2)))
    )


def labels_of(count: int) -> Tensor:
    return torch.arange(count) + 7


def test_the_loss_is_the_nats_of_the_codes_and_bits_are_those_over_ln_2():
    prior, codes = tiny(num_classes=2), torch.randint(CODES, (3, 4, 6))
    batch = CodeBatch(codes, torch.tensor([0, 1, 1]))
    loss, metrics = prior(batch)
    logits = prior.net(codes, prior.position + prior.label(batch.labels)[:, None, None])
    assert loss.item() == pytest.approx(F.cross_entropy(logits.flatten(0, 2), codes.flatten()).item(), rel=1e-5)
    assert metrics["bits_per_code"].item() == pytest.approx(loss.item() / math.log(2), rel=1e-5)
    assert prior.bits_per_code(batch).mean().item() == pytest.approx(metrics["bits_per_code"].item(), rel=1e-5)


def test_several_draws_are_learnt_as_the_average_of_their_one_hot_vectors():
    logits, draws = torch.randn(2, 4, 6, CODES), torch.randint(CODES, (2, 5, 4, 6))
    average = F.one_hot(draws, CODES).float().mean(1)  # (B, H, W, K)
    by_hand = -(average * logits.log_softmax(-1)).sum(-1)
    assert torch.allclose(nats_per_code(logits, draws), by_hand, atol=1e-5)


def test_of_several_draws_one_is_what_came_before():
    prior, draws = tiny().eval(), torch.randint(CODES, (1, 3, 4, 6))
    possible = []
    for known in draws[0]:
        logits = prior.net(known[None], prior.position[None])
        possible.append(nats_per_code(logits, draws).mean().item())
    found = set()
    for seed in range(20):
        loss, _ = prior(CodeBatch(draws, torch.zeros(1, dtype=torch.int64)), torch.Generator().manual_seed(seed))
        found.add(min(range(3), key=lambda number: abs(possible[number] - loss.item())))
        assert min(abs(value - loss.item()) for value in possible) < 1e-5
    assert found == {0, 1, 2}


def test_dropout_is_of_the_generator_and_of_training_alone():
    prior, codes = tiny(dropout=0.5), torch.randint(CODES, (2, 4, 6))
    batch = CodeBatch(codes, torch.zeros(2, dtype=torch.int64))
    first, again, other = (prior(batch, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert first == again != other
    assert prior.eval()(batch)[0] == prior(batch)[0]
    with pytest.raises(ValueError, match=r"for --model\.net pixelcnn or wavenet, got 0\.5 with wavefront"):
        tiny(net="wavefront", dropout=0.5)
