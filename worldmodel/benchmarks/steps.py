"""Steps of an environment: real, real and encoded, and dreamed."""

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from worldmodel import env_wrappers
from worldmodel.benchmarks.collect import cpu_seconds
from worldmodel.benchmarks.settings import Settings
from worldmodel.benchmarks.timing import Contestant, Section, Stopwatch, race

SIZES = (1, 16, 64, 256)  # dreams side by side
REAL_STEPS = 200
DREAMED_STEPS = 8  # of a single dream
HORIZON = 10_000  # of dreams, longer than they are watched


def steps(settings: Settings) -> Section:
    """Step the real world, the same seen through the VQ-VAE, and dreams of it, all under random actions."""
    run = str(settings.world.run)
    world = {"world": run, "device": str(settings.world.device)}
    reals = {f"real {settings.env}": env_wrappers.make(settings.env)}
    if reals[f"real {settings.env}"].get_wrapper_attr("action_names") == settings.world.action_names:
        reals["real, as codes"] = gym.make("envs:Encoded-v0", env=settings.env, **world)
    contestants = [Contestant(name, Walk(env), REAL_STEPS, "step") for name, env in reals.items()]
    precision = str(settings.world.dtype).removeprefix("torch.")
    shared = [(SIZES[-2], settings.threads)] if settings.threads > 1 and settings.world.device.type == "cpu" else []
    for size, threads in [*((size, 1) for size in SIZES), *shared]:
        kept = {"horizon": HORIZON, "threads": threads, "precision": precision}
        dream, count = gym.make_vec("envs:Dream-v0", num_envs=size, **kept, **world), -(-DREAMED_STEPS // size)
        name = f"dream, {size} at a time" + f", {threads} threads of the world's" * (threads > 1)
        contestants.append(Contestant(name, Stroll(dream, count), count * size, "step"))
    try:
        rows = race(contestants, settings.rounds, Stopwatch(settings.world.device, cpu_seconds))
    finally:
        for env in reals.values():
            env.close()
    return Section(rows, ["a dreamed step shows the codes of a frame; the game's own process is in the CPU time"])


class Walk:
    """Random steps of one environment, from episode to episode."""

    def __init__(self, env: gym.Env) -> None:
        self.env, self.random = env, np.random.default_rng(0)
        env.reset(seed=0)

    def __call__(self) -> None:
        """Go on for ``REAL_STEPS``."""
        for _ in range(REAL_STEPS):
            *_, terminated, truncated, _ = self.env.step(int(self.random.integers(self.env.action_space.n)))
            if terminated or truncated:
                self.env.reset()


class Stroll:
    """Random steps of a vector of environments, which begin anew by themselves."""

    def __init__(self, env: VectorEnv, count: int) -> None:
        self.env, self.count, self.random = env, count, np.random.default_rng(0)
        env.reset(seed=0)

    def __call__(self) -> None:
        """Go on for ``count`` steps each."""
        for _ in range(self.count):
            self.env.step(self.random.integers(self.env.single_action_space.n, size=self.env.num_envs))
