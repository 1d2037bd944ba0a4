"""Gumbel-softmax and semantic hashing, worked by hand; and what every quantizer must do, whatever its kind."""

import math

import pytest
import torch
from torch.nn import functional as F

from worldmodel.models.config import VQVAEConfig
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.models.quantizers.kinds import Quantizer, build_quantizer
from worldmodel.models.quantizers.semantic_hashing import saturating_sigmoid
from worldmodel.models.vqvae import VQVAE

EVERY = {
    "loss": {"update": "loss"},
    "ema": {},
    "soft_em": {"update": "soft_em"},
    "gumbel": {"kind": "gumbel"},
    "semhash": {"kind": "semhash"},
}


def quantizer(name: str, codes: int = 16, dim: int = 6, **settings) -> Quantizer:
    """One of EVERY, past the data-dependent start of its codebook."""
    torch.manual_seed(0)
    made = build_quantizer(QuantizerConfig(codebook_size=codes, code_dim=dim, **{**EVERY[name], **settings}))
    if hasattr(made, "steps"):
        made.steps += 1
    return made


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_logits(made: Quantizer, bias: list[float]) -> Quantizer:
    """The same quantizer, with these logits for a vector of zeros."""
    made.logits.bias.data.copy_(torch.tensor(bias))
    return made


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("grid", [(5,), (3, 4), (2, 3, 4)], ids=str)
def test_evaluation_is_decode_after_encode(name, grid):
    made, z = quantizer(name).eval(), torch.randn(2, 6, *grid)
    result = made(z)
    assert result.vectors.shape == z.shape and result.codes.shape == (2, *grid)
    assert result.codes.dtype == torch.int64 and result.loss.shape == ()
    assert torch.equal(made.encode(z), result.codes)
    assert torch.allclose(made.decode(result.codes), result.vectors, atol=1e-6)
    assert torch.equal(result.counts, torch.bincount(result.codes.flatten(), minlength=16).float())


@pytest.mark.parametrize("name", EVERY)
def test_every_code_has_its_row_in_the_codebook(name):
    made = quantizer(name).eval()
    assert made.codebook.shape == (16, 6)
    assert torch.allclose(made.decode(torch.arange(16)[None])[0].T, made.codebook)


@pytest.mark.parametrize("name", EVERY)
def test_the_gradient_reaches_the_encoder_and_the_codebook(name):
    made, z = quantizer(name).train(), torch.randn(2, 6, 4, 4).requires_grad_()
    result = made(z, noise())
    (result.vectors.square().sum() + result.loss).backward()
    assert (z.grad.flatten(2).abs().sum((1, 2)) > 0).all()
    assert all(parameter.grad.abs().sum() > 0 for parameter in made.parameters())


@pytest.mark.parametrize("name", EVERY)
def test_the_same_noise_gives_the_same_result(name):
    z = torch.randn(2, 6, 4, 4)
    first, again, other = (quantizer(name).train()(z, noise(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.vectors, again.vectors)
    if name in ("soft_em", "gumbel", "semhash"):
        assert not torch.equal(first.vectors, other.vectors)


@pytest.mark.parametrize("name", EVERY)
def test_codes_are_those_of_evaluation_in_training_too(name):
    z = torch.randn(2, 6, 4, 4)
    trained, evaluated = quantizer(name).train()(z, noise()), quantizer(name).eval()(z)
    assert torch.equal(trained.codes, evaluated.codes)
    assert torch.equal(trained.counts, evaluated.counts)


@pytest.mark.parametrize("name", EVERY)
def test_everything_is_float32_under_autocast(name):
    made, z = quantizer(name).eval(), torch.randn(2, 6, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        result, codes, vectors = made(z), made.encode(z), made.decode(made.encode(z))
    assert torch.equal(codes, made.encode(z)) and torch.equal(result.codes, codes)
    assert result.vectors.dtype == vectors.dtype == torch.float32
    assert torch.allclose(result.vectors, vectors, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_a_wrong_input_is_refused(name):
    for z in (torch.zeros(2, 6), torch.zeros(1, 3, 4, 4), torch.zeros(1, 6, 4, 4, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"expects floating \(B, 6, \*grid\), got"):
            quantizer(name)(z)
        with pytest.raises(ValueError, match=r"expects floating \(B, 6, \*grid\), got"):
            quantizer(name).encode(z)
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantizer(name)(torch.full((1, 6, 3, 3), float("nan")))


@pytest.mark.parametrize("name", ["gumbel", "semhash"])
@pytest.mark.slow
def test_an_autoencoder_learns_with_it(name):
    torch.manual_seed(0)
    settings = QuantizerConfig(
        codebook_size=16, code_dim=8, **EVERY[name], **({"anneal_steps": 100} if name == "gumbel" else {})
    )
    network = VQVAE.from_config(VQVAEConfig(hidden_channels=16, residual_channels=8, quantizer=settings))
    colours = torch.randint(0, 256, (4, 1, 2, 3), dtype=torch.uint8)
    pictures = colours.expand(4, 20, 2, 3).repeat_interleave(10, 2)
    optimizer, errors = torch.optim.Adam(network.parameters(), 3e-3), []
    for step in range(200):
        loss, metrics = network(pictures, noise(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(metrics["reconstruction_error"]))
    network.eval()
    assert network(pictures)[1]["reconstruction_error"] < 0.3 * errors[0]


def test_the_codes_that_the_decoder_sees_are_drawn_from_the_softmax_at_any_temperature():
    for temperature in (5.0, 0.01):
        made = quantizer("gumbel", 3, 2, initial_temperature=temperature, min_temperature=0.01)
        vectors = with_logits(made, [0.0, 1.0, 2.0]).train()(torch.zeros(1, 2, 40_000), noise()).vectors[0].T
        distances = torch.cdist(vectors, made.codebook)
        assert distances.min(1).values.max() < 1e-3
        shares = torch.bincount(distances.argmin(1), minlength=3) / len(vectors)
        assert torch.allclose(shares, torch.tensor([0.0, 1.0, 2.0]).softmax(0), atol=0.01)


def test_without_noise_to_speak_of_gumbel_is_argmax():
    made, z = quantizer("gumbel"), torch.randn(2, 6, 4, 4)
    made.logits.weight.data.mul_(1e4)
    assert torch.allclose(made.train()(z, noise()).vectors, made.eval()(z).vectors, atol=1e-5)


def test_the_gradient_of_gumbel_is_that_of_softmax_of_logits_and_noise_over_temperature():
    made = with_logits(quantizer("gumbel", 3, 2, initial_temperature=2.0, kl_weight=0.0), [0.5, 0.0, -0.5]).train()
    made.steps.zero_()
    (made(torch.zeros(1, 2, 1), noise(4)).vectors.flatten() * torch.tensor([1.0, 3.0])).sum().backward()
    logits = torch.tensor([0.5, 0.0, -0.5], requires_grad=True)
    gumbel = -torch.log(-torch.log(torch.rand(3, generator=noise(4))))
    weights = ((logits.log_softmax(0) + gumbel) / 2).softmax(0)
    ((weights @ made.codebook.detach()) * torch.tensor([1.0, 3.0])).sum().backward()
    assert torch.allclose(made.logits.bias.grad, logits.grad, atol=1e-6)
    drawn = weights.argmax()
    assert made.codebook.grad[drawn].tolist() == [1.0, 3.0] and made.codebook.grad.abs().sum() == 4


def test_the_temperature_falls_in_equal_ratios_and_stays():
    made = quantizer("gumbel", initial_temperature=1.0, min_temperature=0.01, anneal_steps=4).train()
    made.steps.zero_()
    seen = []
    for _ in range(6):
        seen.append(float(made.temperature))
        made(torch.randn(1, 6, 2, 2), noise())
    assert seen == pytest.approx([1, 10**-0.5, 0.1, 10**-1.5, 0.01, 0.01])
    made.eval()(torch.randn(1, 6, 2, 2))
    assert made.steps == 6


def test_the_loss_of_gumbel_is_the_divergence_from_uniform():
    made = with_logits(quantizer("gumbel", 4, 2, kl_weight=0.5), [0.0, 0.0, 0.0, 0.0])
    assert made(torch.zeros(1, 2, 3, 3), noise()).loss.item() == pytest.approx(0, abs=1e-6)
    with_logits(made, [math.log(5), 0.0, 0.0, 0.0])  # 5/8 and three times 1/8
    nats = 5 / 8 * math.log(5 / 8 * 4) + 3 / 8 * math.log(1 / 8 * 4)
    assert made(torch.zeros(1, 2, 3, 3), noise()).loss.item() == pytest.approx(0.5 * nats)


def test_the_bits_of_semantic_hashing_are_the_code():
    made = with_logits(quantizer("semhash", 8, 2), [1.0, -1.0, 3.0]).eval()
    result = made(torch.zeros(1, 2, 1))
    assert result.codes.item() == 0b101  # the first bit is the lowest
    ones, zeros = (layer.weight.detach() for layer in (made.ones, made.zeros))
    expected = ones[:, 0] + zeros[:, 1] + ones[:, 2] + made.ones.bias + made.zeros.bias
    assert torch.allclose(result.vectors.flatten(), expected)
    assert result.loss == 0


def test_a_coin_for_each_example_says_whether_its_decoder_sees_bits_or_sigmoids():
    made = quantizer("semhash", noise_std=0.0).train()
    z = torch.randn(400, 6, 2, 2)
    flat = z.movedim(1, -1).reshape(-1, 6)
    logits = made.logits(flat)
    discrete, continuous = (
        made._vectors(bits).view(400, 4, 6) for bits in ((logits > 0).float(), saturating_sigmoid(logits))
    )
    seen = made(z, noise()).vectors.movedim(1, -1).reshape(400, 4, 6)
    is_discrete, is_continuous = (
        torch.isclose(seen, kind, atol=1e-5).all(2).all(1) for kind in (discrete, continuous)
    )  # of all positions of an example
    assert (is_discrete ^ is_continuous).all()
    assert 0.4 < is_discrete.float().mean() < 0.6
    for share in (0.0, 1.0):
        always = quantizer("semhash", noise_std=0.0, discrete_fraction=share).train()(z, noise()).vectors
        expected = (discrete if share else continuous).view(400, 2, 2, 6).movedim(-1, 1)
        assert torch.allclose(always, expected, atol=1e-5)


def test_the_bits_have_the_gradient_of_the_sigmoids():
    made = with_logits(quantizer("semhash", 8, 2, noise_std=0.0, discrete_fraction=1.0), [0.5, -0.2, 9.0]).train()
    made(torch.zeros(1, 2, 1), noise()).vectors.sum().backward()
    slope = made.ones.weight.sum(0) - made.zeros.weight.sum(0)
    expected = [1.2 * F.sigmoid(x) * (1 - F.sigmoid(x)) for x in torch.tensor([0.5, -0.2])]
    assert torch.allclose(made.logits.bias.grad[:2], slope[:2] * torch.stack(expected))
    assert made.logits.bias.grad[2] == 0, "saturated"


def test_the_noise_of_training_turns_bits_over():
    made = with_logits(quantizer("semhash", 2, 2, discrete_fraction=1.0, noise_std=2.0), [1.0]).train()
    vectors = made(torch.zeros(1, 2, 40_000), noise()).vectors[0].T
    share = torch.isclose(vectors, made.codebook[1], atol=1e-5).all(1).float().mean()
    assert share.item() == pytest.approx(0.5 * (1 + math.erf(0.5 / math.sqrt(2))), abs=0.01)  # P(1 + 2 ε > 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "semhash", "codebook_size": 500}, "must be a power of two for kind semhash, got 500; use 512"),
        ({"kind": "semhash", "codebook_size": 1}, "must be a power of two for kind semhash, got 1; use 2"),
        ({"kind": "gumbel", "num_samples": 5}, "quantizer.num_samples is a setting of kind nearest, got kind gumbel"),
        (
            {"noise_std": 0.5},
            "quantizer.noise_std is a setting of kind semhash, got kind nearest with noise_std 0.5; leave it out",
        ),
        (
            {"kind": "gumbel", "min_temperature": 2.0},
            "must not be above quantizer.initial_temperature, got 2.0 and 1.0",
        ),
        ({"kind": "semhash", "discrete_fraction": 1.5}, r"quantizer.discrete_fraction must be in \[0, 1\], got 1.5"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        QuantizerConfig(**settings)
