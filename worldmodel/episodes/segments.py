"""Batches of episode segments, held-out splits and clips of a store.

A batch depends only on the seed and the training step, so a resumed run sees the same batches as an uninterrupted one.
Workers that share a batch each read their own rows of it.
"""

import numpy as np
import torch
from torch import Tensor

from worldmodel.episodes.store import Entry, EpisodeStore
from worldmodel.splits import batch_indices, is_held_out, locate


def split_held_out(store: EpisodeStore) -> tuple[list[Entry], list[Entry]]:
    """Return the index entries of the training and of the held-out episodes, as chosen by
    :func:`worldmodel.splits.is_held_out`.

    A store of ten or more episodes keeps its split as it grows.

    Raises:
        ValueError: if the store has fewer than two episodes.
    """
    if len(store) < 2:
        raise ValueError(f"{store.path} must hold two or more episodes, one of them to hold out; it holds {len(store)}")
    parts: tuple[list[Entry], list[Entry]] = ([], [])
    for entry, held_out in zip(store.entries, is_held_out([entry.number for entry in store.entries]), strict=True):
        parts[int(held_out)].append(entry)
    return parts


class SegmentSampler:
    """Random segments of episodes: ``sampler(step)`` returns a batch of T observations and the T-1 steps between them.

    Segments that pass the end of their episode are padded with zeros. A batch is the tuple observations (B, T, *shape)
    uint8 for frames or int64 for codes, actions (B, T-1) int64, rewards (B, T-1) float32, terminated (B, T-1) float32,
    observation_valid (B, T) bool, step_valid (B, T-1) bool. ``sampler(step, rank, world_size)`` returns the
    B / world_size segments of one worker.

    Args:
        mirrored: mirrored copy of the store, from which half of the segments are sampled.
    """

    def __init__(
        self,
        store: EpisodeStore,
        entries: list[Entry],
        batch_size: int,
        length: int,
        seed: int,
        mirrored: EpisodeStore | None = None,
    ) -> None:
        self.store, self.entries, self.batch_size, self.length, self.seed = store, entries, batch_size, length, seed
        self.mirrored = mirrored
        self._num_starts = np.array(
            [max(1, entry.steps) for entry in entries]
        )  # any step, or the last ones would be rare

    def __call__(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, ...]:
        segments = []
        flipped = np.random.default_rng([self.seed, 1, step]).random(self.batch_size) < (0.5 if self.mirrored else 0.0)
        positions = batch_indices(self._num_starts.sum(), self.batch_size, self.seed, step, rank, world_size)
        for index, start, flip in zip(
            *locate(self._num_starts, positions), np.split(flipped, world_size)[rank], strict=True
        ):
            store = self.mirrored if flip and self.mirrored else self.store
            segments.append(read_segment(store, self.entries[index], int(start), self.length))
        return tuple(torch.from_numpy(np.stack(column)) for column in zip(*segments, strict=True))


def read_segment(store: EpisodeStore, entry: Entry, start: int, length: int) -> tuple[np.ndarray, ...]:
    """Return the segment of ``length`` observations from ``start`` on, as in a batch of :class:`SegmentSampler`."""
    actions, rewards = (part[start : start + length - 1] for part in store.steps(entry.number))
    terminated = np.zeros(len(actions), np.float32)
    if start + len(actions) == entry.steps:
        terminated[-1:] = entry.terminated
    num_observations = min(length, entry.observations - start)
    observations = store.observations(entry.number, start, num_observations)
    if observations.dtype != np.uint8:
        observations = observations.astype(np.int64)
    positions = np.arange(length)
    return (
        _pad(observations, length),
        _pad(actions, length - 1),
        _pad(rewards.astype(np.float32), length - 1),
        _pad(terminated, length - 1),
        positions < num_observations,
        positions[:-1] < len(actions),
    )


def _pad(array: np.ndarray, length: int) -> np.ndarray:
    return np.pad(array, [(0, length - len(array))] + [(0, 0)] * (array.ndim - 1))


def sample_segments(
    store: EpisodeStore, entries: list[Entry], count: int, length: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample segments that end before their episode does.

    Returns:
        Observations (count, length, *shape), the actions between them (count, length - 1), and episode numbers
        (count,).

    Raises:
        ValueError: if no episode is long enough.
    """
    enough = [entry for entry in entries if entry.observations >= length]
    if not enough:
        longest = max(entry.observations for entry in entries)
        raise ValueError(f"segments of {length} frames need longer episodes than {store.path} has: at most {longest}")
    random = np.random.default_rng(seed)
    starts, rows = np.array([entry.observations - length + 1 for entry in enough]), []
    for index, start in zip(*locate(starts, random.integers(starts.sum(), size=count)), strict=True):
        rows.append((*read_segment(store, enough[index], int(start), length)[:2], enough[index].number))
    observations, actions, episodes = zip(*rows, strict=True)
    return torch.from_numpy(np.stack(observations)), torch.from_numpy(np.stack(actions)), torch.tensor(episodes)


def read_clip(store: EpisodeStore, episode: int, start: int, length: int) -> tuple[Tensor, Tensor]:
    """Return recorded frames (length, H, W, 3) uint8 and the actions between them (length-1,) int64.

    Raises:
        ValueError: if the episode does not exist or is too short.
    """
    if episode not in store:
        numbers = [entry.number for entry in store.entries]
        known = (
            f"its {len(numbers)} episodes have numbers from {numbers[0]} to {numbers[-1]}" if numbers else "it is empty"
        )
        raise ValueError(f"{store.path} has no episode {episode}; {known}")
    frames = store.observations(episode, start, length)
    actions, _ = store.steps(episode)
    return torch.from_numpy(frames.copy()), torch.from_numpy(actions[start : start + length - 1].copy())
