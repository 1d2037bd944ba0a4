"""envs:Lab-v0, against a stand-in for the engine that has a real build's signatures and errors."""

import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs.actions import NAVIGATION
from envs.lab import LabEnv
from tests import fake_deepmind_lab
from worldmodel import config, environment
from worldmodel.collect import collect, play
from worldmodel.data.store import EpisodeStore

STEPS = 11  # of an episode of the stand-in: 42 engine frames, four a step


@pytest.fixture(autouse=True)
def deepmind_lab(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepmind_lab", fake_deepmind_lab)
    monkeypatch.setattr(fake_deepmind_lab.Lab, "made", [])
    return fake_deepmind_lab


@pytest.fixture
def env():
    env = gym.make("envs:Lab-v0").unwrapped
    yield env
    env.close()


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


def test_the_same_seed_and_actions_give_the_same_frames(env):
    actions = [1, 1, 5, 7, 0]
    assert np.array_equal(frames(env, 3, actions), frames(gym.make("envs:Lab-v0"), 3, actions))
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
def test_each_named_action_sends_its_seven_numbers_for_four_frames(env, deepmind_lab, name, command):
    env.reset(seed=0)
    env.step(env.action_names.index(name))
    assert deepmind_lab.Lab.made[-1].calls[-1] == (*command, 4)


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


def test_one_engine_serves_all_episodes(env, deepmind_lab):
    for _ in range(5):
        finish(env)
    assert len(deepmind_lab.Lab.made) == 1


def test_a_returned_frame_is_the_callers_own():
    env = gym.make("envs:Lab-v0", render_mode="rgb_array")
    for frame in (env.reset(seed=0)[0], env.step(1)[0], env.render()):
        frame[:] = 0
        assert env.render().any()


def test_rendering_gives_the_frame_that_was_observed():
    env = gym.make("envs:Lab-v0", render_mode="rgb_array")
    assert np.array_equal(env.reset(seed=0)[0], env.render())


def test_frames_per_second_reach_the_engine_and_the_metadata(deepmind_lab):
    env = gym.make("envs:Lab-v0", fps=60)
    assert deepmind_lab.Lab.made[-1].config == {"width": "84", "height": "84", "fps": "60"}
    assert env.unwrapped.metadata["render_fps"] == 15


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": "seekavoid_arena_99"}, r"cannot open level 'seekavoid_arena_99'.*Level not found"),
        ({"renderer": "hardware"}, "with the hardware renderer: .*not built"),
        ({"renderer": "vulkan"}, "renderer must be 'software' or 'hardware', got 'vulkan'"),
        ({"fps": 0}, "fps must be a positive whole number, got 0"),
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
    assert caught.type is ImportError  # what environment.make takes for an unknown id is a ModuleNotFoundError
    with pytest.raises(ImportError, match="bazel"):
        environment.make("envs:Lab-v0")


def test_a_module_that_lacks_a_part_of_its_own_says_which(monkeypatch, tmp_path):
    (tmp_path / "deepmind_lab.py").write_text("import part_of_the_wheel")
    monkeypatch.delitem(sys.modules, "deepmind_lab")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="No module named 'part_of_the_wheel'"):
        gym.make("envs:Lab-v0")


def test_without_the_module_collecting_ends_with_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "deepmind_lab", None)
    with pytest.raises(SystemExit, match="1"):
        config.run(collect, ["--env", "envs:Lab-v0", "--frames", "10", "--store", str(tmp_path / "lab")])
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
    episode = play(env, lambda frame: 1, seed=0, longest=5)
    assert episode.has_final_observation and episode.truncated and not episode.terminated
