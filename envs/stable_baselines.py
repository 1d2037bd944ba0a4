"""Dreams for Stable-Baselines3, whose vectorized environments have an interface of their own."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

from envs.dream import DreamVectorEnv


class StableBaselinesDreams(VecEnv):
    """B dreams that step together, as a Stable-Baselines3 ``VecEnv``.

    Args:
        num_envs: number of dreams, B.
        settings: arguments of :class:`envs.dream.DreamEnv`.
    """

    def __init__(self, num_envs: int, **settings: Any) -> None:
        self.dreams = DreamVectorEnv(num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **settings)
        super().__init__(num_envs, self.dreams.single_observation_space, self.dreams.single_action_space)

    def reset(self) -> np.ndarray:
        """Start all dreams with the seeds of :meth:`seed`, and return their observations."""
        observations, _ = self.dreams.reset(seed=self._seeds)
        self._reset_seeds()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions (B,) for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Take the actions; return observations, rewards (B,) float32, which dreams ended (B,), and their infos.

        An ended dream starts anew at once; its info has the ``terminal_observation``.
        """
        observations, rewards, terminated, truncated, infos = self.dreams.step(self._actions)
        ended, rows = terminated | truncated, [{} for _ in range(self.num_envs)]
        for row in np.flatnonzero(ended):
            cut = bool(truncated[row] and not terminated[row])
            rows[row] = {"terminal_observation": infos["final_obs"][row], "TimeLimit.truncated": cut}
        return observations, rewards.astype(np.float32), ended, rows

    def close(self) -> None:
        """Close the dreams."""
        self.dreams.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of the dreams, once for each of them; the spaces are those of a single dream."""
        single = {"observation_space": "single_observation_space", "action_space": "single_action_space"}
        return [getattr(self.dreams, single.get(attr_name, attr_name))] * self._count(indices)

    def get_images(self) -> list[np.ndarray | None]:
        """Return the current frame of each dream with ``render_mode="rgb_array"``, else None for each."""
        frames = self.dreams.render()
        return [None] * self.num_envs if frames is None else list(frames)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of all dreams."""
        setattr(self.dreams, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Raise an error: dreams that step together have no methods of their own.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(f"dreams have no method {method_name} of their own")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Return False for each dream: none has a wrapper of its own."""
        return [False] * self._count(indices)

    def _count(self, indices: int | Iterable[int] | None) -> int:
        return len(list(self._get_indices(indices)))
