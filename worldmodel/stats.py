"""Statistics of scores: bootstrap intervals, AUROC, calibration, Jensen–Shannon divergence."""

import math

import torch
from scipy.special import stdtrit
from torch import Tensor


def bootstrap_interval(values: Tensor, groups: Tensor | None = None, num_resamples: int = 1000) -> dict[str, float]:
    """Return the mean of (N,) values and its 95 % bootstrap percentile interval, as ``mean``, ``low`` and ``high``.

    Args:
        groups: (N,) group of each value, such as its episode; groups are resampled as a whole. By default each value
            is its own group. With a single group, nothing is known about the spread: all three are the mean.
    """
    values = values.double()
    _, member = (torch.arange(len(values)) if groups is None else groups).unique(return_inverse=True)
    counts = torch.bincount(member).double()
    sums = torch.bincount(member, values)
    chosen = torch.randint(len(sums), (num_resamples, len(sums)), generator=torch.Generator().manual_seed(0))
    means = sums[chosen].sum(1) / counts[chosen].sum(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"mean": float(values.mean()), "low": low, "high": high}


def t_interval(values: Tensor) -> dict[str, float]:
    """Return the mean of a few (N,) values and its 95 % interval by Student's t, as ``mean``, ``low`` and ``high``.

    A bootstrap interval of so few would be too narrow. Of a single value, all three are that value.
    """
    values = values.double()
    mean, count = float(values.mean()), len(values)
    reach = float(stdtrit(count - 1, 0.975)) * float(values.std()) / math.sqrt(count) if count > 1 else 0.0
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def descriptive_stats(values: Tensor) -> dict[str, float]:
    """Return the mean, sample standard deviation (0 for one value), minimum and maximum of (N,) values."""
    values = values.double()
    deviation = values.std() if len(values) > 1 else 0.0
    summary = {"mean": values.mean(), "deviation": deviation, "least": values.min(), "most": values.max()}
    return {name: float(value) for name, value in summary.items()}


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve of scores (N,) for labels (N,) bool; ties count half; 0.5 if all labels are equal."""
    positives, negatives = scores[positive], scores[~positive].sort().values
    if not len(positives) or not len(negatives):
        return 0.5
    below, not_above = (torch.searchsorted(negatives, positives, right=right) for right in (False, True))
    return float((below + not_above).double().mean() / 2 / len(negatives))


def detection(scores: Tensor, positive: Tensor, threshold: float) -> dict[str, float]:
    """Return how well scores (N,) above a threshold detect the positives, (N,) bool.

    Returns:
        ``recall``: fraction of the positives above the threshold. ``contrast``: mean score of the positives relative to
        that of the others. Both are 0 if there are no positives, and the contrast if there are no others.
    """
    if not positive.any():
        return {"recall": 0.0, "contrast": 0.0}
    hits, contrast = scores[positive] > threshold, 0.0
    if not positive.all():
        contrast = float(scores[positive].mean() / scores[~positive].mean().clamp_min(1e-12))
    return {"recall": float(hits.float().mean()), "contrast": contrast}


def calibration(probabilities: Tensor, outcomes: Tensor, num_bins: int = 10) -> list[dict[str, float]]:
    """Return predicted and observed frequencies in ``num_bins`` bins of equal size, by increasing probability."""
    order = probabilities.argsort()
    return [
        {"predicted": float(probabilities[part].mean()), "observed": float(outcomes[part].float().mean())}
        for part in order.tensor_split(num_bins)
        if len(part)
    ]


def jensen_shannon_divergence(counts: Tensor, others: Tensor) -> float:
    """Jensen–Shannon divergence in bits of two histograms (K,): 0 if they are equal, 1 if they are disjoint."""
    p, q = (part.double() / part.sum() for part in (counts, others))
    mixture = (p + q) / 2
    return float(sum(torch.xlogy(part, part / mixture).nan_to_num().sum() for part in (p, q)) / 2 / math.log(2))
