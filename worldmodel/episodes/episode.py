"""One recorded episode, validated on creation."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

MAX_REWARD = 1e15  # its square still fits in a float32


@dataclass(frozen=True)
class Objects:
    """Objects in view in an episode, as reported by the game engine: N rows, one per object and frame.

    Attributes:
        names: names of kinds 0, 1, ….
        frames: (N,) int64, index of the observation.
        kinds: (N,) int64, kind of the object.
        identities: (N,) int64, id of the object, constant during the episode.
        boxes: (N, 4) float32, left, top, right and bottom of the visible part, as fractions of the image size.

    Raises:
        ValueError: if the lengths differ, or a kind has no name.
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
    def gather(cls, observed: Sequence[Iterable[tuple[str, int, Sequence[float]]]]) -> "Objects":
        """Combine the (name, identity, box) tuples of all observations of an episode."""
        rows = [(frame, *row) for frame, objects in enumerate(observed) for row in objects]
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
    """Observations, actions and rewards of an agent from reset to end.

    Attributes:
        observations: (T+1, *shape), or (T, *shape) if there is no frame after the last action; frames are
            uint8 (84, 84, 3), codes uint16 (21, 21).
        actions: (T,) int64; ``actions[t]`` was taken after seeing ``observations[t]``.
        rewards: (T,) float64; ``rewards[t]`` follows ``actions[t]``; at most 1e15 in magnitude.
        terminated: whether the environment terminated after the last action.
        truncated: whether the episode was cut off by a time limit.
        seed: seed of the environment's reset, or -1 if unknown.
        objects: objects in view, if the environment reports them.
        reproducible: whether the same seed and actions reproduce the episode; always False if the seed is unknown.

    Raises:
        ValueError: if the lengths or dtypes are wrong, or a reward is not finite or too large.
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
        if not (np.abs(self.rewards) <= MAX_REWARD).all():  # also false for NaN
            step = int(np.argmax(~(np.abs(self.rewards) <= MAX_REWARD)))
            raise ValueError(
                f"rewards must be numbers from -{MAX_REWARD:.0e} to {MAX_REWARD:.0e}, "
                f"got {self.rewards[step]} at step {step}"
            )
        if len(self.observations) not in (steps, steps + 1):
            raise ValueError(
                f"{steps} actions go with {steps + 1} observations, or {steps} if the last frame is missing, "
                f"got {len(self.observations)}"
            )
        object.__setattr__(self, "reproducible", self.reproducible and self.seed >= 0)

    def __len__(self) -> int:
        """Return the number of steps T."""
        return len(self.actions)

    @property
    def fingerprint(self) -> str:
        """Hash of the episode without the objects in view, as 16 hexadecimal digits."""
        total = hashlib.sha256()
        for array in (self.observations, self.actions.astype(np.int64), self.rewards.astype(np.float64)):
            total.update(f"{array.dtype} {array.shape} ".encode())
            total.update(np.ascontiguousarray(array).data)
        total.update(f"{bool(self.terminated)} {bool(self.truncated)} {int(self.seed)}".encode())
        return total.hexdigest()[:16]

    @property
    def has_final_observation(self) -> bool:
        """Whether there is an observation after the last action."""
        return len(self.observations) == len(self) + 1


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"
