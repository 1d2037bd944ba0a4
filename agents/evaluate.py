"""Measure an agent: ``python -m agents.evaluate --agent runs/agent --episodes 100``, beside one that acts at random."""

import json
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
import torch
from tqdm import tqdm

from agents.policy import Policy, read
from worldmodel import config, env_wrappers, media
from worldmodel.checks import check_seed
from worldmodel.files import check_file, write_atomically
from worldmodel.metrics import interval

DREAM, ENCODED = "envs:Dream-v0", "envs:Encoded-v0"
CODED = (DREAM, ENCODED)  # show what an agent sees; other worlds show frames, which it encodes
LONGEST = 4000  # steps of an episode, if nothing else is said
SEEDS = 1  # makes the seeds of evaluations others than those of recorded episodes


class Player(Protocol):
    """Who can be evaluated."""

    action_names: tuple[str, ...]

    def start(self, seed: int) -> None: ...
    def act(self, frame: np.ndarray) -> int: ...
    def choose(self, observation: np.ndarray) -> int: ...


class Place(NamedTuple):
    """Where to play."""

    env: gym.Env
    coded: bool  # whether it shows what agents see, and not frames
    horizon: int
    kwargs: dict[str, Any]  # what it was made with


class Result(NamedTuple):
    """What an episode came to."""

    episode_return: float
    steps: int


class RandomPolicy:
    """Draws an action anew every step."""

    def __init__(self, action_names: tuple[str, ...]) -> None:
        self.action_names = action_names

    def start(self, seed: int) -> None:
        """Begin an episode."""
        self._random = np.random.default_rng(seed)

    def act(self, frame: np.ndarray) -> int:
        """Any action."""
        return int(self._random.integers(len(self.action_names)))

    choose = act


def evaluate(
    agent: str,
    env: str = "",
    env_kwargs: dict[str, Any] = {},
    episodes: int = 100,
    seed: int = 0,
    horizon: int = 0,
    greedy: bool = False,
    video: str = "",
    out: str = "",
) -> None:
    """Play with an agent, in the real world by default, and with a random policy under the same seeds.

    Args:
        agent: run folder of the agent.
        env: Gymnasium id of the world; by default the real one that its dreams are of, if that is of this package.
            envs:Dream-v0 is its own dream.
        env_kwargs: what to make it with, beside what the agent's training says of that world.
        episodes: to play, by each of the two.
        seed: of the worlds and the policies.
        horizon: steps after which an episode is cut off; by default that of the agent's training, or 4000.
        greedy: take the agent's likeliest action, and not one drawn by its probability.
        video: film of the agent's first episode to write, .gif, .mp4 or .png.
        out: JSON file to write all returns into.
    """
    if episodes < 1 or horizon < 0:
        raise ValueError(f"--episodes must be 1 or more and --horizon 0 or more, got {episodes} and {horizon}")
    check_seed(seed)
    if video:
        media.check(Path(video))
    if out:
        check_file(Path(out))
    torch.set_num_threads(1)
    policy, data = Policy.load(agent, greedy), read(Path(agent))["data"]
    place = find(data, env, env_kwargs, horizon)
    names = tuple(place.env.get_wrapper_attr("action_names"))
    if names != policy.action_names:
        raise ValueError(f"the agent {agent} knows the actions {policy.action_names}, the world has {names}")
    rows = {
        "agent": play(place, policy, episodes, seed, "agent", Path(video) if video else None),
        "random": play(place, RandomPolicy(names), episodes, seed, "random"),
    }
    print(f"{env or data['environment']}, {episodes} episodes of {place.horizon} steps at most")
    for name, results in rows.items():
        scores = summary(results)
        print(
            f"{name:7} return {scores['return']:.4g} ± {scores['deviation']:.4g}, "
            f"mean in [{scores['low']:.4g}, {scores['high']:.4g}], {scores['steps']:.4g} steps"
        )
    if out:
        facts = {"run": agent, "weights": policy.digest, "env": env or data["environment"]}
        facts |= {"env_kwargs": place.kwargs, "horizon": place.horizon, "seed": seed, "greedy": greedy}
        parts = {
            name: {**summary(results), "returns": [result.episode_return for result in results]}
            for name, results in rows.items()
        }
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(out), json.dumps({**facts, **parts}, indent=1).encode())


def find(data: dict[str, Any], env: str = "", env_kwargs: dict[str, Any] = {}, horizon: int = 0) -> Place:
    """The world to play in, for an agent whose config.yaml says ``data``."""
    trained = data["env_kwargs"]
    horizon = horizon or trained.get("horizon") or LONGEST
    if env in CODED:
        shared = {"world", "observation", "history"}
        kept = trained.keys() - {"device", "threads", "precision"} if env == data["env"] else shared & trained.keys()
        made = {**{name: trained[name] for name in kept}, "horizon": horizon, **env_kwargs}
        return Place(gym.make(env, render_mode="rgb_array", **made), True, horizon, made)
    if env in ("", data["environment"]):
        env_kwargs = {**data["kwargs"], **env_kwargs}
    world = env or env_wrappers.trusted(data["environment"], "the agent's config.yaml")
    return Place(env_wrappers.make(world, **env_kwargs), False, horizon, env_kwargs)


def real_world(data: dict[str, Any], env: str = "") -> Place:
    """The real world behind an agent's dreams.

    Args:
        env: its id; by default what ``data`` says, which must be of this package.

    Raises:
        ValueError: if it cannot be made here, or has other actions.
    """
    try:
        place = find(data, env or env_wrappers.trusted(data["environment"], "the world's config.yaml", "--real "))
    except ValueError as error:
        raise ValueError(f"{error}; or train without evaluations: --train.evaluate_every 0") from error
    names = tuple(place.env.get_wrapper_attr("action_names"))
    if names != tuple(data["action_names"]):
        raise ValueError(f"the dream knows the actions {data['action_names']}, the real world has {names}")
    return place


def play(
    place: Place, player: Player, episodes: int, seed: int, name: str = "", video: Path | None = None
) -> list[Result]:
    """Play episodes; number n is a function of the seed and n.

    Args:
        video: film of the first one to write.
    """
    results = []
    for number in tqdm(range(episodes), desc=name, unit="episode", leave=False):
        world_seed, policy_seed = np.random.SeedSequence([seed, number, SEEDS]).generate_state(2).tolist()
        frames: list[np.ndarray] | None = [] if video and not number else None
        results.append(play_one(place, player, world_seed, policy_seed, frames))
        if frames:
            media.write(video, np.stack(frames), fps=place.env.metadata.get("render_fps") or 8.75)
    return results


def play_one(
    place: Place, player: Player, world_seed: int, policy_seed: int, frames: list[np.ndarray] | None = None
) -> Result:
    """Play one episode, and add what was seen to ``frames`` if they are given."""
    env, total = place.env, 0.0
    look = player.choose if place.coded else player.act
    observation, _ = env.reset(seed=world_seed)
    player.start(policy_seed)
    for steps in count(1):
        if frames is not None:
            frames.append(env.render() if place.coded else observation)
        observation, reward, terminated, truncated, _ = env.step(look(observation))
        total += float(reward)
        if terminated or truncated or steps >= place.horizon:
            return Result(total, steps)
    raise AssertionError


def summary(results: list[Result]) -> dict[str, float]:
    """Mean return with its 95 % interval, the deviation of returns, and mean steps."""
    returns = torch.tensor([result.episode_return for result in results], dtype=torch.float64)
    mean = interval(returns)
    return {
        "return": mean["mean"],
        "deviation": float(returns.std(correction=0)),
        "low": mean["low"],
        "high": mean["high"],
        "steps": float(np.mean([result.steps for result in results])),
    }


if __name__ == "__main__":
    config.run(evaluate)
