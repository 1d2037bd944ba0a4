"""An episode while it is played: what an environment shows and gives, gathered until it is an :class:`Episode`."""

from importlib.metadata import version
from typing import Any

import gymnasium as gym
import numpy as np

from worldmodel import env_wrappers
from worldmodel.episodes.episode import Episode, Objects
from worldmodel.episodes.schema import Schema

MAX_EPISODE_STEPS = 4000  # unless a caller gives another limit


class Recording:
    """Plays one episode from ``env.reset(seed=seed)`` on, and keeps all of it.

    An environment can use ``info`` for three things: ``{"final_observation_missing": True}`` if the observation after
    the last action is a placeholder, which is then left out; ``objects`` in view, (name, identity, box) each as in
    :class:`worldmodel.episodes.episode.Objects`; and ``{"reproducible": False}``, at reset, if the seed does not
    determine the episode.

    Args:
        keep: whether to keep what is needed for :meth:`episode`; otherwise only the latest step is.

    Attributes:
        observation: latest observation, also if it is a placeholder.
        terminated: whether the environment terminated the episode.
        truncated: whether the episode was cut off.
        has_latest_observation: whether the latest observation is real, not a placeholder.
    """

    def __init__(self, env: gym.Env, seed: int, keep: bool = True) -> None:
        self.observation, info = env.reset(seed=seed)
        self.terminated = self.truncated = False
        self.has_latest_observation = True
        self._env, self._seed, self._keep, self._reproducible = env, seed, keep, bool(info.get("reproducible", True))
        self._observations = [np.array(self.observation)]  # a copy, because environments may reuse the array
        self._objects: list[Any] = [info.get("objects")]
        self._num_steps = 0
        self._actions: list[int] = []
        self._rewards: list[float] = []

    def __len__(self) -> int:
        """Return the number of steps so far."""
        return self._num_steps

    @property
    def over(self) -> bool:
        """Whether the episode has ended."""
        return self.terminated or self.truncated

    def step(self, action: int, max_steps: int = 0) -> float:
        """Take an action; return the reward.

        Args:
            max_steps: number of steps after which the episode is truncated; 0 for no limit.
        """
        self.observation, reward, self.terminated, self.truncated, info = self._env.step(action)
        self._num_steps += 1
        self.has_latest_observation = not info.get("final_observation_missing")
        if self._keep:
            self._actions.append(action)
            self._rewards.append(float(reward))
            if self.has_latest_observation:
                self._observations.append(np.array(self.observation))
                self._objects.append(info.get("objects"))
        self.truncated = self.truncated or (0 < max_steps <= len(self) and not self.terminated)
        return float(reward)

    def episode(self) -> Episode:
        """Return what was played, one step or more; an episode that has not ended counts as truncated."""
        any_known = any(seen is not None for seen in self._objects)
        return Episode(
            observations=np.stack(self._observations),
            actions=np.array(self._actions),
            rewards=np.array(self._rewards, np.float64),
            terminated=self.terminated,
            truncated=self.truncated or not self.terminated,
            seed=self._seed,
            objects=Objects.gather([() if seen is None else seen for seen in self._objects]) if any_known else None,
            reproducible=self._reproducible,
        )


def episode_seeds(seed: int, number: int) -> tuple[int, int]:
    """Return the seeds of the environment and of the policy for episode ``number`` of a recording with ``seed``."""
    env_seed, policy_seed = np.random.SeedSequence([seed, number]).generate_state(2).tolist()
    return env_seed, policy_seed


def describe(env: gym.Env, name: str, kwargs: dict[str, Any], provenance: dict[str, Any]) -> Schema:
    """Return the schema of a store of an environment's episodes.

    Added to the provenance are the environment's engine and ``render_fps``, its steps per second in real time.
    """
    provenance = {**provenance, "engine": env.metadata.get("engine", f"gymnasium {version('gymnasium')}")}
    return Schema(
        observation_shape=env.observation_space.shape or (),
        observation_dtype=str(env.observation_space.dtype),
        action_names=env.get_wrapper_attr("action_names"),
        environment=name,
        kwargs=kwargs,
        provenance={**provenance, "render_fps": env_wrappers.frame_rate(env)},
    )
