"""Batches from a store. Number n is a function of the seed and n, so a resumed run sees what it would have seen.

Several workers share a batch: each reads its own rows, and together, in their order, they are the one that a single
process would read.
"""

import numpy as np
import torch
from torch import Tensor

from worldmodel.episodes.store import Entry, EpisodeStore

HELD_OUT_EVERY = 10


def split(store: EpisodeStore) -> tuple[list[Entry], list[Entry]]:
    """The training and the held-out episodes: every tenth by number is held out, at least one.

    From ten episodes on, the rule does not depend on how many there are, so a store that grows keeps its split; a
    smaller one holds out its last episode.

    Raises:
        ValueError: if the store has fewer than two episodes.
    """
    if len(store) < 2:
        raise ValueError(f"{store.path} must hold two episodes or more, one to hold out, it holds {len(store)}")
    entries = store.entries
    held_out = [entry for entry in entries if entry.number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1] or entries[-1:]
    kept = {entry.number for entry in held_out}
    return [entry for entry in entries if entry.number not in kept], held_out


class StepWindows:
    """Random stretches of episodes: ``windows(n)`` is a batch of T observations and the T-1 steps between them.

    A stretch that passes the end of its episode is filled up with zeros, and marked so. The result is the tuple
    observations (B, T, *shape) uint8 for frames and int64 for codes, actions (B, T-1) int64, rewards (B, T-1) float32,
    terminated (B, T-1) float32, observation_valid (B, T) bool, step_valid (B, T-1) bool. With ``rank`` and ``workers``
    it is that worker's part of it, B / workers stretches.

    Args:
        mirrored: the same episodes in a mirror; half of the stretches, chosen by chance, come from there.
    """

    def __init__(
        self,
        store: EpisodeStore,
        entries: list[Entry],
        size: int,
        length: int,
        seed: int,
        mirrored: EpisodeStore | None = None,
    ) -> None:
        self.store, self.entries, self.size, self.length, self.seed = store, entries, size, length, seed
        self.mirrored = mirrored
        self._ends = np.cumsum([self._starts(entry) for entry in entries])

    def __call__(self, number: int, rank: int = 0, workers: int = 1) -> tuple[Tensor, ...]:
        rows = []
        flipped = np.random.default_rng([self.seed, 1, number]).random(self.size) < (0.5 if self.mirrored else 0.0)
        positions = draw(self._ends[-1], self.size, self.seed, number, rank, workers)
        for position, flip in zip(positions, np.split(flipped, workers)[rank], strict=True):
            which = int(np.searchsorted(self._ends, position, side="right"))
            entry = self.entries[which]
            rows.append(self.read(entry, int(position - self._ends[which] + self._starts(entry)), bool(flip)))
        return tuple(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))

    def read(self, entry: Entry, start: int, flip: bool = False) -> tuple[np.ndarray, ...]:
        """The one stretch that begins at observation ``start`` of an episode, without the leading B."""
        length, store = self.length, self.mirrored if flip and self.mirrored else self.store
        actions, rewards = (part[start : start + length - 1] for part in store.steps(entry.number))
        terminated = np.zeros(len(actions), np.float32)
        if start + len(actions) == entry.steps:
            terminated[-1:] = entry.terminated
        seen = min(length, entry.observations - start)
        observations = store.observations(entry.number, start, seen)
        if observations.dtype != np.uint8:
            observations = observations.astype(np.int64)
        valid = np.arange(length)
        return (
            _fill(observations, length),
            _fill(actions, length - 1),
            _fill(rewards.astype(np.float32), length - 1),
            _fill(terminated, length - 1),
            valid < seen,
            valid[:-1] < len(actions),
        )

    def _starts(self, entry: Entry) -> int:
        """How many stretches an episode has: one from each step, or the last steps would be in too few of them."""
        return max(1, entry.steps)


def draw(end: int, size: int, seed: int, number: int, rank: int, workers: int) -> np.ndarray:
    """The part of one of several workers of the positions below ``end`` that make up batch ``number``."""
    if size < 1:
        raise ValueError(f"--batch must be 1 or more, got {size}")
    if workers < 1 or size % workers:
        raise ValueError(f"--batch must be a multiple of --workers, got {size} and {workers}")
    positions = np.random.default_rng([seed, 0, number]).integers(end, size=size)
    return np.split(positions, workers)[rank]


def _fill(array: np.ndarray, length: int) -> np.ndarray:
    return np.pad(array, [(0, length - len(array))] + [(0, 0)] * (array.ndim - 1))


def spread(total: int, count: int) -> np.ndarray:
    """``count`` of the numbers below ``total``, or all if there are fewer, evenly spread: the same ones every time."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(np.int64)
