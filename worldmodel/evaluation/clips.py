"""Held-out clips and what a world dreams in their place: six real frames, then nothing but the actions."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldmodel.episodes.segments import StepWindows, split
from worldmodel.episodes.store import Entry, EpisodeStore
from worldmodel.models.dream_state import Memory
from worldmodel.world_model import WorldModel

CONTEXT = 6  # real frames that a dream begins with, as in van den Oord et al. 2017, section 4.4
BATCH = 32


class Clips(NamedTuple):
    """Stretches of episodes: CONTEXT frames to begin with, and T that came next."""

    frames: Tensor  # (N, CONTEXT + T, H, W, 3) uint8
    actions: Tensor  # (N, CONTEXT + T - 1) int64, those between the frames
    episodes: Tensor  # (N,) int64, the numbers of the episodes

    @property
    def truth(self) -> Tensor:
        """What came next, (N, T, H, W, 3)."""
        return self.frames[:, CONTEXT:]

    @property
    def to_take(self) -> Tensor:
        """The actions that lead there, (N, T)."""
        return self.actions[:, CONTEXT - 1 :]


def held_out_clips(store: EpisodeStore, count: int, horizon: int, seed: int) -> Clips:
    """Random clips of held-out episodes with ``horizon`` frames to come.

    Raises:
        ValueError: if no held-out episode is that long.
    """
    return Clips(*stretches(store, split(store)[1], count, CONTEXT + horizon, seed))


def stretches(
    store: EpisodeStore, entries: list[Entry], count: int, length: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Random stretches that do not pass the end of their episode.

    Returns:
        Observations (count, length, *shape), the actions between them (count, length - 1), and the numbers of the
        episodes (count,).

    Raises:
        ValueError: if no episode is that long.
    """
    enough = [entry for entry in entries if entry.observations >= length]
    if not enough:
        longest = max(entry.observations for entry in entries)
        raise ValueError(f"stretches of {length} frames need longer episodes than {store.path} has: at most {longest}")
    windows, random = StepWindows(store, enough, 1, length, seed), np.random.default_rng(seed)
    ends, rows = np.cumsum([entry.observations - length + 1 for entry in enough]), []
    for place in random.integers(ends[-1], size=count):
        which = int(np.searchsorted(ends, place, side="right"))
        start = int(place - ends[which]) + enough[which].observations - length + 1
        rows.append((*windows.read(enough[which], start)[:2], enough[which].number))
    observations, actions, episodes = zip(*rows, strict=True)
    return torch.from_numpy(np.stack(observations)), torch.from_numpy(np.stack(actions)), torch.tensor(episodes)


def begin(world: WorldModel, clips: Clips, part: slice, times: int = 1) -> Memory:
    """The state after the real frames of some of the clips, each ``times`` times over."""
    frames = clips.frames[part, :CONTEXT].repeat_interleave(times, 0)
    return world.start(frames, clips.actions[part, : CONTEXT - 1].repeat_interleave(times, 0))


def dream(
    world: WorldModel, clips: Clips, actions: Tensor, samples: int = 1, temperature: float = 1.0, seed: int = 0
) -> Tensor:
    """Dream on from the real frames of every clip.

    Args:
        actions: (N, T) to take.
        samples: dreams of a clip; sample s of clip n draws the same chance whatever the actions.

    Returns:
        Codes (N, samples, T, h, w) int64.
    """
    codes = []
    for first in tqdm(range(0, len(actions), BATCH), unit="batch", desc="dream", leave=False):
        part = slice(first, first + BATCH)
        taken = actions[part].repeat_interleave(samples, 0)
        imagined = world.imagine(begin(world, clips, part, samples), taken, seed + first * samples, temperature)
        codes.append(imagined.cpu().unflatten(0, (-1, samples)))
    return torch.cat(codes)
