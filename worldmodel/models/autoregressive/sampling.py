"""What all autoregressive networks share: sampling from logits, and loading the compiled kernels."""

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor


def sample_categorical(logits: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """Sample by inverting the cumulative distribution: logits (…, K), uniforms (…,) in [0, 1) -> (…,) int64."""
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = (logits.float() / temperature).softmax(-1).cumsum(-1)
    thresholds = (uniforms * cumulative[..., -1])[..., None]
    return torch.searchsorted(cumulative, thresholds, right=True)[..., 0].clamp_max(logits.shape[-1] - 1)


def check_uniforms(uniforms: Tensor, condition: Tensor) -> None:
    """Check that the uniforms are (B, H, W) for a condition (B, H, W, C): the kernels do not check bounds.

    Raises:
        ValueError: if they are not.
    """
    if condition.ndim != 4 or uniforms.shape != condition.shape[:3]:
        raise ValueError(
            f"uniforms must be {tuple(condition.shape[:3])} for a condition of {tuple(condition.shape)}, "
            f"got {tuple(uniforms.shape)}"
        )


@cache
def load_kernel(name: str) -> ModuleType | None:
    """Import a module of ``worldmodel.models.kernels`` at its first use; return None without a working Numba."""
    try:
        return import_module(f"worldmodel.models.kernels.{name}")
    except (ImportError, OSError):
        return None
