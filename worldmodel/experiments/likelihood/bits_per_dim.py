"""Bits per dimension of images: bounds of every autoencoder, and of codes under a prior."""

import math
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel import checkpoint, tensor_io
from worldmodel.baselines import Unigram
from worldmodel.episodes.encode import encode_frames
from worldmodel.experiments.likelihood.autoencoders import AnyAutoencoder, Bound, DiscreteAutoencoder
from worldmodel.experiments.likelihood.elbo import importance_bound
from worldmodel.images.dataset import ImageDataset, read_evenly
from worldmodel.metrics import vqvae_scores
from worldmodel.models.spatial_prior import CodeBatch, SpatialPrior
from worldmodel.models.vqvae import VQVAE
from worldmodel.stats import bootstrap_interval

DECODE_BATCH_SIZE = 256  # latent samples decoded together
PRIOR_BATCH_SIZE = 32  # images
MAX_UNIGRAM_IMAGES = 10_000  # training images whose codes a unigram prior counts


def load_prior(prior: Path, run: Path) -> SpatialPrior:
    """Load a spatial prior and check that it predicts the codes of this run."""
    if tensor_io.digest(prior / "vqvae") != tensor_io.digest(run):
        raise ValueError(f"--prior {prior} predicts the codes of another VQ-VAE than {run}; train one on those")
    return checkpoint.load_spatial_prior(prior)


def evaluate_discrete(
    network: DiscreteAutoencoder, dataset: ImageDataset, frames: Tensor, prior: SpatialPrior | None
) -> dict:
    """Return the bounds of a VQ-VAE under each prior, and its reconstruction scores."""
    bound, dimensions = compute_bounds(network, frames), frames[0].numel()
    size, vqvae = network.config.quantizer.codebook_size, cast(VQVAE, network)  # which has the same methods
    train_frames = read_evenly(dataset.train, MAX_UNIGRAM_IMAGES)
    codes, train_codes = (
        torch.from_numpy(encode_frames(vqvae, part.numpy()).astype(np.int64)) for part in (frames, train_frames)
    )
    nats = codes[0].numel() * math.log(2)  # per image, of one bit per code
    rates = {"uniform": bound.rate, "unigram": Unigram(train_codes, size).bits(codes) * nats}
    if prior:
        rates["learned"] = unconditional_bits_per_code(prior, codes) * nats
    quality = vqvae_scores(vqvae, frames)[1]
    return {
        "codes": {
            "codes_per_image": codes[0].numel(),
            "codebook_size": size,
            "code_dim": network.config.quantizer.code_dim,
        },
        "bounds": [
            bound_row(dimensions, name, Bound(bound.distortion, rate, bound.distortion + rate))
            for name, rate in rates.items()
        ],
        "reconstruction": {name: quality[name] for name in ("psnr", "nmse", "perplexity", "codes_used")},
    }


def unconditional_bits_per_code(prior: SpatialPrior, codes: Tensor) -> Tensor:
    """Return bits per code (N,) of codes (N, H, W); a class-conditional prior counts as a mixture over its classes."""
    rows, device, size = [], next(prior.parameters()).device, codes[0].numel()
    for part in codes.to(device).split(PRIOR_BATCH_SIZE):
        classes = [torch.full((len(part),), label, device=device) for label in range(prior.config.num_classes or 1)]
        bits = torch.stack([prior.bits_per_code(CodeBatch(part, label)) for label in classes], 1).double() * size
        rows.append(-importance_bound(-bits * math.log(2)).cpu() / math.log(2) / size)
    return torch.cat(rows)


def evaluate_variational(network: AnyAutoencoder, frames: Tensor, num_samples: int, prior: str) -> list[dict]:
    """Return the bounds of a variational autoencoder from single samples and from ``num_samples`` together."""
    bound, dimensions = compute_bounds(network, frames, num_samples), frames[0].numel()
    single = bound_row(dimensions, prior, bound._replace(joint=bound.distortion + bound.rate))
    joint = {"prior": prior, "bits_per_dim": _bits_per_dim(bound.joint, dimensions)}
    return [{**single, "num_samples": 1}, {**joint, "num_samples": num_samples}]


@torch.no_grad()
def evaluate_other_codes(network: DiscreteAutoencoder, frames: Tensor, probes: int, seed: int = 0) -> dict:
    """Estimate what the bound of a VQ-VAE misses by using p(x | z) of the encoder's codes only (section 3.2).

    For one random latent of an image at a time, all K codes are summed over, as log p(x) does for all latents at once.

    Returns:
        ``bits``: what this adds to log p(x | z) of an image. ``encoder_best``: fraction of probes in which no other
        code is more likely than the encoder's. ``bits_per_dim``: ``bits`` summed over all latents as if independent.
    """
    random, gains, best = np.random.default_rng(seed), [], []
    for _ in range(probes):
        frame = to_device_of(network, frames[random.integers(len(frames))][None])
        codes = network.encode(frame)
        position = int(random.integers(codes[0].numel()))
        nats = network.log_likelihood_of_each_code(frame, codes, position)[0].cpu()  # (K,)
        own = nats[codes.flatten()[position]]
        gains.append((nats.logsumexp(0) - own) / math.log(2))
        best.append(own >= nats.max())
    gain = torch.stack(gains)
    return {
        "probes": probes,
        "bits": bootstrap_interval(gain),
        "encoder_best": float(torch.stack(best).float().mean()),
        "bits_per_dim": float(gain.mean()) * codes[0].numel() / frames[0].numel(),
    }


@torch.no_grad()
def compute_bounds(network: AnyAutoencoder, frames: Tensor, num_samples: int = 1) -> Bound:
    """Return the bounds of images (B, H, W, C) uint8, computed in chunks with fixed random numbers."""
    generator = torch.Generator(next(network.parameters()).device).manual_seed(0)
    parts = frames.split(max(1, DECODE_BATCH_SIZE // num_samples))
    bounds = [network.bound(to_device_of(network, part), num_samples, generator) for part in parts]
    return Bound(*(torch.cat(column).double().cpu() for column in zip(*bounds, strict=True)))


def bound_row(dimensions: int, prior: str, bound: Bound) -> dict:
    """Return the results of a bound in nats (B,) on images of this many dimensions."""
    parts = {"distortion": bound.distortion, "rate": bound.rate, "bits_per_dim": bound.joint}
    return {"prior": prior, **{name: _bits_per_dim(nats, dimensions) for name, nats in parts.items()}}


def _bits_per_dim(nats: Tensor, dimensions: int) -> dict[str, float]:
    return bootstrap_interval(nats / (dimensions * math.log(2)))


def to_device_of(network: nn.Module, frames: Tensor) -> Tensor:
    """Move images to the device of a network."""
    return frames.to(next(network.parameters()).device)
