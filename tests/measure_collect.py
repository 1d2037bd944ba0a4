"""How much of the bare environment's speed recording keeps: ``python -m tests.measure_collect``. No test."""

import os
import statistics
import tempfile
from pathlib import Path

import numpy as np

from worldmodel.collect import Recorder, act

EPISODES, ROUNDS = 6, 9


def cpu_seconds() -> float:
    """CPU time of this process and of the game that it started (Linux)."""
    total = sum(os.times()[:2])
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def bare(recorder: Recorder, number: int) -> None:
    """Play what ``recorder.record(number)`` plays, and keep nothing."""
    world_seed, policy_seed = np.random.SeedSequence([recorder.seed, number]).generate_state(2)
    names = recorder.env.get_wrapper_attr("action_names")
    actions = act(recorder.policy, names, np.random.default_rng(policy_seed))
    recorder.env.reset(seed=int(world_seed))
    ended = False
    while not ended:
        *_, terminated, truncated, _ = recorder.env.step(next(actions))
        ended = terminated or truncated


def main() -> None:
    """Alternate the two, and print the median ratio of their CPU times."""
    with tempfile.TemporaryDirectory() as folder:
        recorder, ratios = Recorder(folder, "envs:Doom-v0", {}, "sticky", 0, 4000), []
        for turn in range(ROUNDS):
            spent = {}
            for play in (bare, Recorder.record) if turn % 2 else (Recorder.record, bare):
                before = cpu_seconds()
                for number in range(EPISODES):
                    play(recorder, number)
                spent[play] = cpu_seconds() - before
            ratios.append(spent[bare] / spent[Recorder.record])
        recorder.env.close()
    print(f"recording keeps {statistics.median(ratios):.2f} of the bare environment's steps/s (CPU time)")


if __name__ == "__main__":
    main()
