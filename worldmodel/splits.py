"""Which samples are held out, which are in a batch, and which stand for all of them."""

from collections.abc import Sequence

import numpy as np

HELD_OUT_EVERY = 10


def is_held_out(numbers: Sequence[int]) -> np.ndarray:
    """Return which of the samples with these numbers are held out, (N,) bool: every tenth number, 9, 19, and so on.

    If none has such a number, the last sample is held out, unless it is the only one.
    """
    held_out = np.asarray(numbers) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    held_out[1:][-1:] |= not held_out.any()
    return held_out


def evenly_spaced(total: int, count: int) -> np.ndarray:
    """Return at most ``count`` evenly spaced indices below ``total``; deterministic."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(np.int64)


def batch_indices(total: int, batch_size: int, seed: int, step: int, rank: int, world_size: int) -> np.ndarray:
    """Return the random indices below ``total`` that one worker reads for a step, (batch_size / world_size,) int64."""
    if batch_size < 1:
        raise ValueError(f"--batch_size must be 1 or more, got {batch_size}")
    if world_size < 1 or batch_size % world_size:
        raise ValueError(f"--batch_size must be a multiple of --workers, got {batch_size} and {world_size}")
    indices = np.random.default_rng([seed, 0, step]).integers(total, size=batch_size)
    return np.split(indices, world_size)[rank]


def locate(lengths: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sequence (N,) that each flat position (N,) falls into and the offset (N,) in it.

    Args:
        lengths: lengths of the sequences, in the order in which they are laid end to end.
    """
    ends = np.cumsum(lengths)
    indices = np.searchsorted(ends, positions, side="right")
    return indices, positions - ends[indices] + lengths[indices]
