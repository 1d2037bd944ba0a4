"""Observations of a dream, and of a real environment seen through the same VQ-VAE."""

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from worldmodel.world_model import WorldModel

MAX_HISTORY = 1000


def make_observation_space(world: WorldModel, observation: str, history: int) -> gym.spaces.Box:
    """Return the space of the last ``history`` frames, the oldest first, as codes or decoded.

    Codes are (h, w) int32, or (history, h, w) if history > 1. Frames are (H, W, 3·history) uint8, with the history in
    the channels, as Stable-Baselines3's ``CnnPolicy`` and RLlib's convolutional networks expect it.

    Raises:
        ValueError: for an unknown kind of observation, or a history outside [1, 1000].
    """
    if observation not in ("codes", "frame"):
        raise ValueError(f"observation must be 'codes' or 'frame', got {observation!r}")
    if not isinstance(history, int) or not 1 <= history <= MAX_HISTORY:
        raise ValueError(f"history must be 1 or more, and {MAX_HISTORY} at most, got {history}")
    config = world.dynamics.config
    if observation == "frame":
        height, width, channels = world.decode(torch.zeros(1, *config.grid, dtype=torch.int64)).shape[1:]
        return gym.spaces.Box(0, 255, (height, width, channels * history), np.uint8)
    return gym.spaces.Box(0, config.codebook_size - 1, (*(history,) * (history > 1), *config.grid), np.int32)


def make_observations(world: WorldModel, codes: Tensor, observation: str, history: int) -> np.ndarray:
    """Turn codes (B, history, h, w) into a batch of observations of :func:`make_observation_space`."""
    if observation == "codes":
        observations = codes.numpy().astype(np.int32)
        return observations if history > 1 else observations[:, 0]
    return stack_frames(world.decode(codes.flatten(0, 1)).unflatten(0, codes.shape[:2]).numpy())


def stack_frames(frames: np.ndarray) -> np.ndarray:
    """Move the history of frames (…, history, H, W, 3) into the channels, (…, H, W, 3·history)."""
    moved = np.moveaxis(frames, -4, -2)  # (…, H, W, history, 3)
    return np.ascontiguousarray(moved.reshape(*moved.shape[:-2], -1))
