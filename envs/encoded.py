"""A real world seen as an agent sees it in the dream: through the VQ-VAE of a world model."""

from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import TimeLimit

from envs.dream import observation_space, show
from worldmodel import checkpoint, env_wrappers
from worldmodel.world_model import DEFAULT, WorldModel


class EncodedEnv(gym.Wrapper):
    """The world that a model learnt from, with the observations of ``Dream-v0``.

    Args:
        world: a shipped world's name, or the run folder of a prior.
        env: Gymnasium id of the real world; by default the one that ``world`` was recorded in, if that is of this
            package.
        env_kwargs: what to make it with; by default what it was recorded with.
        horizon: steps after which an episode is truncated; 0 leaves that to the world.
        observation: codes, or frames as the VQ-VAE shows them.
        history: pictures shown at once, the oldest first; the first one stands for those before it.
        device: of the VQ-VAE.
        render_mode: ``"rgb_array"`` lets :meth:`render` give the real frame.

    Raises:
        ValueError: if the actions of the two worlds differ, or the real one cannot be made, or is of a module that
            only the files of ``world`` name.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8.75}  # gymnasium.make asks the class for it

    def __init__(
        self,
        world: str = DEFAULT,
        env: str = "",
        env_kwargs: dict[str, Any] | None = None,
        horizon: int = 0,
        observation: Literal["codes", "frame"] = "codes",
        history: int = 1,
        device: str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        self.world = WorldModel.load(world, device)
        data = checkpoint.read_config(self.world.run)["data"]
        settings = {**(data["kwargs"] if env in ("", data["environment"]) else {}), **(env_kwargs or {})}
        if render_mode:
            settings["render_mode"] = render_mode
        real = env_wrappers.make(env or env_wrappers.trusted(data["environment"], self.world.run, "env="), **settings)
        self.world.check_actions(real.get_wrapper_attr("action_names"))
        super().__init__(TimeLimit(real, horizon) if horizon else real)
        self.observation, self.history = observation, history
        self.observation_space = observation_space(self.world, observation, history)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode."""
        frame, info = self.env.reset(seed=seed, options=options)
        self._recent = self._encode(frame).repeat(self.history, 1, 1)
        return self._show(), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action."""
        frame, reward, terminated, truncated, info = self.env.step(action)
        self._recent = torch.cat([self._recent[1:], self._encode(frame)])
        return self._show(), float(reward), terminated, truncated, info

    def _encode(self, frame: np.ndarray) -> torch.Tensor:
        return self.world.encode(torch.from_numpy(frame.copy())[None])  # (1, h, w)

    def _show(self) -> np.ndarray:
        return show(self.world, self._recent[None], self.observation, self.history)[0]
