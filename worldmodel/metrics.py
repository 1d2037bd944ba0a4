"""Numbers that say how good a VQ-VAE or a prior is."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.models.dynamics import Batch, Dynamics
from worldmodel.models.quantizers.nearest import perplexity
from worldmodel.models.spatial_prior import CodeBatch, SpatialPrior
from worldmodel.models.vqvae import VQVAE


@torch.no_grad()
def vqvae_scores(network: VQVAE, frames: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Reconstruct frames (N, H, W, 3) uint8 and say how well.

    Returns:
        The reconstructions, and ``psnr`` (dB) and ``ssim``, means over frames, ``nmse``, the squared error of all over
        their variance, ``perplexity`` and ``codes_used`` of all, and ``bits_per_frame`` that the codes take as they
        are.
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
        "ssim": float(ssim(result, frames).mean()),
        "nmse": nmse(result, frames),
        "perplexity": float(perplexity(counts)),
        "codes_used": float((counts > 0).sum()),
        "bits_per_frame": float(counts.sum()) / len(frames) * math.log2(len(counts)),
    }


def psnr(frames: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each frame, (N, H, W, 3) uint8 twice -> (N,); equal frames score 68."""
    error = (frames.float() - truth.float()).square().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / error.clamp_min(1e-2))


def nmse(frames: Tensor, truth: Tensor) -> float:
    """Squared error over the variance of the truth, both over all values, of (N, H, W, 3) uint8 twice."""
    parts = list(zip(frames.split(64), truth.split(64), strict=True))  # whole, they would be large as float
    error = sum((a.double() - b.double()).square().sum() for a, b in parts)
    mean = sum(b.double().sum() for _, b in parts) / truth.numel()
    spread = sum((b.double() - mean).square().sum() for _, b in parts)
    return float(error / spread) if spread else 0.0


def ssim(frames: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each frame, (N, H, W, 3) uint8 twice -> (N,), 1 for equal frames.

    Wang et al. 2004, equation 13, with their Gaussian window of 11 pixels and deviation 1.5, without padding; pictures
    that are smaller have a window of their side.
    """
    window = min(11, *frames.shape[1:3])
    places = torch.arange(window) - (window - 1) / 2
    weights = (-places.square() / (2 * 1.5**2)).exp()
    weights = weights / weights.sum()

    def blurred(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))

    values = []
    for a, b in zip(frames.split(64), truth.split(64), strict=True):
        x, y = (part.movedim(3, 1).flatten(0, 1)[:, None].float() for part in (a, b))  # (64·3, 1, H, W)
        mean_x, mean_y = blurred(x), blurred(y)
        variances = blurred(x * x) - mean_x**2 + blurred(y * y) - mean_y**2
        covariance = blurred(x * y) - mean_x * mean_y
        alike = (2 * mean_x * mean_y + 2.55**2) * (2 * covariance + 7.65**2)
        result = alike / ((mean_x**2 + mean_y**2 + 2.55**2) * (variances + 7.65**2))
        values.append(result.mean((1, 2, 3)).unflatten(0, (-1, a.shape[3])).mean(1))
    return torch.cat(values)


def interval(values: Tensor, groups: Tensor | None = None, resamples: int = 1000) -> dict[str, float]:
    """The mean of (N,) values, and the interval that holds 95 % of the means of bootstrap resamples.

    Args:
        groups: (N,) which of the values belong together, such as the clips of one episode: they are drawn or left out
            together. Each value is a group of its own if not given.
    """
    values = values.double()
    _, member = (torch.arange(len(values)) if groups is None else groups).unique(return_inverse=True)
    counts = torch.bincount(member).double()
    sums = torch.bincount(member, values)
    chosen = torch.randint(len(sums), (resamples, len(sums)), generator=torch.Generator().manual_seed(0))
    means = sums[chosen].sum(1) / counts[chosen].sum(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"mean": float(values.mean()), "low": low, "high": high}


def moments(values: Tensor) -> dict[str, float]:
    """Mean, standard deviation over N - 1, least and most of (N,) values; the deviation of one value is 0."""
    values = values.double()
    deviation = values.std() if len(values) > 1 else 0.0
    found = {"mean": values.mean(), "deviation": deviation, "least": values.min(), "most": values.max()}
    return {name: float(value) for name, value in found.items()}


def auroc(scores: Tensor, positive: Tensor) -> float:
    """How often a positive scores above a negative, ties counting half: (N,) and (N,) bool; 0.5 if one kind lacks."""
    yes, no = scores[positive], scores[~positive].sort().values
    if not len(yes) or not len(no):
        return 0.5
    below, not_above = (torch.searchsorted(no, yes, right=right) for right in (False, True))
    return float((below + not_above).double().mean() / 2 / len(no))


def calibration(probabilities: Tensor, outcomes: Tensor, bins: int = 10) -> list[dict[str, float]]:
    """Predicted beside observed frequency in ``bins`` groups of equal size, from the least to the most probable."""
    order = probabilities.argsort()
    return [
        {"predicted": float(probabilities[part].mean()), "observed": float(outcomes[part].float().mean())}
        for part in order.tensor_split(bins)
        if len(part)
    ]


def divergence(counts: Tensor, others: Tensor) -> float:
    """Jensen–Shannon divergence in bits between two histograms (K,): 0 for equal ones, 1 for disjoint ones."""
    p, q = (part.double() / part.sum() for part in (counts, others))
    middle = (p + q) / 2
    return float(sum(torch.xlogy(part, part / middle).nan_to_num().sum() for part in (p, q)) / 2 / math.log(2))


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
def bits(network: Dynamics, codes: Tensor, actions: Tensor) -> Tensor:
    """Bits per code of every frame but the first, (B, T-1), from codes (B, T, H, W) and actions (B, T-1)."""
    nats, _ = network.score(codes, codes[:, :-1], actions)
    return nats / math.log(2)


class Unigram:
    """Every code has its share of those given, of any shape, each counted once more than it was seen."""

    def __init__(self, codes: Tensor, size: int) -> None:
        counts = torch.bincount(codes.flatten(), minlength=size).double() + 1
        self.probabilities = counts / counts.sum()

    def bits(self, codes: Tensor) -> Tensor:
        """Bits per code of every grid of (…, H, W): (…)."""
        return -self.probabilities[codes].log2().mean((-2, -1))


@torch.no_grad()
def spatial_scores(network: SpatialPrior, codes: Tensor, labels: Tensor, unigram: Unigram) -> dict[str, float]:
    """Bits per code of pictures (N, H, W) by a spatial prior and by a unigram, and if it is told the wrong classes."""
    device = next(network.parameters()).device
    pairs = zip(codes.split(32), labels.split(32), strict=True)
    parts = [CodeBatch(*(part.to(device) for part in pair)) for pair in pairs]
    scores = {
        "bits_per_code": torch.cat([network.bits(part) for part in parts]),
        "bits_per_code_unigram": unigram.bits(codes),
    }
    if classes := network.config.classes:
        wrong = [part._replace(labels=(part.labels + 1) % classes) for part in parts]
        scores["bits_per_code_wrong_class"] = torch.cat([network.bits(part) for part in wrong])
    return {name: float(values.mean()) for name, values in scores.items()}


class Bigram:
    """A code depends on the one before it: its counts there, with the unigram as if seen some times more.

    How many times is the power of two under which the given codes foretell each other best, each left out of its own
    counts.

    Args:
        codes: (N,), one after the other.
    """

    def __init__(self, codes: Tensor, unigram: Unigram) -> None:
        self.unigram, size = unigram, len(unigram.probabilities)
        pairs = torch.bincount(codes[:-1] * size + codes[1:], minlength=size**2).view(size, size).double()
        before, after = codes[:-1], codes[1:]

        def left_out(strength: float) -> float:
            mixed = pairs[before, after] - 1 + strength * unigram.probabilities[after]
            return float((mixed / (pairs.sum(1)[before] - 1 + strength)).log().sum())

        strength = max((2.0**power for power in range(-2, 13)), key=left_out)
        mixed = pairs + strength * unigram.probabilities
        self.probabilities = mixed / (pairs.sum(1, keepdim=True) + strength)  # (K, K), before and after

    def bits(self, codes: Tensor) -> Tensor:
        """Bits per code of lines (B, N), the first of each by the unigram: (B,)."""
        chances = torch.cat(
            [self.unigram.probabilities[codes[:, :1]], self.probabilities[codes[:, :-1], codes[:, 1:]]], 1
        )
        return -chances.log2().mean(1)


@torch.no_grad()
def line_scores(network: SpatialPrior, codes: Tensor, unigram: Unigram, bigram: Bigram) -> dict[str, float]:
    """Bits per code of lines (B, N) by a prior, by a unigram and by a bigram."""
    batch = CodeBatch(codes, torch.zeros(len(codes), dtype=torch.int64))
    device = next(network.parameters()).device
    return {
        "bits_per_code": float(network.bits(CodeBatch(*(part.to(device) for part in batch))).mean()),
        "bits_per_code_unigram": -float(unigram.probabilities[codes].log2().mean()),
        "bits_per_code_bigram": float(bigram.bits(codes).mean()),
    }


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
