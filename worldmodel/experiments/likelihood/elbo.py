"""Lower bounds on log p(x) = log Σ_z p(x | z) p(z) in nats, and a gradient estimator for discrete latents."""

import math

import torch
from torch import Tensor


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(q || p) of independent normal q from the standard normal p, (B, …) twice -> (B,) (Kingma & Welling 2014)."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).flatten(1).sum(1)


def categorical_kl(log_probabilities: Tensor) -> Tensor:
    """KL(q || p) of independent categorical q from the uniform p, (B, …, K) log-probabilities -> (B,)."""
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
    return (math.log(log_probabilities.shape[-1]) - entropy).flatten(1).sum(1)


def importance_bound(log_weights: Tensor) -> Tensor:
    """log 1/k Σ_j p(x, z_j) / q(z_j | x) (Burda et al. 2016, eq. 8): (B, k) log-ratios -> (B,).

    Its expectation over k samples z_j from q is a lower bound on log p(x): the evidence lower bound for k = 1, and
    tighter for larger k.
    """
    return log_weights.logsumexp(1) - math.log(log_weights.shape[1])


def vimco_objective(log_weights: Tensor, log_posterior: Tensor) -> Tensor:
    """Return a tensor whose gradient is VIMCO's unbiased estimate of that of the expected :func:`importance_bound`.

    Samples from a discrete q pass no gradient back. Instead, the log q of each sample is weighted by how much the bound
    exceeds the one with the geometric mean of the other weights in place of its own (Mnih & Rezende 2016, eqs 8-10).

    Args:
        log_weights: (B, k) log p(x, z_j) - log q(z_j | x), with their gradients; k is 2 or more.
        log_posterior: (B, k) log q(z_j | x), with its gradient.

    Returns:
        (B,); use its gradient, not its value.

    Raises:
        ValueError: for a single sample, which has no others.
    """
    if log_weights.shape[1] < 2:
        raise ValueError(f"VIMCO compares each sample with the others and needs 2 or more, got {log_weights.shape[1]}")
    bound = importance_bound(log_weights)
    advantage = (bound[:, None] - leave_one_out_bounds(log_weights)).detach()  # (B, k)
    return bound + (advantage * log_posterior).sum(1)


def leave_one_out_bounds(log_weights: Tensor) -> Tensor:
    """Return the bound with each weight replaced by the geometric mean of the others: (B, k) -> (B, k)."""
    count = log_weights.shape[1]
    others = (log_weights.sum(1, keepdim=True) - log_weights) / (count - 1)
    same = torch.eye(count, dtype=torch.bool, device=log_weights.device)
    return torch.where(same, others[:, :, None], log_weights[:, None]).logsumexp(2) - math.log(count)
