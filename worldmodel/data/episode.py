"""One recorded episode, checked when it is made."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Episode:
    """What one agent saw, did and got, from reset to end.

    Attributes:
        observations: (T+1, *shape), or (T, *shape) where the world gave no frame after the last action; frames are
            uint8 (84, 84, 3), codes uint16 (21, 21).
        actions: (T,) int64; ``actions[t]`` was taken after seeing ``observations[t]``.
        rewards: (T,) float64; ``rewards[t]`` follows ``actions[t]``.
        terminated: whether the last action ended the world.
        truncated: whether a time limit did.
        seed: what the world was reset with, or -1 where it is not known.

    Raises:
        ValueError: if the lengths or dtypes do not fit.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool
    seed: int = -1

    def __post_init__(self) -> None:
        steps = len(self.actions)
        if self.actions.ndim != 1 or not np.issubdtype(self.actions.dtype, np.integer) or steps == 0:
            raise ValueError(f"actions must be a non-empty (T,) integer array, got {_describe(self.actions)}")
        if self.rewards.shape != (steps,) or not np.issubdtype(self.rewards.dtype, np.floating):
            raise ValueError(
                f"rewards must be a ({steps},) float array like the actions, got {_describe(self.rewards)}"
            )
        if len(self.observations) not in (steps, steps + 1):
            raise ValueError(
                f"{steps} actions go with {steps + 1} observations, or {steps} where the last frame is missing, "
                f"got {len(self.observations)}"
            )

    def __len__(self) -> int:
        """The number of steps T."""
        return len(self.actions)

    @property
    def has_final_observation(self) -> bool:
        """Whether the frame after the last action is there (Gymnasium's T+1), or the world gave none."""
        return len(self.observations) == len(self) + 1


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"
