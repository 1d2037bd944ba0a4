"""Lower bounds on log p(x) = log Σ_z p(x | z) p(z), and a gradient for one that has none by itself. All in nats."""

import math

import torch
from torch import Tensor


def gaussian_rate(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(q || p) of independent normal q from the standard normal p, (B, …) twice -> (B,) (Kingma & Welling 2014)."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).flatten(1).sum(1)


def categorical_rate(log_probabilities: Tensor) -> Tensor:
    """KL(q || p) of independent categorical q from the uniform p, (B, …, K) log-probabilities -> (B,)."""
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
    return (math.log(log_probabilities.shape[-1]) - entropy).flatten(1).sum(1)


def importance_bound(log_weights: Tensor) -> Tensor:
    """log 1/k Σ_j p(x, z_j) / q(z_j | x) (Burda et al. 2016, eq. 8): (B, k) logarithms of the quotients -> (B,).

    Its expectation over the k draws z_j from q is a lower bound on log p(x), tighter for more of them, and is the
    evidence lower bound for one.
    """
    return log_weights.logsumexp(1) - math.log(log_weights.shape[1])


def vimco(log_weights: Tensor, log_posterior: Tensor) -> Tensor:
    """Something with VIMCO's gradient: an unbiased estimate of that of the expected :func:`importance_bound`.

    Draws from a discrete q pass no gradient back. Each draw's log q is weighted instead by how much it lifted the
    bound above the one that it would be with the geometric mean of the others' weights in its place (Mnih & Rezende
    2016, eqs 8-10).

    Args:
        log_weights: (B, k) log p(x, z_j) - log q(z_j | x), with their gradients; k is 2 or more.
        log_posterior: (B, k) log q(z_j | x), with its gradient.

    Returns:
        (B,) whose gradient, not its value, is meant.

    Raises:
        ValueError: for a single draw, which has no others.
    """
    if log_weights.shape[1] < 2:
        raise ValueError(f"VIMCO compares each draw with the others and needs 2 or more, got {log_weights.shape[1]}")
    bound = importance_bound(log_weights)
    lifted = (bound[:, None] - without_each(log_weights)).detach()  # (B, k)
    return bound + (lifted * log_posterior).sum(1)


def without_each(log_weights: Tensor) -> Tensor:
    """The bound with the geometric mean of the other weights in the place of each of them: (B, k) -> (B, k)."""
    number = log_weights.shape[1]
    others = (log_weights.sum(1, keepdim=True) - log_weights) / (number - 1)
    same = torch.eye(number, dtype=torch.bool, device=log_weights.device)
    return torch.where(same, others[:, :, None], log_weights[:, None]).logsumexp(2) - math.log(number)
