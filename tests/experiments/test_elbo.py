"""Bounds on the likelihood of pictures: exact where everything can be counted or integrated."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from worldmodel.experiments.likelihood.autoencoders import build_autoencoder
from worldmodel.experiments.likelihood.config import AutoencoderConfig
from worldmodel.experiments.likelihood.elbo import (
    categorical_kl,
    gaussian_kl,
    importance_bound,
    leave_one_out_bounds,
    vimco_objective,
)
from worldmodel.experiments.likelihood.pixel_likelihood import OUTPUTS_PER_CHANNEL, log_likelihood, mode
from worldmodel.models.quantizers.config import QuantizerConfig

TINY = AutoencoderConfig(
    hidden_channels=8,
    residual_channels=8,
    num_residual_blocks=1,
    num_latents=3,
    num_samples=4,
    quantizer=QuantizerConfig(codebook_size=3, code_dim=4),
)
LOG_2 = math.log(2)


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def pictures(count: int = 5, size: int = 4, kinds: int = 0) -> torch.Tensor:
    """Noise (count, size, size, 3) uint8; or a few different pictures with a little noise on them, over and over."""
    if not kinds:
        return torch.randint(0, 256, (count, size, size, 3), generator=seeded()).to(torch.uint8)
    faint = torch.randint(-3, 4, (count, size, size, 3), generator=seeded())
    return (pictures(kinds, size).repeat(count // kinds, 1, 1, 1).int() + faint).clamp(0, 255).to(torch.uint8)


def all_codes(latents: int, codes: int) -> torch.Tensor:
    """Every assignment of so many latents at one position, (codes^latents, latents, 1)."""
    return torch.tensor(list(itertools.product(range(codes), repeat=latents)))[:, :, None]


def trained(config: AutoencoderConfig, data: torch.Tensor, steps: int, rate: float = 1e-2) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_autoencoder(config)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for step in range(steps):
        loss, _ = model(data, seeded(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


# ---- p(x | z)


@pytest.mark.parametrize("likelihood", OUTPUTS_PER_CHANNEL)
@pytest.mark.parametrize("spread", [0.5, 5.0, 50.0])
def test_the_likelihoods_of_the_256_values_add_up_to_one(likelihood, spread):
    torch.manual_seed(0)
    outputs = spread * torch.randn(20, OUTPUTS_PER_CHANNEL[likelihood], 1, 1)
    values = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    nats = torch.stack([log_likelihood(row.expand(256, -1, -1, -1), values, likelihood) for row in outputs[:, None]])
    assert torch.allclose(nats.double().logsumexp(1), torch.zeros(20, dtype=torch.float64), atol=2e-5)
    best = mode(outputs, likelihood).flatten()
    if likelihood == "softmax":
        assert torch.equal(best.long(), nats.argmax(1))
    else:  # the value at the mean, which next to 0 and 255 has less than all that lies beyond
        inside = (best > 0) & (best < 255)
        assert torch.equal(nats[inside, 1:-1].argmax(1) + 1, best[inside].long())


def test_a_logistic_is_the_difference_of_its_cumulative_function():
    mean, log_scale = 0.1, -1.5
    outputs = torch.tensor([mean, log_scale]).view(1, 2, 1, 1).expand(256, -1, -1, -1)
    values = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    edges = torch.cat([torch.tensor([-math.inf]), torch.arange(255) + 0.5, torch.tensor([math.inf])]).double()
    below = ((edges / 255 - 0.5 - mean) / math.exp(log_scale - 2)).sigmoid()
    assert torch.allclose(log_likelihood(outputs, values, "logistic").double(), below.diff().log(), atol=1e-4)


@pytest.mark.parametrize("likelihood", OUTPUTS_PER_CHANNEL)
def test_a_likelihood_is_a_sum_over_pixels_and_channels(likelihood):
    torch.manual_seed(0)
    outputs, shown = torch.randn(2, 3 * OUTPUTS_PER_CHANNEL[likelihood], 2, 2), pictures(2, 2)
    total = torch.zeros(2)
    for row, column, channel in itertools.product(range(2), range(2), range(3)):
        own = outputs.unflatten(1, (-1, 3))[:, :, channel, row, column, None, None]
        total += log_likelihood(own, shown[:, row, column, channel, None, None, None], likelihood)
    assert torch.allclose(log_likelihood(outputs, shown, likelihood), total, atol=1e-3)


def test_pictures_must_be_whole_numbers():
    with pytest.raises(ValueError, match=r"needs outputs \(1, 6, 4, 4\), got torch.float32 images"):
        log_likelihood(torch.zeros(1, 6, 4, 4), pictures(1).float(), "logistic")


# ---- the VQ-VAE


def test_the_bound_of_a_vqvae_is_what_enumeration_leaves_for_the_other_codes():
    torch.manual_seed(0)
    model, shown = build_autoencoder(TINY).eval(), pictures()
    every = all_codes(3, 3)  # (27, 3, 1)
    with torch.no_grad():
        nats = model.log_likelihood_of(shown, every.expand(len(shown), -1, -1, -1))  # (B, 27)
        bound, codes = model.bound(shown), model.encode(shown)
    own = (codes[:, None] == every).flatten(2).all(2)
    assert (own.sum(1) == 1).all()
    log_joint = nats - 3 * math.log(3)
    log_p, share = log_joint.logsumexp(1), log_joint.softmax(1)[own]  # of p(x) that the encoder's codes have
    assert torch.allclose(bound.distortion, -nats[own], rtol=1e-5)
    assert torch.allclose(bound.rate, torch.full((5,), 3 * math.log(3)))
    assert torch.allclose(bound.joint, bound.distortion + bound.rate)
    assert (-bound.joint <= log_p + 1e-3).all()
    assert torch.allclose(log_p + bound.joint, -share.log(), atol=1e-3)


def test_what_one_latent_leaves_out_is_what_enumeration_says():
    torch.manual_seed(0)
    model, shown = build_autoencoder(TINY).eval(), pictures()
    with torch.no_grad():
        codes = model.encode(shown)
        others = model.log_likelihood_of_each_code(shown, codes, position=1)  # (B, K)
    for number in range(3):
        changed = codes.clone()
        changed[:, 1] = number
        assert torch.allclose(others[:, number], model.log_likelihood_of(shown, changed[:, None])[:, 0], rtol=1e-5)


@pytest.mark.slow
def test_a_trained_decoder_leaves_other_codes_little_mass():
    shown = pictures(16, kinds=4)
    shares = {}
    for steps in (1, 150):
        model = trained(replace(TINY, hidden_channels=32), shown, steps)
        with torch.no_grad():
            every = all_codes(3, 3)
            nats = model.log_likelihood_of(shown, every.expand(len(shown), -1, -1, -1))
            own = (model.encode(shown)[:, None] == every).flatten(2).all(2)
            shares[steps] = nats.softmax(1)[own].mean().item()
    assert shares[1] < 0.5
    assert shares[150] > 0.99  # the claim of section 3.2: log p(x) is about log p(x | z) p(z)


def test_codes_go_to_the_grid_of_a_prior_and_back():
    torch.manual_seed(0)
    model, shown = build_autoencoder(TINY).eval(), pictures(size=12)
    codes = model.encode(shown)
    assert codes.shape == (5, 9, 3)
    assert torch.equal(model.decode(codes), model.reconstruct(shown)[0])
    with torch.no_grad():
        quantized = model.quantizer(model.encode_features(shown).unflatten(1, (-1, 3)))
        assert torch.equal(codes[:, 4], quantized.codes[:, 1, 1])  # the second of the second row
        assert torch.allclose(model._embed(codes), quantized.vectors.flatten(1, 2), atol=1e-6)
        direct = -model.log_likelihood(shown, quantized.vectors.flatten(1, 2)[:, None])[:, 0]
        assert torch.allclose(model.bound(shown).distortion, direct, rtol=1e-5)


# ---- VIMCO


def test_the_expected_gradient_of_vimco_is_that_of_the_bound():
    """Every pair and triple of draws of two latents with three codes, each weighted by its probability."""
    torch.manual_seed(0)
    posterior = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)  # logits of q(z | x)
    joint = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)  # log p(x, z), any number for each z
    for samples in (2, 3):
        log_q = posterior.log_softmax(1)
        every = torch.tensor(list(itertools.product(range(3), repeat=2 * samples))).view(-1, samples, 2)
        log_posterior = log_q[0, every[..., 0]] + log_q[1, every[..., 1]]  # (9^k, k)
        log_weights = joint[every[..., 0], every[..., 1]] - log_posterior
        chances = log_posterior.sum(1).exp()
        assert chances.sum().item() == pytest.approx(1)
        exact = torch.autograd.grad(
            (chances * importance_bound(log_weights)).sum(), (posterior, joint), retain_graph=True
        )
        estimated = torch.autograd.grad(
            (chances.detach() * vimco_objective(log_weights, log_posterior)).sum(), (posterior, joint)
        )
        for mine, truth in zip(estimated, exact, strict=True):
            assert torch.allclose(mine, truth, atol=1e-12)
            assert truth.abs().max() > 1e-2


def test_the_gradient_of_the_whole_model_is_that_of_the_bound():
    torch.manual_seed(0)
    config = replace(
        TINY, kind="vimco", num_latents=2, num_samples=2, quantizer=QuantizerConfig(codebook_size=2, code_dim=3)
    )
    model, shown = build_autoencoder(config), pictures(1)
    every = torch.tensor(list(itertools.product(range(2), repeat=4))).view(16, 2, 1, 1, 2)  # (16, N, 1, 1, k)
    expected, bound = 0, 0
    for codes in every:
        drawn = model.samples_from_codes(model.log_posterior(shown), codes[None])
        _, log_weights = model._bound(drawn, model.log_likelihood(shown, drawn.vectors))
        chance = drawn.log_posterior.sum().exp()
        bound = bound + chance * importance_bound(log_weights)
        expected = expected + chance.detach() * vimco_objective(log_weights, drawn.log_posterior)
    parameters = list(model.parameters())
    exact = torch.autograd.grad(bound.sum(), parameters, retain_graph=True)
    estimated = torch.autograd.grad(expected.sum(), parameters)
    for mine, truth in zip(estimated, exact, strict=True):
        assert torch.allclose(mine, truth, rtol=0, atol=2e-3 * truth.abs().max().item())  # float32


def test_draws_without_a_share_in_the_bound_need_no_gradient():
    torch.manual_seed(0)
    model, shown = build_autoencoder(replace(TINY, kind="vimco", num_samples=20)), pictures()
    model.codebook.data.mul_(300)  # so that draws differ
    parameters = list(model.parameters())
    loss, _ = model(shown, seeded())
    mine = torch.autograd.grad(loss, parameters)
    drawn = model.sample_posterior(shown, 20, seeded())
    _, log_weights = model._bound(drawn, model.log_likelihood(shown, drawn.vectors))
    assert log_weights.softmax(1).min() < 1e-6  # some have none
    whole = torch.autograd.grad(-vimco_objective(log_weights, drawn.log_posterior).mean() / 48, parameters)
    for part, truth in zip(mine, whole, strict=True):
        assert torch.allclose(part, truth, rtol=0, atol=1e-3 * truth.abs().max().item())


def test_what_is_left_without_each_draw_is_the_geometric_mean_of_the_others():
    weights = torch.tensor([[1.0, 2.0, 4.0]])
    expected = [math.log(total / 3) for total in (math.sqrt(8) + 2 + 4, 1 + 2 + 4, 1 + 2 + math.sqrt(2))]
    assert leave_one_out_bounds(weights.log())[0].tolist() == pytest.approx(expected)
    with pytest.raises(ValueError, match="needs 2 or more, got 1"):
        vimco_objective(torch.zeros(2, 1), torch.zeros(2, 1))


def test_a_vimco_bound_grows_with_its_draws_towards_what_enumeration_says():
    torch.manual_seed(0)
    model, shown = (
        build_autoencoder(replace(TINY, kind="vimco", quantizer=QuantizerConfig(codebook_size=2, code_dim=4))),
        pictures(2),
    )
    every = torch.tensor(list(itertools.product(range(2), repeat=3))).T.view(1, 3, 1, 1, 8).expand(2, -1, -1, -1, -1)
    with torch.no_grad():
        drawn = model.samples_from_codes(model.log_posterior(shown), every)
        nats = model.log_likelihood(shown, drawn.vectors)
        log_p = (nats + drawn.log_prior).logsumexp(1)
        share = drawn.log_posterior.exp()
        assert torch.allclose(share.sum(1), torch.ones(2))
        elbo = (share * (nats + drawn.log_prior - drawn.log_posterior)).sum(1)  # exactly
        assert torch.allclose((share * -nats).sum(1) + drawn.rate, -elbo, rtol=1e-5)
        many = model.bound(shown, 4096, seeded())
        eight = -model.bound(shown.repeat(512, 1, 1, 1), 8, seeded()).joint.view(512, 2).mean(0)
    assert torch.allclose(-many.distortion - many.rate, elbo, rtol=2e-3)
    assert torch.allclose(-many.joint, log_p, rtol=2e-3)
    assert (elbo < eight).all() and (eight < log_p).all()


# ---- the Gaussian


def test_the_rates_are_the_divergences_of_the_definition():
    torch.manual_seed(0)
    mean, log_variance = torch.randn(2, 4, 3, dtype=torch.float64)
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    standard = torch.distributions.Normal(torch.zeros_like(mean), 1)
    closed = torch.distributions.kl_divergence(normal, standard).sum(1)
    assert torch.allclose(gaussian_kl(mean, log_variance), closed)
    z = torch.linspace(-20, 20, 40_001, dtype=torch.float64)[:, None, None]
    difference = normal.log_prob(z) - standard.log_prob(z)
    assert torch.allclose(torch.trapezoid(normal.log_prob(z).exp() * difference, z, dim=0).sum(1), closed, atol=1e-6)

    log_q = torch.randn(4, 3, 5).log_softmax(2)
    uniform = torch.distributions.Categorical(torch.ones(3, 5) / 5)
    closed = torch.distributions.kl_divergence(torch.distributions.Categorical(logits=log_q), uniform).sum(1)
    assert torch.allclose(categorical_kl(log_q), closed, atol=1e-6)


@pytest.mark.slow
def test_the_bounds_of_a_vae_of_one_latent_lie_below_its_integral():
    shown = pictures(4, kinds=4)
    model = trained(replace(TINY, kind="vae", num_latents=1), shown, 60)
    z = torch.linspace(-8, 8, 4001)
    repeats = 500
    with torch.no_grad():
        nats = model.log_likelihood(shown, z.view(1, -1, 1, 1, 1).expand(4, -1, -1, -1, -1)).double()
        density = nats - 0.5 * z.double().square() - 0.5 * math.log(2 * math.pi)
        log_p = density.logsumexp(1) + math.log(16 / 4000)  # the integral, in steps
        bounds = [model.bound(shown.repeat(repeats, 1, 1, 1), number, seeded()) for number in (1, 8)]
        one, eight = (-bound.joint.view(repeats, 4).mean(0) for bound in bounds)
        elbo = -(bounds[1].distortion + bounds[1].rate).view(repeats, 4).mean(0)
        many = -model.bound(shown, 20_000, seeded()).joint
    noise = 4 * bounds[0].joint.view(repeats, 4).std(0) / repeats**0.5
    assert ((one - elbo).abs() < noise).all()  # one draw is the evidence lower bound
    assert (elbo < eight).all() and (eight < log_p + 1e-3).all()
    assert torch.allclose(many.double(), log_p, atol=0.02)
