"""Play episodes with an agent or a random policy, in the real environment or in a dream."""

import itertools
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import gymnasium as gym
import numpy as np
import torch
from tqdm import tqdm

from worldmodel import env_wrappers, media
from worldmodel.action_script import parse_actions
from worldmodel.episodes.recording import MAX_EPISODE_STEPS
from worldmodel.stats import bootstrap_interval

DREAM_ENV, ENCODED_ENV = "envs:Dream-v0", "envs:Encoded-v0"
ENCODED_ENVS = (DREAM_ENV, ENCODED_ENV)  # give an agent's observations; others give frames, which the agent encodes
TRAINING_ONLY = {"device", "threads", "precision", "termination_cost", "starts_near_termination"}
EVALUATION_STREAM = 1  # keeps the seeds of evaluation apart from those of recording


class Player(Protocol):
    """A policy that can be evaluated."""

    action_names: tuple[str, ...]

    def start(self, seed: int) -> None: ...
    def act(self, frame: np.ndarray, /) -> int: ...
    def choose(self, observation: np.ndarray, /) -> int: ...


class EvaluationEnv(NamedTuple):
    """An environment to evaluate in."""

    env: gym.Env
    env_id: str
    encoded: bool  # whether its observations are an agent's, not frames
    horizon: int  # steps after which an episode is cut off
    env_kwargs: dict[str, Any]
    action_repeat: int = 1  # steps that an action is held for if encoded; on frames, a player holds its own


class Result(NamedTuple):
    """Return and length of an episode."""

    episode_return: float
    steps: int


class BaselinePolicy(ABC):
    """A policy without a network, which holds each action that it chooses.

    Args:
        action_names: names of actions 0, 1, ….
        action_repeat: number of frames that :meth:`act` holds each action for, as an agent's policy does.
    """

    def __init__(self, action_names: tuple[str, ...], action_repeat: int = 1) -> None:
        self.action_names, self.action_repeat = action_names, action_repeat

    def start(self, seed: int) -> None:
        """Start an episode."""
        self._num_frames, self._held = 0, 0

    def act(self, frame: np.ndarray) -> int:
        """Return the action to take after a frame of the real environment."""
        if self._num_frames % self.action_repeat == 0:
            self._held = self.choose(frame)
        self._num_frames += 1
        return self._held

    @abstractmethod
    def choose(self, observation: np.ndarray) -> int:
        """Return a new action."""


class RandomPolicy(BaselinePolicy):
    """Samples uniformly random actions."""

    def start(self, seed: int) -> None:
        """Start an episode."""
        super().start(seed)
        self._random = np.random.default_rng(seed)

    def choose(self, observation: np.ndarray) -> int:
        """Return a new random action."""
        return int(self._random.integers(len(self.action_names)))


class ScriptedPolicy(BaselinePolicy):
    """Takes the actions of a script such as ``forward:3,look_left``, over and over.

    Raises:
        ValueError: if the script names an unknown action or an invalid number.
    """

    def __init__(self, action_names: tuple[str, ...], script: str, action_repeat: int = 1) -> None:
        super().__init__(action_names, action_repeat)
        self._script = parse_actions(script, action_names)

    def start(self, seed: int) -> None:
        """Start an episode, and the script."""
        super().start(seed)
        self._actions = itertools.cycle(self._script.tolist())

    def choose(self, observation: np.ndarray) -> int:
        """Return the next action of the script."""
        return next(self._actions)


def make_encoded_env(env_id: str, kwargs: dict[str, Any]) -> gym.Env:
    """Make an environment of ENCODED_ENVS.

    Raises:
        ValueError: if its arguments are unknown or out of range.
    """
    try:
        return gym.make(env_id, **kwargs)
    except TypeError as error:
        raise ValueError(f"cannot make --env {env_id} with {kwargs}: {error}") from error


def make_evaluation_env(
    data: dict[str, Any], env: str = "", env_kwargs: dict[str, Any] = {}, horizon: int = 0
) -> EvaluationEnv:
    """Make an environment to evaluate an agent in.

    Args:
        data: data section of the agent's config.yaml.
        env: Gymnasium id; by default the real environment behind the agent's dreams.
        env_kwargs: arguments of the environment, added to those of the agent's training.
        horizon: steps after which an episode is cut off; 0 for the one in ``data``, or 4000.
    """
    env, trained = env_wrappers.canonical_id(env), data["env_kwargs"]
    horizon = horizon or data.get("evaluation_horizon", trained.get("horizon")) or MAX_EPISODE_STEPS
    if env in ENCODED_ENVS:
        shared = {"world", "observation", "history", "action_repeat"}
        kept = trained.keys() - TRAINING_ONLY if env == data["env"] else shared & trained.keys()
        env_kwargs = {**{name: trained[name] for name in kept}, "horizon": horizon, **env_kwargs}
        action_repeat = env_kwargs.get("action_repeat", 1)
        if not isinstance(action_repeat, int) or action_repeat < 1:
            raise ValueError(f"action_repeat must be a whole number of 1 or more, got {action_repeat}")
        # steps are frames, as in the real environment, so that each is counted and filmed
        made = make_encoded_env(env, {"render_mode": "rgb_array", **env_kwargs, "action_repeat": 1})
        return EvaluationEnv(made, env, True, horizon, env_kwargs, action_repeat)
    env_kwargs = {**env_wrappers.recorded_kwargs(env, data), **env_kwargs}
    env = env or env_wrappers.check_trusted(data["environment"], "the agent's config.yaml")
    return EvaluationEnv(env_wrappers.make_env(env, **env_kwargs), env, False, horizon, env_kwargs)


def make_real_env(data: dict[str, Any], env: str = "") -> EvaluationEnv:
    """Make the real environment behind an agent's dreams.

    Args:
        data: data section of the agent's config.yaml.
        env: Gymnasium id; by default the one in ``data``, which must be part of this package.

    Raises:
        ValueError: if the environment cannot be made, or has other actions than the dream.
    """
    try:
        env = env or env_wrappers.check_trusted(data["environment"], "the world's config.yaml", "--real ")
        real = make_evaluation_env(data, env)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{error}; or train without evaluations: --train.evaluate_every 0") from error
    names = tuple(real.env.get_wrapper_attr("action_names"))
    if names != tuple(data["action_names"]):
        raise ValueError(f"the dream knows the actions {data['action_names']}, the real environment has {names}")
    return real


def play_episodes(
    evaluation_env: EvaluationEnv,
    player: Player,
    episodes: int,
    seed: int,
    name: str = "",
    film: list[np.ndarray] | None = None,
) -> list[Result]:
    """Play episodes, of which number n depends on ``seed`` and n alone.

    Args:
        name: label of the progress bar.
        film: list to append the frames (H, W, 3) uint8 of the first episode to.
    """
    results = []
    for number in tqdm(range(episodes), desc=name, unit="episode", leave=False):
        env_seed, policy_seed = np.random.SeedSequence([seed, number, EVALUATION_STREAM]).generate_state(2).tolist()
        frames = None if number else film
        results.append(_play_episode(evaluation_env, player, env_seed, policy_seed, frames))
    return results


def write_film(path: Path, film: list[np.ndarray], beside: list[np.ndarray], fps: float) -> None:
    """Write frames (H, W, 3) uint8 as a video, next to those of another film unless that is empty.

    The last frame of the shorter film stays, at half its brightness.
    """
    films = [list(frames) for frames in (film, beside) if frames]
    length = max(map(len, films))
    for frames in films:
        frames += [frames[-1] // 2] * (length - len(frames))
    media.write(path, np.concatenate([np.stack(frames) for frames in films], axis=2), fps=fps)


def _play_episode(
    evaluation_env: EvaluationEnv, player: Player, env_seed: int, policy_seed: int, frames: list[np.ndarray] | None
) -> Result:
    """Play one episode, and append its frames to ``frames`` unless it is None."""
    env, encoded, episode_return, steps, over = evaluation_env.env, evaluation_env.encoded, 0.0, 0, False
    action = 0
    observation, _ = env.reset(seed=env_seed)
    player.start(policy_seed)
    while not over:
        if frames is not None:
            frames.append(cast(np.ndarray, env.render()) if encoded else observation)
        if not encoded:
            action = player.act(observation)
        elif steps % evaluation_env.action_repeat == 0:
            action = player.choose(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        episode_return, steps = episode_return + float(reward), steps + 1
        over = terminated or truncated or steps >= evaluation_env.horizon
    return Result(episode_return, steps)


def summary(results: list[Result]) -> dict[str, float]:
    """Return the mean return with its 95% interval, the standard deviation of returns, and the mean steps."""
    returns = torch.tensor([result.episode_return for result in results], dtype=torch.float64)
    mean = bootstrap_interval(returns)
    return {
        "return": mean["mean"],
        "deviation": float(returns.std(correction=0)),
        "low": mean["low"],
        "high": mean["high"],
        "steps": float(np.mean([result.steps for result in results])),
    }
