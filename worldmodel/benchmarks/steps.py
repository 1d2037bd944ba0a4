"""Time of environment steps: real, real with encoded observations, and dreamed."""

from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from worldmodel import checkpoint, env_wrappers
from worldmodel.benchmarks.collect import cpu_seconds
from worldmodel.benchmarks.settings import Settings
from worldmodel.benchmarks.timing import Contestant, Section, Stopwatch, race

NUM_DREAMS = (1, 16, 64, 256)  # per vector environment
REAL_STEPS = 200
DREAMED_STEPS = 8  # per run with one dream
DREAM_HORIZON = 10_000  # longer than any run


def steps(settings: Settings) -> Section:
    """Time random steps of the real environment, the same encoded by the VQ-VAE, and dreams."""
    model = settings.world
    world: dict[str, Any] = {"world": str(model.run), "device": str(model.device)}
    env_kwargs = env_wrappers.recorded_kwargs(settings.env, checkpoint.read_config(model.run)["data"])
    envs = {f"real {settings.env}": env_wrappers.make_env(settings.env, **env_kwargs)}
    if envs[f"real {settings.env}"].get_wrapper_attr("action_names") == model.action_names:
        envs["real, as codes"] = gym.make("envs:Encoded-v0", env=settings.env, **world)
    contestants = [Contestant(name, RandomSteps(env), REAL_STEPS, "step") for name, env in envs.items()]
    sizes = [(size, 1) for size in NUM_DREAMS]
    if settings.threads > 1 and model.device.type == "cpu":
        sizes.append((NUM_DREAMS[-2], settings.threads))
    kwargs = {**world, "horizon": DREAM_HORIZON, "precision": model.precision}
    for size, threads in sizes:
        dream, count = gym.make_vec("envs:Dream-v0", size, threads=threads, **kwargs), -(-DREAMED_STEPS // size)
        name = f"dream, batch {size}" + f", {threads} threads of the world model" * (threads > 1)
        contestants.append(Contestant(name, RandomVectorSteps(dream, count), count * size, "step"))
    try:
        rows = race(contestants, settings.rounds, Stopwatch(model.device, cpu_seconds))
    finally:
        for env in envs.values():
            env.close()
    return Section(rows, ["dreams return codes as observations; CPU time includes the process of the game"])


class RandomSteps:
    """Random steps of one environment, reset at the end of each episode."""

    def __init__(self, env: gym.Env) -> None:
        self.env, self.random = env, np.random.default_rng(0)
        self.num_actions = cast(gym.spaces.Discrete, env.action_space).n
        env.reset(seed=0)

    def __call__(self) -> None:
        """Take ``REAL_STEPS`` steps."""
        for _ in range(REAL_STEPS):
            *_, terminated, truncated, _ = self.env.step(int(self.random.integers(self.num_actions)))
            if terminated or truncated:
                self.env.reset()


class RandomVectorSteps:
    """Random steps of a vector environment, which resets itself."""

    def __init__(self, env: VectorEnv, count: int) -> None:
        self.env, self.count, self.random = env, count, np.random.default_rng(0)
        self.num_actions = cast(gym.spaces.Discrete, env.single_action_space).n
        env.reset(seed=0)

    def __call__(self) -> None:
        """Take ``count`` steps in each environment."""
        for _ in range(self.count):
            self.env.step(self.random.integers(self.num_actions, size=self.env.num_envs))
