"""What recording costs beside the bare environment."""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from worldmodel.benchmarks.settings import Settings
from worldmodel.benchmarks.timing import Contestant, Section, Stopwatch, race
from worldmodel.collect import Recorder, act

EPISODES = 12  # played in a run
LONGEST = 4000  # steps of an episode


def collect(settings: Settings) -> Section:
    """Record episodes, and play the same ones without keeping anything; the game's own process is in the CPU time."""
    with tempfile.TemporaryDirectory() as folder:
        player = recorder(folder, settings.env)
        steps = sum(player.record(number).steps for number in range(EPISODES))

        def bare() -> None:
            for number in range(EPISODES):
                play(player, number)

        def record() -> None:
            for number in range(EPISODES):
                player.record(number)

        contestants = [Contestant("bare", bare, steps, "step"), Contestant("recording", record, steps, "step")]
        rows = race(contestants, settings.rounds, Stopwatch(torch.device("cpu"), cpu_seconds))
        player.env.close()
    keeps = f"recording keeps {1 / rows[1].ratio:.0%} of the steps/s of the bare {settings.env}, in CPU time"
    return Section(rows, [keeps])


def recorder(folder: str, env: str) -> Recorder:
    """A recorder of sticky episodes of ``env`` into ``folder``."""
    return Recorder(folder, env, {}, "sticky", 0, LONGEST)


def play(player: Recorder, number: int) -> None:
    """Play what ``player.record(number)`` plays, and keep nothing."""
    world_seed, policy_seed = np.random.SeedSequence([player.seed, number]).generate_state(2)
    actions = act(player.policy, player.env.get_wrapper_attr("action_names"), np.random.default_rng(policy_seed))
    player.env.reset(seed=int(world_seed))
    for _ in range(player.longest):
        *_, terminated, truncated, _ = player.env.step(next(actions))
        if terminated or truncated:
            return


def cpu_seconds() -> float:
    """CPU time of this process and, on Linux, of the game that it started."""
    total = time.process_time()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text("utf-8").rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total
