"""A dream beside the truth: the real environment under the same actions, and what the model makes of it."""

from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel import checkpoint, env_wrappers
from worldmodel.episodes.recording import Recording, describe
from worldmodel.metrics import frame_bits_per_code, psnr
from worldmodel.player.film import Film
from worldmodel.player.record import end_of
from worldmodel.player.sessions import HUMAN, Dream, Start, action_index, check_going
from worldmodel.player.view import View
from worldmodel.world_model import WorldModel

FIRST_FRAMES = 8  # real frames that the dream starts from


class BesideSession:
    """Plays the real environment and a dream of it under the same actions; the real episode's end is the end.

    Args:
        env: Gymnasium id; by default the environment that the world was trained on.
        env_kwargs: arguments of that environment, added to the recorded ones if ``env`` is not given.
        provenance: who plays, in a saved episode.

    Raises:
        ValueError: if the environment cannot be made, is not trusted, or has other actions than the world.
    """

    clips = 0
    takes_pictures = False
    agent = note = ""

    def __init__(
        self,
        world: WorldModel,
        env: str = "",
        env_kwargs: dict[str, Any] | None = None,
        provenance: dict[str, Any] = HUMAN,
    ) -> None:
        self.world, self.action_names = world, world.action_names
        env, recorded = (env_wrappers.canonical_id(env), {}) if env else recorded_environment(world)
        kwargs = {**recorded, **(env_kwargs or {})}
        self._env = env_wrappers.make_env(env, **kwargs)
        self.rate = env_wrappers.frame_rate(self._env)
        with env_wrappers.closed_on_error(self._env):
            world.check_actions(self._env.get_wrapper_attr("action_names"))
            self._schema = describe(self._env, env, kwargs, provenance)
        self._waiting = self.action_names.index("noop") if "noop" in self.action_names else 0
        self._view: View | None = None

    def start(self, start: Start) -> View:
        """Start the environment, wait for eight frames, and dream from them.

        Raises:
            ValueError: if the episode ends before.
        """
        self._view = None
        self._recording = Recording(self._env, start.seed, keep=False)
        frames, actions = [np.array(self._recording.observation)], np.full(FIRST_FRAMES - 1, self._waiting)
        for action in actions:
            self._recording.step(int(action))
            if self._recording.over:
                raise ValueError(f"the episode ended within {FIRST_FRAMES} frames: start with another seed")
            frames.append(np.array(self._recording.observation))
        first = np.stack(frames)
        self._dream = Dream(self.world, first, actions, start)
        window = max(self.world.dynamics.config.context_length, 2)
        self._codes: deque[Tensor] = deque(self.world.encode(first), window + 1)
        self._actions: deque[int] = deque(actions.tolist(), window)
        self._view = View(self._dream.frame, truth=first[-1])
        self.film = Film(self._view, self.rate, self._schema)
        return self._view

    def step(self, action: str) -> View:
        """Take an action by name in both; raises as :meth:`Session.step` does."""
        index, before = action_index(action, self.action_names), check_going(self._view)
        _, probability = self._dream.step(index)
        reward = self._recording.step(index)
        truth = np.array(self._recording.observation)
        scores = self._score(index, truth) if self._recording.has_latest_observation else (None, None)
        end, total = end_of(self._recording), before.reward + reward
        self._view = View(self._dream.frame, before.step + 1, total, probability, end, truth, *scores)
        self.film.add(self._view, index, reward, not self._recording.has_latest_observation)
        return self._view

    def close(self) -> None:
        """Close the environment."""
        self._view = None
        self._env.close()

    def _score(self, action: int, truth: np.ndarray) -> tuple[float, float]:
        """Return the PSNR of the dream, and the surprise of the real frame given the real past."""
        real = torch.from_numpy(truth)[None]
        self._codes.append(self.world.encode(real)[0])
        self._actions.append(action)
        surprise = last_frame_surprise(self.world, torch.stack(list(self._codes)), list(self._actions))
        return float(psnr(torch.from_numpy(self._dream.frame)[None], real)), surprise


def last_frame_surprise(world: WorldModel, codes: Tensor, actions: list[int]) -> float:
    """Return the bits per code of the last frame of codes (T, h, w), given those before it and T-1 actions."""
    steps = torch.tensor([[len(actions) - 1]])
    parts = (part.to(world.device) for part in (codes[None], torch.tensor([actions]), steps))
    return float(frame_bits_per_code(world.dynamics, *parts))


def recorded_environment(world: WorldModel) -> tuple[str, dict[str, Any]]:
    """Return the Gymnasium id and the arguments of the environment that a world was trained on.

    Raises:
        ValueError: if the world doesn't name one, or one of a module that is not trusted.
    """
    data = checkpoint.read_config(world.run)["data"]
    if not data.get("environment"):
        raise ValueError(
            f"{world.run / 'config.yaml'} names no environment to play beside the dream; give one as --env"
        )
    env = env_wrappers.canonical_id(data["environment"])
    return env_wrappers.check_trusted(env, world.run / "config.yaml"), data.get("kwargs", {})
