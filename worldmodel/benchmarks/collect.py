"""Time of recording episodes compared with only playing them."""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from worldmodel.benchmarks.settings import Settings
from worldmodel.benchmarks.timing import Contestant, Section, Stopwatch, race
from worldmodel.episodes.collect import Recorder, scripted_actions
from worldmodel.episodes.recording import MAX_EPISODE_STEPS, episode_seeds

NUM_EPISODES = 12  # per run


def collect(settings: Settings) -> Section:
    """Time recording episodes and only playing the same ones; CPU time includes the process of the game."""
    with tempfile.TemporaryDirectory() as folder:
        recorder = make_recorder(folder, settings.env)
        steps = sum(recorder.record(number).steps for number in range(NUM_EPISODES))

        def play() -> None:
            for number in range(NUM_EPISODES):
                play_episode(recorder, number)

        def record() -> None:
            for number in range(NUM_EPISODES):
                recorder.record(number)

        contestants = [Contestant("playing", play, steps, "step"), Contestant("recording", record, steps, "step")]
        rows = race(contestants, settings.rounds, Stopwatch(torch.device("cpu"), cpu_seconds))
        recorder.env.close()
    assert rows[1].ratio is not None  # set by race
    remark = f"recording reaches {1 / rows[1].ratio:.0%} of the steps per CPU second of playing {settings.env}"
    return Section(rows, [remark])


def make_recorder(folder: str, env: str) -> Recorder:
    """Return a recorder of episodes of ``env`` under the sticky policy."""
    return Recorder(folder, env, {}, "sticky", 0, MAX_EPISODE_STEPS)


def play_episode(recorder: Recorder, number: int) -> None:
    """Play the episode that ``recorder.record(number)`` records, without keeping anything."""
    env_seed, policy_seed = episode_seeds(recorder.seed, number)
    actions = scripted_actions(
        recorder.policy, recorder.env.get_wrapper_attr("action_names"), np.random.default_rng(policy_seed)
    )
    recorder.env.reset(seed=env_seed)
    for _ in range(recorder.max_episode_steps):
        *_, terminated, truncated, _ = recorder.env.step(next(actions))
        if terminated or truncated:
            return


def cpu_seconds() -> float:
    """Return the CPU time of this process and, on Linux, of its child processes such as the game."""
    total = time.process_time()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text("utf-8").rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total
