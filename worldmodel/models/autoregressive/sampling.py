"""What every net that draws codes one after the other needs: a draw, and the way to its compiled loop."""

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor


def draw(logits: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """Categorical draws by inverting the cumulated probabilities: (…, K), (…,) -> (…,) int64."""
    if temperature == 0:
        return logits.argmax(-1)
    cumulated = (logits.float() / temperature).softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulated, (uniforms * cumulated[..., -1])[..., None], right=True)[..., 0].clamp_max(
        logits.shape[-1] - 1
    )


def check_temperature(temperature: float) -> None:
    """Refuse what is no temperature.

    Raises:
        ValueError: if it is negative, too large for a float32, or no number.
    """
    if not isinstance(temperature, int | float) or not 0 <= temperature < 1e18:
        raise ValueError(f"temperature must be a number of 0 or more, got {temperature}")


def check_uniforms(uniforms: Tensor, condition: Tensor) -> None:
    """Refuse chance of another shape (B, H, W) than the condition's (B, H, W, C): loops read it without looking.

    Raises:
        ValueError: if they differ.
    """
    if condition.ndim != 4 or uniforms.shape != condition.shape[:3]:
        raise ValueError(
            f"uniforms must be {tuple(condition.shape[:3])} for a condition of {tuple(condition.shape)}, "
            f"got {tuple(uniforms.shape)}"
        )


@cache
def compiled_loop(name: str) -> ModuleType | None:
    """The module here of a compiled loop, imported when first needed; None where there is no Numba that works."""
    try:
        return import_module(f"worldmodel.models.kernels.{name}")
    except (ImportError, OSError):
        return None
