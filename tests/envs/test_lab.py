"""envs:Lab-v0, against a stand-in for the engine that has a real build's signatures and errors."""

import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs import lab_engine
from envs.actions import NAVIGATION
from envs.lab import LabEnv
from worldmodel import cli, env_wrappers
from worldmodel.episodes import __main__ as episodes
from worldmodel.episodes.collect import collect, play_episode
from worldmodel.episodes.store import EpisodeStore

STEPS = 11  # of an episode of the stand-in: 42 engine frames, four a step


pytestmark = pytest.mark.slow
ENGINE = str(Path(__file__).parents[1] / "engine")  # holds the stand-in


@pytest.fixture(autouse=True)
def calls(monkeypatch, tmp_path):
    """All that engines were asked for, in order."""
    monkeypatch.syspath_prepend(ENGINE)
    monkeypatch.setenv("PYTHONPATH", ENGINE)  # for the workers that Ray starts
    log = tmp_path / "calls.jsonl"
    monkeypatch.setenv("FAKE_LAB_LOG", str(log))
    return lambda name="": [call for call in map(json.loads, log.read_text().splitlines()) if name in ("", call[0])]


@pytest.fixture
def make():
    made = []

    def make(**settings):
        made.append(gym.make("envs:Lab-v0", **settings).unwrapped)
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture
def env(make):
    return make()


def frames(env, seed, actions):
    return np.stack([env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions)])


def finish(env, seed=None):
    """Play an episode of noops; returns all that its steps returned."""
    env.reset(seed=seed)
    steps = [env.step(0)]
    while not steps[-1][2]:
        steps.append(env.step(0))
    return steps


@pytest.mark.filterwarnings("error")
def test_the_world_passes_gymnasiums_own_check(env):
    check_env(env)


def test_the_same_seed_and_actions_give_the_same_frames(env, make):
    actions = [1, 1, 5, 7, 0]
    assert np.array_equal(frames(env, 3, actions), frames(make(), 3, actions))
    assert not np.array_equal(frames(env, 3, actions), frames(env, 4, actions))
    assert not np.array_equal(frames(env, 3, actions), frames(env, 3, [0] * 5))


def test_the_episodes_before_do_not_change_an_episode(env):
    first = frames(env, 3, [1, 2, 3])
    for _ in range(3):
        finish(env)
    assert np.array_equal(frames(env, 3, [1, 2, 3]), first)


def test_a_reset_without_a_seed_starts_another_episode(env):
    first, _ = env.reset(seed=3)
    assert not np.array_equal(env.reset()[0], first)


@pytest.mark.parametrize(
    ("name", "command"),
    {
        "noop": (0, 0, 0, 0, 0, 0, 0),
        "forward": (0, 0, 0, 1, 0, 0, 0),
        "backward": (0, 0, 0, -1, 0, 0, 0),
        "strafe_left": (0, 0, -1, 0, 0, 0, 0),
        "strafe_right": (0, 0, 1, 0, 0, 0, 0),
        "look_left": (-20, 0, 0, 0, 0, 0, 0),
        "look_right": (20, 0, 0, 0, 0, 0, 0),
        "forward_look_left": (-20, 0, 0, 1, 0, 0, 0),
        "forward_look_right": (20, 0, 0, 1, 0, 0, 0),
    }.items(),
)
def test_each_named_action_sends_its_seven_numbers_for_four_frames(env, calls, name, command):
    env.reset(seed=0)
    env.step(env.action_names.index(name))
    assert calls("step") == [["step", *command, 4]]


def test_the_actions_are_the_nine_that_doom_has_too(env):
    assert env.action_names == tuple(NAVIGATION)
    assert env.action_space.n == 9


def test_a_step_gives_the_engines_summed_reward(env):
    env.reset(seed=0)
    assert env.step(1)[1] == 2.0
    assert env.step(2)[1] == 0.0


def test_the_last_step_repeats_the_last_frame_and_says_so(env):
    steps = finish(env, seed=0)
    assert len(steps) == STEPS
    assert np.array_equal(steps[-1][0], steps[-2][0])
    assert steps[-1][2:] == (True, False, {"final_observation_missing": True})
    assert all(step[2:] == (False, False, {}) for step in steps[:-1])


def test_a_step_outside_an_episode_is_refused(env):
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        env.step(0)
    finish(env)
    with pytest.raises(RuntimeError, match=r"the episode is over: call reset\(\) before step\(\)"):
        env.step(0)
    env.reset()
    env.step(0)


@pytest.mark.parametrize("action", [9, -1, 1.5, "forward", None])
def test_an_action_it_does_not_have_is_refused(env, action):
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action must be in \[0, 9\), got"):
        env.step(action)


def test_closing_twice_is_fine_and_a_closed_level_says_so(env):
    env.reset(seed=0)
    env.close()
    env.close()
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        env.step(0)
    with pytest.raises(RuntimeError, match="the level is closed"):
        env.reset()


def test_each_episode_has_an_engine_of_its_own_and_some_share_a_process(env, calls, monkeypatch):
    monkeypatch.setattr(lab_engine, "MAX_ENGINES_PER_PROCESS", 3)
    monkeypatch.setenv("FAKE_LAB_LIMIT", "3")  # the fourth in one process would end it
    for _ in range(8):
        finish(env)
    processes = [call[1] for call in calls("open")]
    assert len(processes) == 8
    assert [processes.count(process) for process in dict.fromkeys(processes)] == [3, 3, 2]
    assert os.getpid() not in processes


def test_one_engine_serves_all_episodes_where_they_need_not_be_reproducible(make, calls):
    env = make(reproducible=False)
    for _ in range(5):
        finish(env)
    assert len(calls("open")) == 1
    assert [call[3] for call in calls("reset")] == [0] * 5, "a level may read its number"


def test_an_engine_that_is_used_again_is_not_reproducible_and_says_so(make):
    env = make(reproducible=False)
    first = frames(env, 3, [1, 2, 3])
    finish(env)
    assert not np.array_equal(frames(env, 3, [1, 2, 3]), first), "the stand-in carries over what a real engine does"
    assert env.reset(seed=3)[1] == {"reproducible": False}
    assert make().reset(seed=3)[1] == {}


def test_episodes_that_are_not_reproducible_are_marked_in_the_store(tmp_path, capsys):
    collect(store=str(tmp_path / "fast"), env="envs:Lab-v0", env_kwargs={"reproducible": False}, episodes=2)
    collect(store=str(tmp_path / "exact"), env="envs:Lab-v0", episodes=2)
    assert [entry.reproducible for entry in EpisodeStore(tmp_path / "fast").entries] == [False, False]
    assert all(episode.reproducible for episode in EpisodeStore(tmp_path / "exact"))
    capsys.readouterr()
    episodes.info(str(tmp_path / "fast"))
    assert "reproducible       0 by their seeds and actions" in capsys.readouterr().out


@pytest.mark.ray
def test_episodes_are_the_same_whoever_records_them(tmp_path):
    collect(store=str(tmp_path / "here"), env="envs:Lab-v0", episodes=4, seed=7)
    collect(store=str(tmp_path / "workers"), env="envs:Lab-v0", episodes=4, seed=7, workers=2)
    here, workers = (
        {entry.number: entry.sha256 for entry in EpisodeStore(tmp_path / name).entries} for name in ("here", "workers")
    )
    assert here == workers


def test_the_stores_provenance_names_the_build(tmp_path):
    collect(store=str(tmp_path), env="envs:Lab-v0", episodes=1)
    engine = EpisodeStore(tmp_path).schema.provenance["engine"]
    assert engine.startswith("deepmind_lab of unknown version, build ") and len(engine.split()[-1]) == 12


def test_what_the_engine_prints_does_not_reach_our_output(env, capfd):
    finish(env)
    assert capfd.readouterr().out == ""


def test_an_engine_that_ends_its_process_is_one_line_and_the_next_reset_starts_another(make, monkeypatch):
    monkeypatch.setenv("FAKE_LAB_LIMIT", "2")
    env = make()
    finish(env)
    finish(env)
    with pytest.raises(ChildProcessError, match=r"engine ended with exit code 3 at reset.*reset\(\) starts another"):
        env.reset()
    with pytest.raises(RuntimeError, match=r"call reset\(\) before step\(\)"):
        env.step(0)
    finish(env)


def test_an_interrupted_step_does_not_lend_its_frame_to_the_next_episode(env, monkeypatch):
    first = frames(env, 3, [1, 2])
    process = env._engine._process
    monkeypatch.setattr(process, "ask", lambda request: (process._connection.send(request), _interrupt()))
    with pytest.raises(KeyboardInterrupt):
        env.step(1)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(1)
    assert np.array_equal(frames(env, 3, [1, 2]), first)


def _interrupt():
    raise KeyboardInterrupt


def test_a_killed_program_leaves_no_engine_and_the_next_removes_its_folder(tmp_path, calls):
    code = (
        "import gymnasium, time; env = gymnasium.make('envs:Lab-v0'); env.reset(seed=0); print(flush=True);"
        "time.sleep(60)"
    )
    (tmp_path / "scratch").mkdir()
    variables = {**os.environ, "PYTHONPATH": ENGINE, "TMPDIR": str(tmp_path / "scratch")}
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=variables)
    program.stdout.readline()
    (_, engine, _, folder), *_ = calls("open")
    assert Path(folder).parent == tmp_path / "scratch"
    program.send_signal(signal.SIGKILL)
    program.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{engine}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(engine, 0)
    assert Path(folder).exists()
    again = "import gymnasium; gymnasium.make('envs:Lab-v0').close()"
    subprocess.run([sys.executable, "-c", again], env=variables, check=True)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_fork_that_ends_leaves_the_engine_to_its_parent(env):
    env.reset(seed=0)
    child = os.fork()
    if not child:
        env._engine._process.stop()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    env.step(1)


def test_closing_removes_the_scratch_folder(make, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    env = make()
    assert len(list(tmp_path.glob("worldmodel-lab-*"))) == 1
    env.close()
    assert not list(tmp_path.glob("worldmodel-lab-*"))


def test_a_returned_frame_is_the_callers_own(make):
    env = make(render_mode="rgb_array")
    for frame in (env.reset(seed=0)[0], env.step(1)[0], env.render()):
        frame[:] = 0
        assert env.render().any()


def test_rendering_gives_the_frame_that_was_observed(make):
    env = make(render_mode="rgb_array")
    assert np.array_equal(env.reset(seed=0)[0], env.render())


def test_frames_per_second_reach_the_engine_and_the_metadata(make, calls):
    env = make(fps=60)
    assert calls("open")[-1][2] == {"minimalUI": "true", "width": "84", "height": "84", "fps": "60"}
    assert env.metadata["render_fps"] == 15


def test_the_engines_own_settings_reach_it_as_words(make, calls):
    make(config={"minimalUI": False, "botCount": 2, "episodeLengthSeconds": "30"})
    assert calls("open")[-1][2] == {
        "minimalUI": "false",
        "botCount": "2",
        "episodeLengthSeconds": "30",
        "width": "84",
        "height": "84",
        "fps": "30",
    }


def test_the_engines_own_settings_are_given_on_the_command_line(tmp_path, calls):
    arguments = ["--env", "envs:Lab-v0", "--env.config.minimalUI", "false", "--episodes", "1", "--store", str(tmp_path)]
    cli.run(collect, arguments)
    assert calls("open")[-1][2]["minimalUI"] == "false"
    assert EpisodeStore(tmp_path).schema.kwargs == {"config": {"minimalUI": False}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": "seekavoid_arena_99"}, r"cannot open level 'seekavoid_arena_99'.*Level not found"),
        ({"renderer": "hardware"}, "with the hardware renderer: .*not built"),
        ({"renderer": "vulkan"}, "renderer must be 'software' or 'hardware', got 'vulkan'"),
        ({"fps": 0}, "fps must be a positive whole number, 1000 at most, got 0"),
        ({"config": {"width": 64}}, "config cannot set width: frames are 84×84"),
        ({"config": {"WIDTH": "64"}}, "config cannot set WIDTH: frames are 84×84"),
        ({"config": {"x": float("nan")}}, "config x must be a string or a number, got nan"),
        ({"fps": True}, "fps must be a positive whole number, 1000 at most, got True"),
        ({"level": None}, "level must be the name of a level, got None"),
        ({"config": {"fps": 60}}, "config cannot set fps: give fps itself"),
        ({"config": {"x": None}}, "config x must be a string or a number, got None"),
        ({"config": "minimalUI"}, "config must be the engine's settings by name, got 'minimalUI'"),
        ({"reproducible": 1}, "reproducible must be true or false, got 1"),
        ({"render_mode": "ansi"}, "render_mode must be None or 'rgb_array', got 'ansi'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LabEnv(**settings)


def test_without_the_module_the_error_says_what_to_build(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepmind_lab", None)
    with pytest.raises(ImportError, match=r"wheel with bazel .*docs/users/build\.md.*envs:Doom-v0 works") as caught:
        gym.make("envs:Lab-v0")
    assert caught.type is ImportError  # what env_wrappers.make takes for an unknown id is a ModuleNotFoundError
    with pytest.raises(ImportError, match="bazel"):
        env_wrappers.make_env("envs:Lab-v0")


def test_a_module_that_lacks_a_part_of_its_own_says_which(monkeypatch, tmp_path):
    (tmp_path / "deepmind_lab.py").write_text("import part_of_the_wheel")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="No module named 'part_of_the_wheel'"):
        gym.make("envs:Lab-v0")


def test_without_the_module_collecting_ends_with_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "deepmind_lab", None)
    with pytest.raises(SystemExit, match="1"):
        cli.run(collect, ["--env", "envs:Lab-v0", "--frames", "10", "--store", str(tmp_path / "lab")])
    error = capsys.readouterr().err
    assert error.startswith("error: envs:Lab-v0 needs the module deepmind_lab") and error.count("\n") == 1
    assert not (tmp_path / "lab").exists()


def test_collecting_leaves_out_the_repeated_frame(tmp_path):
    collect(store=str(tmp_path), env="envs:Lab-v0", episodes=2)
    for episode in EpisodeStore(tmp_path):
        assert len(episode) == len(episode.observations) == STEPS
        assert not episode.has_final_observation
        assert episode.terminated and not episode.truncated
        assert not np.array_equal(episode.observations[-1], episode.observations[-2])


def test_an_episode_that_is_cut_off_keeps_its_last_frame(env):
    episode = play_episode(env, lambda frame: 1, seed=0, max_episode_steps=5)
    assert episode.has_final_observation and episode.truncated and not episode.terminated


def test_a_level_is_neither_copied_nor_shared(env):
    env.reset(seed=0)
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="a level that is being played cannot be copied"):
            copied(env)
    child = os.fork()
    if not child:
        try:
            env.step(1)
        except RuntimeError as error:
            os._exit(7 if "belongs to the process that made it" in str(error) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    env.step(1)
