"""A real environment with the observations of a dream: encoded by the VQ-VAE of a world model."""

from collections import deque
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import TimeLimit

from envs.observations import make_observation_space, make_observations
from worldmodel import checkpoint, env_wrappers
from worldmodel.episodes.recording import describe
from worldmodel.shipped import DEFAULT_WORLD
from worldmodel.world_model import WorldModel


class EncodedEnv(gym.Wrapper):
    """The real environment that a world model was trained on, with the observations of ``Dream-v0``.

    Observations: the last ``history`` frames, the oldest first: codes as Box (h, w) int32, or (history, h, w) if
    history > 1; with ``observation="frame"``, the VQ-VAE's reconstructions as Box (H, W, 3·history) uint8.
    Actions, rewards, episode ends and info are those of the real environment.

    Args:
        world: name of a shipped world, or run folder of a dynamics model.
        env: Gymnasium id of the real environment; by default the one that the world was recorded in, if it is part of
            this package.
        env_kwargs: arguments of the real environment, added to those of the recording if ``env`` is the same.
        horizon: frames after which an episode is truncated; 0 for the environment's own limit.
        observation: kind of the observations, ``"codes"`` or reconstructed ``"frame"``.
        history: number of frames per observation; the first frame of an episode stands for those before it.
        device: device of the VQ-VAE.
        render_mode: ``"rgb_array"`` to let :meth:`render` return the real frame, or None.
        action_repeat: number of frames that an action is held for in each step, whose rewards are summed.

    Raises:
        ValueError: if an argument is out of range, the environment has other actions or frames of another size than
            the world, it cannot be made, or only the files of ``world`` name its module.
    """

    # gymnasium.make reads it from the class, whose base has a property
    metadata = {"render_modes": ["rgb_array"], "render_fps": 8.75}  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        world: str = DEFAULT_WORLD,
        env: str = "",
        env_kwargs: dict[str, Any] | None = None,
        horizon: int = 0,
        observation: Literal["codes", "frame"] = "codes",
        history: int = 1,
        device: str = "cpu",
        render_mode: str | None = None,
        action_repeat: int = 1,
    ) -> None:
        for name, count, least in (("action_repeat", action_repeat, 1), ("horizon", horizon, 0)):
            if not isinstance(count, int | np.integer) or count < least:
                raise ValueError(f"{name} must be a whole number of {least} or more, got {count}")
        self.world = WorldModel.load(world, device)
        space = make_observation_space(self.world, observation, history)
        data = checkpoint.read_config(self.world.run)["data"]
        env = env_wrappers.canonical_id(env)
        settings = {**env_wrappers.recorded_kwargs(env, data), **(env_kwargs or {})}
        if render_mode:
            settings["render_mode"] = render_mode
        env = env or env_wrappers.check_trusted(data["environment"], self.world.run, "env=")
        real = env_wrappers.make_env(env, **settings)
        with env_wrappers.closed_on_error(real):
            self.world.check_episodes(describe(real, env, settings, {}))
        super().__init__(TimeLimit(real, horizon) if horizon else real)
        self.metadata = {**self.metadata, "render_fps": env_wrappers.frame_rate(real) / action_repeat}
        self.observation, self.history, self.action_repeat = observation, history, action_repeat
        self.observation_space = space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; returns the observation and the environment's info."""
        frame, info = self.env.reset(seed=seed, options=options)
        self._recent_codes = self._encode([frame]).repeat(self.history, 1, 1)
        return self._observation(), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action in the real environment, ``action_repeat`` times unless the episode ends."""
        total, terminated, truncated, info = 0.0, False, False, {}
        frames: deque[np.ndarray] = deque(maxlen=self.history)  # only those that are observed need to be encoded
        for _ in range(self.action_repeat):
            if not (terminated or truncated):
                frame, reward, terminated, truncated, info = self.env.step(action)
                frames.append(frame.copy())
                total += float(reward)
        self._recent_codes = torch.cat([self._recent_codes[len(frames) :], self._encode(list(frames))])
        return self._observation(), total, terminated, truncated, info

    def _encode(self, frames: list[np.ndarray]) -> torch.Tensor:
        return self.world.encode(torch.from_numpy(np.stack(frames)))  # (n, h, w)

    def _observation(self) -> np.ndarray:
        return make_observations(self.world, self._recent_codes[None], self.observation, self.history)[0]
