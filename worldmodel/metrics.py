"""Metrics of VQ-VAEs and priors."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.baselines import Bigram, Unigram
from worldmodel.models.dynamics import Batch, Dynamics
from worldmodel.models.quantizers.interface import perplexity
from worldmodel.models.spatial_prior import CodeBatch, SpatialPrior
from worldmodel.models.vqvae import VQVAE


@torch.no_grad()
def vqvae_scores(network: VQVAE, frames: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Reconstruct frames (N, H, W, 3) uint8 and score the result.

    Returns:
        The reconstructions, and the scores: ``psnr`` (dB) and ``ssim``, both means over frames; ``nmse``,
        ``perplexity`` and ``codes_used`` over all frames; and ``bits_per_frame`` of codes stored without compression.
    """
    device = next(network.parameters()).device
    reconstructions, counts = [], torch.zeros((), device=device)
    for part in frames.split(64):
        reconstruction, quantized = network.reconstruct(part.to(device))
        reconstructions.append(reconstruction.cpu())
        counts = counts + quantized.counts
    result = torch.cat(reconstructions)
    return result, {
        "psnr": float(psnr(result, frames).mean()),
        "ssim": float(ssim(result, frames).mean()),
        "nmse": nmse(result, frames),
        "perplexity": float(perplexity(counts)),
        "codes_used": float((counts > 0).sum()),
        "bits_per_frame": float(counts.sum()) / len(frames) * math.log2(len(counts)),
    }


def psnr(frames: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each frame, two (N, H, W, 3) uint8 -> (N,); equal frames score 68."""
    error = (frames.float() - truth.float()).square().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / error.clamp_min(1e-2))


def nmse(frames: Tensor, truth: Tensor) -> float:
    """Squared error divided by the variance of the truth, over all values of two (N, H, W, 3) uint8 tensors."""
    parts = list(zip(frames.split(64), truth.split(64), strict=True))  # all at once would take too much memory as float
    error = sum((a.double() - b.double()).square().sum() for a, b in parts)
    mean = sum(b.double().sum() for _, b in parts) / truth.numel()
    variance = sum((b.double() - mean).square().sum() for _, b in parts)
    return float(error / variance) if variance else 0.0


def ssim(frames: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each frame, two (N, H, W, 3) uint8 -> (N,); 1 for equal frames.

    Wang et al. 2004, equation 13, without padding, with their Gaussian window of 11 pixels and standard deviation 1.5;
    the window is no larger than the image.
    """
    window = min(11, *frames.shape[1:3])
    offsets = torch.arange(window) - (window - 1) / 2
    weights = (-offsets.square() / (2 * 1.5**2)).exp()
    weights = weights / weights.sum()

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))

    values = []
    for a, b in zip(frames.split(64), truth.split(64), strict=True):
        x, y = (part.movedim(3, 1).flatten(0, 1)[:, None].float() for part in (a, b))  # (64·3, 1, H, W)
        mean_x, mean_y = blur(x), blur(y)
        variances = blur(x * x) - mean_x**2 + blur(y * y) - mean_y**2
        covariance = blur(x * y) - mean_x * mean_y
        numerator = (2 * mean_x * mean_y + 2.55**2) * (2 * covariance + 7.65**2)
        result = numerator / ((mean_x**2 + mean_y**2 + 2.55**2) * (variances + 7.65**2))
        values.append(result.mean((1, 2, 3)).unflatten(0, (-1, a.shape[3])).mean(1))
    return torch.cat(values)


@torch.no_grad()
def dynamics_scores(network: Dynamics, batches: list[Batch]) -> dict[str, float]:
    """Return the mean metrics of a dynamics model, and its bits per code under the actions of other segments."""
    device = next(network.parameters()).device
    rows = []
    for batch in batches:
        batch = Batch(*(part.to(device) for part in batch))
        _, metrics = network(batch)
        _, shuffled = network(shuffle_actions(batch))
        rows.append({**metrics, "bits_per_code_shuffled": shuffled["bits_per_code"]})
    return {name: float(torch.stack([row[name] for row in rows]).mean()) for name in rows[0]}


def shuffle_actions(batch: Batch) -> Batch:
    """Give each segment of a batch the actions of the previous segment; frames that these don't reach are not valid."""
    reached = batch.step_valid.roll(1, 0)
    frame_valid = torch.cat([batch.frame_valid[:, :1], batch.frame_valid[:, 1:] & reached], 1)
    return batch._replace(
        actions=batch.actions.roll(1, 0), frame_valid=frame_valid, step_valid=batch.step_valid & reached
    )


@torch.no_grad()
def frame_bits_per_code(network: Dynamics, codes: Tensor, actions: Tensor, steps: Tensor | None = None) -> Tensor:
    """Return the bits per code of all frames but the first: codes (B, T, H, W), actions (B, T-1) -> (B, T-1).

    Args:
        steps: (B, Q) int64, the steps t whose frame t+1 is scored, (B, T-1) -> (B, Q); all by default.
    """
    nats, _ = network.score(codes, codes[:, :-1], actions, steps)
    return nats / math.log(2)


@torch.no_grad()
def spatial_scores(network: SpatialPrior, codes: Tensor, labels: Tensor, unigram: Unigram) -> dict[str, float]:
    """Score image codes (N, H, W) in bits per code: by a spatial prior, a unigram, and the prior with wrong classes."""
    device = next(network.parameters()).device
    pairs = zip(codes.split(32), labels.split(32), strict=True)
    parts = [CodeBatch(*(part.to(device) for part in pair)) for pair in pairs]
    scores = {
        "bits_per_code": torch.cat([network.bits_per_code(part) for part in parts]),
        "bits_per_code_unigram": unigram.bits(codes),
    }
    if classes := network.config.num_classes:
        wrong = [part._replace(labels=(part.labels + 1) % classes) for part in parts]
        scores["bits_per_code_wrong_class"] = torch.cat([network.bits_per_code(part) for part in wrong])
    return {name: float(values.mean()) for name, values in scores.items()}


@torch.no_grad()
def sequence_scores(network: SpatialPrior, codes: Tensor, unigram: Unigram, bigram: Bigram) -> dict[str, float]:
    """Score code sequences (B, N) in bits per code: by a prior, a unigram and a bigram."""
    batch = CodeBatch(codes, torch.zeros(len(codes), dtype=torch.int64))
    device = next(network.parameters()).device
    return {
        "bits_per_code": float(network.bits_per_code(CodeBatch(*(part.to(device) for part in batch))).mean()),
        "bits_per_code_unigram": -float(unigram.probabilities[codes].log2().mean()),
        "bits_per_code_bigram": float(bigram.bits(codes).mean()),
    }
