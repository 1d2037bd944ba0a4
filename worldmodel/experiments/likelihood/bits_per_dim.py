"""The bounds of autoencoders on the likelihood of pictures, in bits per dimension, and what those leave out."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.episodes.encode import encode
from worldmodel.episodes.segments import spread
from worldmodel.experiments.likelihood.architecture import Autoencoder, Bound
from worldmodel.experiments.likelihood.autoencoders import DiscreteAutoencoder
from worldmodel.experiments.likelihood.elbo import importance_bound
from worldmodel.images.dataset import Images
from worldmodel.metrics import Unigram, interval, vqvae_scores
from worldmodel.models.spatial_prior import CodeBatch, SpatialPrior

AT_ONCE = 256  # draws to decode
PRIOR_AT_ONCE = 32  # pictures
COUNTED = 10_000  # pictures whose codes a unigram prior counts


def of_codes(network: DiscreteAutoencoder, found: Images, frames: Tensor, prior: SpatialPrior | None) -> dict:
    """The bounds of a VQ-VAE under each prior, and how well it draws the pictures again."""
    bound, bits = bounds(network, frames), frames[0].numel()
    size = network.config.quantizer.codes
    seen = found.learnt.read(spread(len(found.learnt), COUNTED))
    codes, before = (torch.from_numpy(encode(network, part).astype(np.int64)) for part in (frames.numpy(), seen))
    nats = codes[0].numel() * math.log(2)  # of one bit per code
    rates = {"uniform": bound.rate, "unigram": Unigram(before, size).bits(codes) * nats}
    if prior:
        rates["learnt"] = told_no_class(prior, codes) * nats
    quality = vqvae_scores(network, frames)[1]
    return {
        "codes": {"latents": codes[0].numel(), "K": size, "D": network.config.quantizer.dim},
        "bounds": [row(bits, name, bound.distortion, rate, bound.distortion + rate) for name, rate in rates.items()],
        "reconstruction": {name: quality[name] for name in ("psnr", "nmse", "perplexity", "codes_used")},
    }


def told_no_class(prior: SpatialPrior, codes: Tensor) -> Tensor:
    """Bits per code of (N, H, W) codes, (N,); one that knows classes counts as the mixture of what it says of each."""
    found, place = [], next(prior.parameters()).device
    for part in codes.to(place).split(PRIOR_AT_ONCE):
        classes = [torch.full((len(part),), label, device=place) for label in range(prior.config.classes or 1)]
        bits = torch.stack([prior.bits(CodeBatch(part, label)) for label in classes], 1).double() * part[0].numel()
        found.append(-importance_bound(-bits * math.log(2)).cpu() / math.log(2) / part[0].numel())
    return torch.cat(found)


def of_draws(network: Autoencoder, frames: Tensor, samples: int, prior: str) -> list[dict]:
    """The bounds of a variational autoencoder: by single draws, and by ``samples`` of them together."""
    bound, bits = bounds(network, frames, samples), frames[0].numel()
    single = row(bits, prior, bound.distortion, bound.rate, bound.distortion + bound.rate)
    return [{**single, "samples": 1}, {"prior": prior, "bits_per_dim": _bits(bound.joint, bits), "samples": samples}]


@torch.no_grad()
def left_out(network: DiscreteAutoencoder, frames: Tensor, probes: int, seed: int = 0) -> dict:
    """What the bound of a VQ-VAE leaves out where it takes p(x | z) of the encoder's codes for all (section 3.2).

    In one latent of a picture at a time, all K codes are summed over instead, as log p(x) does for all latents at once.

    Returns:
        ``bits``: what that adds to log p(x | z) of a picture. ``encoder_best``: how often no other code is likelier
        than the encoder's. ``bits_per_dim``: the first for all latents, as if they did not depend on each other.
    """
    random, gains, best = np.random.default_rng(seed), [], []
    for _ in range(probes):
        frame = on_its_device(network, frames[random.integers(len(frames))][None])
        codes = network.encode(frame)
        place = int(random.integers(codes[0].numel()))
        nats = network.one_latent(frame, codes, place)[0].cpu()  # (K,)
        own = nats[codes.flatten()[place]]
        gains.append((nats.logsumexp(0) - own) / math.log(2))
        best.append(own >= nats.max())
    gain = torch.stack(gains)
    return {
        "probes": probes,
        "bits": interval(gain),
        "encoder_best": float(torch.stack(best).float().mean()),
        "bits_per_dim": float(gain.mean()) * codes[0].numel() / frames[0].numel(),
    }


@torch.no_grad()
def bounds(network: Autoencoder, frames: Tensor, samples: int = 1) -> Bound:
    """The bounds of pictures (B, H, W, C) uint8, in parts that fit the memory; the same draws every time."""
    generator = torch.Generator(next(network.parameters()).device).manual_seed(0)
    parts = frames.split(max(1, AT_ONCE // samples))
    found = [network.bound(on_its_device(network, part), samples, generator) for part in parts]
    return Bound(*(torch.cat(column).double().cpu() for column in zip(*found, strict=True)))


def row(size: int, prior: str, distortion: Tensor, rate: Tensor, total: Tensor) -> dict:
    """A bound as it is reported, from nats (B,) of pictures of so many dimensions."""
    parts = {"distortion": distortion, "rate": rate, "bits_per_dim": total}
    return {"prior": prior, **{name: _bits(part, size) for name, part in parts.items()}}


def _bits(nats: Tensor, size: int) -> dict[str, float]:
    return interval(nats / (size * math.log(2)))


def on_its_device(network: nn.Module, frames: Tensor) -> Tensor:
    """Pictures where a network can take them."""
    return frames.to(next(network.parameters()).device)
