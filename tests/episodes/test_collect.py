"""Recording continues where it was stopped, and episodes do not depend on which process recorded them."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_world import TinyWorld
from worldmodel.episodes.collect import MAX_HOLD_STEPS, Recorder, collect, play_episode, scripted_actions
from worldmodel.episodes.store import EpisodeStore
from worldmodel.files import locked

WORLD = "tests.tiny_world:Tiny-v0"


def command(store: Path, *flags: str, env: str = WORLD) -> list[str]:
    return [sys.executable, "-m", "worldmodel.collect", "--env", env, "--store", str(store), *flags]


def run(store: Path, *flags: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run(command(store, *flags, **more), capture_output=True, text=True, timeout=120)


def wait_for(store: Path, episodes: int, process: subprocess.Popen) -> None:
    """Wait until a process has recorded so many episodes."""
    index = store / "index.jsonl"
    while not index.exists() or index.read_bytes().count(b"\n") < episodes:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def content(store: Path) -> dict[int, str]:
    """The checksum of each episode by number, in a store that is whole and says nothing twice."""
    opened = EpisodeStore(store)
    assert [problem for _, problem in opened.verify() if problem] == []
    assert (store / "index.jsonl").read_bytes().count(b"\n") == len(opened)
    return {entry.number: entry.sha256 for entry in opened.entries}


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Twenty episodes that one process recorded."""
    store = tmp_path_factory.mktemp("serial") / "store"
    collect(str(store), WORLD, episodes=20)
    return content(store)


def test_recording_on_adds_new_episodes_and_leaves_the_others_as_they_were(serial, tmp_path):
    store = tmp_path / "store"
    collect(str(store), WORLD, episodes=8)
    first, files = content(store), {path: path.stat() for path in (store / "episodes").iterdir()}
    collect(str(store), WORLD, episodes=20)
    assert first == {number: serial[number] for number in range(8)}
    assert content(store) == serial
    assert all(path.stat() == stat for path, stat in files.items())
    collect(str(store), WORLD, episodes=20)
    assert content(store) == serial


def test_a_goal_in_frames_is_reached_with_the_last_episode_and_not_before(tmp_path):
    collect(str(tmp_path / "store"), WORLD, frames=100)
    entries = EpisodeStore(tmp_path / "store").entries
    assert sum(entry.observations for entry in entries[:-1]) < 100 <= sum(entry.observations for entry in entries)


def test_another_seed_records_other_episodes(serial, tmp_path):
    collect(str(tmp_path / "store"), WORLD, episodes=3, seed=1)
    assert not set(content(tmp_path / "store").values()) & set(serial.values())


def test_an_episode_is_what_its_seed_and_actions_give(tmp_path):
    collect(str(tmp_path / "store"), WORLD, episodes=1)
    (episode,) = EpisodeStore(tmp_path / "store")
    world = TinyWorld()
    frames, rewards = [world.reset(seed=episode.seed)[0]], []
    for action in episode.actions:
        frame, reward, terminated, _, _ = world.step(action)
        frames.append(frame)
        rewards.append(reward)
    assert np.array_equal(episode.observations, frames) and np.array_equal(episode.rewards, rewards)
    assert (episode.terminated, episode.truncated) == (terminated, False) == (True, False)


def test_a_world_that_draws_into_one_picture_is_recorded_frame_by_frame():
    class Reusing:
        picture = np.zeros((8, 8, 3), np.uint8)

        def reset(self, seed):
            self.picture[:] = 0
            return self.picture, {}

        def step(self, action):
            self.picture += 1
            return self.picture, 0.0, bool(self.picture.max() == 5), False, {}

    assert play_episode(Reusing(), lambda frame: 0, 0, 99).observations[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), 1e30])
def test_a_reward_that_is_no_number_is_refused(reward):
    class World:
        def reset(self, seed):
            return np.zeros((8, 8, 3), np.uint8), {}

        def step(self, action):
            return np.zeros((8, 8, 3), np.uint8), reward, True, False, {}

    with pytest.raises(ValueError, match="rewards must be numbers from"):
        play_episode(World(), lambda frame: 0, 0, 99)


def test_an_episode_that_goes_on_too_long_is_cut_off_and_marked_truncated(tmp_path):
    collect(str(tmp_path / "store"), WORLD, episodes=2, max_episode_steps=5)
    for episode in EpisodeStore(tmp_path / "store"):
        assert len(episode) == 5 and episode.truncated and not episode.terminated


@pytest.mark.slow
@pytest.mark.engine
def test_doom_records_the_same_episode_twice(tmp_path):
    pytest.importorskip("vizdoom")
    for name in ("one", "two"):
        collect(str(tmp_path / name), "envs:Doom-v0", episodes=1, max_episode_steps=30)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    (episode,) = EpisodeStore(tmp_path / "one")
    assert episode.observations.shape == (31, 84, 84, 3)
    assert len(np.unique(episode.observations)) > 50


@pytest.mark.slow
@pytest.mark.ray
def test_two_workers_record_what_one_process_records(serial, tmp_path):
    done = run(tmp_path / "store", "--episodes", "20", "--workers", "2")  # starts a cluster of its own
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "store") == serial


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_no_episode_and_doubles_none(serial, cluster, tmp_path):
    dies = tmp_path / "killed"
    flags = ["--episodes", "20", "--workers", "2", "--address", cluster, "--env.dies", str(dies)]
    done = run(tmp_path / "store", *flags)
    assert done.returncode == 0, done.stderr
    assert dies.exists()
    assert content(tmp_path / "store") == serial


@pytest.mark.slow
def test_two_workers_with_a_goal_in_frames_record_at_most_one_episode_more(serial, cluster, tmp_path):
    done = run(tmp_path / "store", "--frames", "200", "--workers", "2", "--address", cluster)
    assert done.returncode == 0, done.stderr
    collect(str(tmp_path / "serial"), WORLD, frames=200)
    one, two = content(tmp_path / "serial"), content(tmp_path / "store")
    assert one.items() <= two.items() and len(two) <= len(one) + 1
    assert {number: two[number] for number in two} == {number: serial[number] for number in range(len(two))}


@pytest.mark.slow
def test_more_workers_than_the_cluster_has_are_refused(cluster, tmp_path):
    done = run(tmp_path / "store", "--episodes", "20", "--workers", "3", "--address", cluster)
    assert done.returncode == 1
    assert "3 workers need 3 CPUs, Ray has 2" in done.stderr


def test_episodes_that_another_process_adds_before_the_lock_are_kept(tmp_path, monkeypatch):
    other, lock = Recorder(str(tmp_path), WORLD, {}, "sticky", 0, 4000), locked

    @contextmanager
    def locked_after_the_other(path, wait):
        other.store.add_to_index(other.record(0))
        with lock(path, wait):
            yield

    monkeypatch.setattr("worldmodel.files.locked", locked_after_the_other)
    collect(str(tmp_path), WORLD, episodes=2)
    assert sorted(content(tmp_path)) == [0, 1]


def test_two_processes_do_not_record_into_one_store(tmp_path):
    collect(str(tmp_path), WORLD, episodes=1)
    with locked(tmp_path / "collect.lock"), pytest.raises(ValueError, match="another process is recording into"):
        collect(str(tmp_path), WORLD, episodes=2)
    assert list(content(tmp_path)) == [0]


@pytest.mark.slow
def test_a_world_that_breaks_in_a_worker_is_an_error_that_says_how(cluster, tmp_path):
    flags = ["--episodes", "20", "--workers", "2", "--address", cluster, "--env.breaks", "50"]
    done = run(tmp_path / "store", *flags)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("RuntimeError: the world broke after 50 steps")
    content(tmp_path / "store")


@pytest.mark.slow
def test_a_collector_that_is_killed_goes_on_when_it_is_run_again(serial, tmp_path):
    store, flags = tmp_path / "store", ["--episodes", "20", "--env.pause", "0.002"]
    for episodes in (1, 7, 13):
        process = subprocess.Popen(command(store, *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_for(store, episodes, process)
        process.kill()
        process.communicate()
        assert content(store).items() <= serial.items()
    assert run(store, *flags).returncode == 0
    assert content(store) == serial


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.slow
@pytest.mark.parametrize("world", [WORLD, pytest.param("envs:Doom-v0", marks=pytest.mark.engine)])
def test_control_c_and_sigterm_leave_a_store_to_continue_and_no_engine(world, number, code, tmp_path):
    if world != WORLD:
        pytest.importorskip("vizdoom")
    store = tmp_path / "store"
    process = subprocess.Popen(
        command(store, "--frames", "100_000", env=world),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # in the background shells have it ignored
    )
    wait_for(store, 2, process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to the world's engine, too
    else:
        process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert not list(tmp_path.glob("worldmodel-*")), "the engine's scratch folder"
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody is left of the session
    assert "run again to continue" in out and "Traceback" not in errors
    assert len(content(store)) >= 2


@pytest.mark.parametrize("flags", [[], ["--frames", "10", "--episodes", "10"]])
@pytest.mark.slow
def test_both_goals_or_none_are_one_line_of_error(flags, tmp_path):
    done = run(tmp_path / "store", *flags)
    assert done.returncode == 1
    assert done.stderr.startswith("error: give either --frames or --episodes") and done.stderr.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_the_sticky_policy_holds_an_action_for_one_to_twelve_steps():
    names = tuple(map(str, range(10_000)))  # so many that two draws in a row are never the same
    actions = islice(scripted_actions("sticky", names, np.random.default_rng(0)), 20_000)
    holds = Counter(len(list(group)) for _, group in groupby(actions))
    assert set(holds) == set(range(1, MAX_HOLD_STEPS + 1)) == set(range(1, 13))
    assert max(holds.values()) < 2 * min(holds.values())


def test_the_sticky_policy_goes_forward_more_than_anything_else():
    names = ("noop", "backward", "forward", "look_left", "attack")
    taken = Counter(islice(scripted_actions("sticky", names, np.random.default_rng(0)), 20_000))
    assert taken[2] > 1.5 * max(count for action, count in taken.items() if action != 2)
    assert set(taken) == set(range(5))


def test_the_random_policy_draws_every_action_as_often():
    taken = Counter(islice(scripted_actions("random", tuple("abcd"), np.random.default_rng(0)), 20_000))
    assert set(taken) == set(range(4)) and max(taken.values()) < 1.1 * min(taken.values())


def test_the_mixed_policy_is_sticky_in_some_episodes_and_random_in_the_others():
    names = ("noop", "forward", "look_left", "look_right")
    kinds = Counter()
    for seed in range(40):
        taken = list(islice(scripted_actions("mixed", names, np.random.default_rng(seed)), 200))
        changes = np.mean(np.diff(taken) != 0)  # about 0.1 for sticky, 0.75 for random
        kinds["random" if changes > 0.5 else "sticky" if changes < 0.3 else "neither"] += 1
    assert set(kinds) == {"sticky", "random"} and min(kinds.values()) > 10


def test_every_episode_has_a_seed_of_its_own_which_the_runs_seed_decides(tmp_path):
    seeds = []
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        collect(str(tmp_path / name), WORLD, episodes=5, seed=seed)
        seeds.append([entry.seed for entry in EpisodeStore(tmp_path / name).entries])
    one, same, other = seeds
    assert one == same and len({*one, *other}) == 10
    first, second = (EpisodeStore(tmp_path / "one").read(number) for number in (0, 1))
    assert not np.array_equal(first.actions[:10], second.actions[:10])


def test_an_episode_that_ends_at_the_very_limit_is_not_cut_off():
    class World:
        def reset(self, seed):
            return np.zeros((8, 8, 3), np.uint8), {}

        def step(self, action):
            return np.zeros((8, 8, 3), np.uint8), 0.0, True, False, {}

    episode = play_episode(World(), lambda frame: 0, 0, max_episode_steps=1)
    assert episode.terminated and not episode.truncated
