"""Numbers that say how good a VQ-VAE or a prior is."""

import math

import torch
from torch import Tensor

from worldmodel.core.dynamics import Batch, Dynamics
from worldmodel.core.quantizer import perplexity
from worldmodel.core.vqvae import VQVAE


@torch.no_grad()
def vqvae_scores(network: VQVAE, frames: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Reconstruct frames (N, H, W, 3) uint8 and say how well.

    Returns:
        The reconstructions, and ``psnr`` (dB, the mean over frames), ``perplexity`` and ``codes_used`` of all.
    """
    device = next(network.parameters()).device
    reconstructions, counts = [], 0
    for part in frames.split(64):
        reconstruction, quantized = network.reconstruct(part.to(device))
        reconstructions.append(reconstruction.cpu())
        counts = counts + quantized.counts
    result = torch.cat(reconstructions)
    return result, {
        "psnr": float(psnr(result, frames).mean()),
        "perplexity": float(perplexity(counts)),
        "codes_used": float((counts > 0).sum()),
    }


def psnr(frames: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each frame, (N, H, W, 3) uint8 twice -> (N,); equal frames score 68."""
    error = (frames.float() - truth.float()).square().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / error.clamp_min(1e-2))


@torch.no_grad()
def prior_scores(network: Dynamics, batches: list[Batch]) -> dict[str, float]:
    """Bits per code and the errors of the heads, and bits per code when told the actions of another stretch."""
    device = next(network.parameters()).device
    rows = []
    for batch in batches:
        batch = Batch(*(part.to(device) for part in batch))
        _, metrics = network(batch)
        _, shuffled = network(shuffle_actions(batch))
        rows.append({**metrics, "bits_per_code_shuffled": shuffled["bits_per_code"]})
    return {name: float(torch.stack([row[name] for row in rows]).mean()) for name in rows[0]}


def shuffle_actions(batch: Batch) -> Batch:
    """The same frames, told the actions of the next stretch of the batch."""
    return batch._replace(actions=batch.actions.roll(1, 0))


@torch.no_grad()
def bits(network: Dynamics, batch: Batch) -> Tensor:
    """Bits per code of every predicted frame, (B, T-1)."""
    nats, _ = network.score(batch.codes, batch.codes[:, :-1], batch.actions)
    return nats / math.log(2)


class Unigram:
    """Every code has its share of the codes in (N, H, W), each counted once more than it was seen."""

    def __init__(self, codes: Tensor, size: int) -> None:
        counts = torch.bincount(codes.flatten(), minlength=size).double() + 1
        self.probabilities = counts / counts.sum()

    def bits(self, codes: Tensor) -> Tensor:
        """Bits per code of every predicted frame of (B, T, H, W): (B, T-1)."""
        return -self.probabilities[codes[:, 1:]].log2().mean((2, 3))


class CopyLast:
    """A code stays as it was in the frame before, or flips, with a learnt probability, to any code as a unigram.

    Args:
        codes: (B, T, H, W) to learn the flip probability from, by expectation-maximisation.
    """

    def __init__(self, codes: Tensor, unigram: Unigram, steps: int = 50) -> None:
        self.unigram, self.flip = unigram, 0.5
        chance = unigram.probabilities[codes[:, 1:]]
        same = (codes[:, 1:] == codes[:, :-1]).double()
        for _ in range(steps):
            flipped = self.flip * chance
            self.flip = float((flipped / (flipped + (1 - self.flip) * same)).mean())

    def bits(self, codes: Tensor) -> Tensor:
        """Bits per code of every predicted frame of (B, T, H, W): (B, T-1)."""
        same = (codes[:, 1:] == codes[:, :-1]).double()
        mixture = self.flip * self.unigram.probabilities[codes[:, 1:]] + (1 - self.flip) * same
        return -mixture.log2().mean((2, 3))
