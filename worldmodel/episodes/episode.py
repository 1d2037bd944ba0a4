"""One recorded episode, checked when it is made."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

LARGEST = 1e15  # reward: its square is a float32 still


@dataclass(frozen=True)
class Objects:
    """What an engine says is in view, in all observations of an episode: N rows, each an object in an observation.

    Attributes:
        names: what kinds 0, 1, … are called.
        frames: (N,) int64, the number of the observation.
        kinds: (N,) int64.
        identities: (N,) int64, the same for one object as long as the episode lasts.
        boxes: (N, 4) float32, left, top, right and bottom of what can be seen of it, as shares of the picture's sides.

    Raises:
        ValueError: if the lengths do not fit, or a kind has no name.
    """

    names: tuple[str, ...]
    frames: np.ndarray
    kinds: np.ndarray
    identities: np.ndarray
    boxes: np.ndarray

    def __post_init__(self) -> None:
        shapes = [part.shape for part in (self.frames, self.kinds, self.identities, self.boxes)]
        if shapes != [(rows := len(self.frames),)] * 3 + [(rows, 4)]:
            raise ValueError(f"objects must be three (N,) arrays and boxes (N, 4), got {shapes}")
        if rows and not 0 <= self.kinds.min() <= self.kinds.max() < len(self.names):
            raise ValueError(f"kinds of objects must be in [0, {len(self.names)}), got up to {self.kinds.max()}")

    @classmethod
    def gather(cls, seen: Sequence[Iterable[tuple[str, int, Sequence[float]]]]) -> "Objects":
        """Those of an episode, from (name, identity, box) of each object in each of its observations."""
        rows = [(frame, *row) for frame, objects in enumerate(seen) for row in objects]
        names = sorted({name for _, name, _, _ in rows})
        frames, kinds, identities = (
            np.array(column, np.int64)
            for column in (
                [frame for frame, _, _, _ in rows],
                [names.index(name) for _, name, _, _ in rows],
                [identity for _, _, identity, _ in rows],
            )
        )
        return cls(
            tuple(names), frames, kinds, identities, np.array([row[3] for row in rows], np.float32).reshape(-1, 4)
        )


@dataclass(frozen=True)
class Episode:
    """What one agent saw, did and got, from reset to end.

    Attributes:
        observations: (T+1, *shape), or (T, *shape) where the world gave no frame after the last action; frames are
            uint8 (84, 84, 3), codes uint16 (21, 21).
        actions: (T,) int64; ``actions[t]`` was taken after seeing ``observations[t]``.
        rewards: (T,) float64; ``rewards[t]`` follows ``actions[t]``; at most 1e15 large.
        terminated: whether the last action ended the world.
        truncated: whether a time limit did.
        seed: what the world was reset with, or -1 where it is not known.
        objects: what is in view, where the world says so.
        reproducible: whether the seed and the actions give the same episode again; a world may say that they do not.

    Raises:
        ValueError: if the lengths or dtypes do not fit, or a reward is no number.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool
    seed: int = -1
    objects: Objects | None = None
    reproducible: bool = True

    def __post_init__(self) -> None:
        steps = len(self.actions)
        if self.actions.ndim != 1 or not np.issubdtype(self.actions.dtype, np.integer) or steps == 0:
            raise ValueError(f"actions must be a non-empty (T,) integer array, got {_describe(self.actions)}")
        if self.rewards.shape != (steps,) or not np.issubdtype(self.rewards.dtype, np.floating):
            raise ValueError(
                f"rewards must be a ({steps},) float array like the actions, got {_describe(self.rewards)}"
            )
        if not (np.abs(self.rewards) <= LARGEST).all():  # nor is not-a-number
            step = int(np.argmax(~(np.abs(self.rewards) <= LARGEST)))
            raise ValueError(
                f"rewards must be numbers from -{LARGEST:.0e} to {LARGEST:.0e}, got {self.rewards[step]} at step {step}"
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
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that name what the episode holds, but for what was in view."""
        total = hashlib.sha256()
        for array in (self.observations, self.actions.astype(np.int64), self.rewards.astype(np.float64)):
            total.update(f"{array.dtype} {array.shape} ".encode())
            total.update(np.ascontiguousarray(array).data)
        total.update(f"{bool(self.terminated)} {bool(self.truncated)} {int(self.seed)}".encode())
        return total.hexdigest()[:16]

    @property
    def has_final_observation(self) -> bool:
        """Whether the frame after the last action is there (Gymnasium's T+1), or the world gave none."""
        return len(self.observations) == len(self) + 1


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"
