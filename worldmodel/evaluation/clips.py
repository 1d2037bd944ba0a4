"""Held-out clips and the dreams that a world continues them with: real context frames, then only the actions."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldmodel.episodes.segments import sample_segments, split_held_out
from worldmodel.episodes.store import EpisodeStore
from worldmodel.models.config import NUM_CONTEXT_FRAMES
from worldmodel.models.dream_state import DreamState
from worldmodel.world_model import WorldModel

BATCH_SIZE = 32  # clips
MAX_CANDIDATES = 32  # clips of an action that are compared with each other


class Clips(NamedTuple):
    """Segments of episodes: C = NUM_CONTEXT_FRAMES context frames, and the T frames that followed."""

    frames: Tensor  # (N, C + T, H, W, 3) uint8
    actions: Tensor  # (N, C + T - 1) int64, between the frames
    episodes: Tensor  # (N,) int64, episode numbers

    @property
    def future_frames(self) -> Tensor:
        """The recorded frames after the context, (N, T, H, W, 3)."""
        return self.frames[:, NUM_CONTEXT_FRAMES:]

    @property
    def future_actions(self) -> Tensor:
        """The action before each future frame, (N, T)."""
        return self.actions[:, NUM_CONTEXT_FRAMES - 1 :]


def sample_held_out_clips(store: EpisodeStore, count: int, horizon: int, seed: int) -> Clips:
    """Sample clips of held-out episodes with ``horizon`` future frames.

    Raises:
        ValueError: if no held-out episode is long enough.
    """
    return Clips(*sample_segments(store, split_held_out(store)[1], count, NUM_CONTEXT_FRAMES + horizon, seed))


def find_action_clips(store: EpisodeStore, horizon: int) -> dict[int, Clips]:
    """Return, by action, the held-out clip with ``horizon`` future frames that takes the action most often in them.

    Ties are broken by the largest mean difference between consecutive frames, of at most MAX_CANDIDATES clips. Actions
    that are never taken are left out.
    """
    num_actions, length = len(store.schema.action_names), NUM_CONTEXT_FRAMES + horizon
    most, candidates = np.ones(num_actions, np.int64), [[] for _ in range(num_actions)]
    for entry in split_held_out(store)[1]:
        num_starts = max(0, entry.observations - length + 1)
        taken = np.cumsum(store.steps(entry.number)[0][:, None] == np.arange(num_actions), 0)  # (steps, actions)
        counts = taken[length - 2 :][:num_starts] - taken[NUM_CONTEXT_FRAMES - 2 :][:num_starts]
        for action, best in enumerate(counts.max(0, initial=0)):
            if best > most[action]:
                most[action], candidates[action] = best, []
            starts = np.flatnonzero(counts[:, action] == most[action])
            candidates[action] += [(entry.number, int(start)) for start in starts]
    chosen = {action: found[:: -(-len(found) // MAX_CANDIDATES)] for action, found in enumerate(candidates) if found}
    return {action: _most_moving(store, found, length) for action, found in chosen.items()}


def _most_moving(store: EpisodeStore, starts: list[tuple[int, int]], length: int) -> Clips:
    """Return the clip, of those at these (episode, start), in which consecutive frames differ most."""
    clips = [(store.observations(number, start, length), number, start) for number, start in starts]
    frames, number, start = max(clips, key=lambda clip: np.abs(np.diff(clip[0].astype(np.int16), axis=0)).mean())
    actions = store.steps(number)[0][start : start + length - 1]
    return Clips(torch.from_numpy(frames.copy())[None], torch.from_numpy(actions.copy())[None], torch.tensor([number]))


def start_dreams(world: WorldModel, clips: Clips, part: slice, repeats: int = 1) -> DreamState:
    """Return the dream state after the context frames of the clips in ``part``, each repeated ``repeats`` times."""
    frames = clips.frames[part, :NUM_CONTEXT_FRAMES].repeat_interleave(repeats, 0)
    return world.start(frames, clips.actions[part, : NUM_CONTEXT_FRAMES - 1].repeat_interleave(repeats, 0))


def dream_clips(
    world: WorldModel, clips: Clips, actions: Tensor, samples: int = 1, temperature: float = 1.0, seed: int = 0
) -> Tensor:
    """Continue every clip from its context frames.

    Args:
        actions: (N, T) actions to take.
        samples: dreams per clip; sample s of clip n uses the same random numbers whatever the actions.

    Returns:
        Codes (N, samples, T, h, w) int64.
    """
    codes = []
    for first in tqdm(range(0, len(actions), BATCH_SIZE), unit="batch", desc="dream", leave=False):
        part = slice(first, first + BATCH_SIZE)
        repeated = actions[part].repeat_interleave(samples, 0)
        dreams = world.imagine(start_dreams(world, clips, part, samples), repeated, seed + first * samples, temperature)
        codes.append(dreams.cpu().unflatten(0, (-1, samples)))
    return torch.cat(codes)
