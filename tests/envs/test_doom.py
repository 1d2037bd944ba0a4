"""envs:Doom-v0, on the real engine."""

import contextlib
import gc
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import psutil
import pytest
import vizdoom
from gymnasium.utils.env_checker import check_env

from envs.actions import NAVIGATION
from envs.doom import SCENARIOS, DoomEnv

pytestmark = pytest.mark.engine
WORLDS = [{"scenario": "health_gathering_supreme"}, {"scenario": "take_cover"}, {"map": "E1M1"}]
ACTIONS = [1, 1, 7, 7, 7, 3, 3, 0, 6, 6, 2, 8, 8, 4, 1] * 2

every_world = pytest.mark.parametrize("settings", WORLDS, ids=lambda settings: next(iter(settings.values())))


def make(**settings):
    return gym.make("envs:Doom-v0", **settings).unwrapped


def play(env, seed, actions=ACTIONS):
    """Returns the frames (T+1, 84, 84, 3) and rewards (T,) of these actions, or of those before the episode ends."""
    frames, rewards, over = [env.reset(seed=seed)[0]], [], False
    for action in actions:
        if not over:
            frame, reward, terminated, truncated, _ = env.step(action)
            frames.append(frame)
            rewards.append(reward)
            over = terminated or truncated
    return np.stack(frames), np.array(rewards)


def wait(env, seed=0, longest=1000):
    """Do nothing until the episode ends; returns the number of steps, terminated and truncated."""
    env.reset(seed=seed)
    for steps in range(1, longest + 1):
        _, _, terminated, truncated, _ = env.step(0)
        if terminated or truncated:
            return steps, terminated, truncated
    raise AssertionError(f"the episode did not end in {longest} steps")


@every_world
@pytest.mark.filterwarnings("error")
@pytest.mark.slow
def test_the_world_passes_gymnasiums_own_check(settings):
    env = make(**settings)
    check_env(env)
    env.close()


@every_world
@pytest.mark.slow
def test_the_same_seed_and_actions_give_the_same_frames_and_rewards(settings):
    env = make(**settings)
    frames, rewards = play(env, seed=11)
    other_frames, _ = play(env, seed=12)
    again_frames, again_rewards = play(env, seed=11)
    env.close()
    env = make(**settings)
    new_frames, new_rewards = play(env, seed=11)
    env.close()
    assert np.array_equal(frames, again_frames) and np.array_equal(rewards, again_rewards)
    assert np.array_equal(frames, new_frames) and np.array_equal(rewards, new_rewards)
    assert frames.shape != other_frames.shape or not np.array_equal(frames, other_frames)
    assert len(frames) == len(ACTIONS) + 1 and np.ptp(frames) > 100


@pytest.mark.slow
def test_resets_without_a_seed_follow_from_the_last_seed():
    env = make()
    runs = []
    for _ in range(2):
        first, _ = env.reset(seed=5)
        second, _ = env.reset()
        runs.append((first, second))
    env.close()
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(*runs[0])


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.slow
def test_a_scenario_has_the_nine_names_and_attack_where_it_is_its_own(scenario):
    env = make(scenario=scenario)
    env.close()
    attacks = scenario in ("deadly_corridor", "defend_the_center")
    assert env.action_names == (*NAVIGATION, *(["attack"] if attacks else []))
    assert env.action_space.n == len(env.action_names)


@pytest.mark.slow
def test_a_few_actions_can_be_chosen_by_name_and_do_what_they_did_among_all():
    few, every = (make(scenario="take_cover", actions=names) for names in (["noop", "strafe_right"], ()))
    assert few.unwrapped.action_names == ("noop", "strafe_right") and few.action_space.n == 2
    few.reset(seed=0), every.reset(seed=0)
    for action in (1, 1, 0, 1):
        chosen = every.unwrapped.action_names.index(few.unwrapped.action_names[action])
        np.testing.assert_array_equal(few.step(action)[0], every.step(chosen)[0])


@pytest.mark.slow
def test_a_map_has_an_attack_and_it_fires():
    env = make(map="E1M1")
    env.reset(seed=0)
    assert env.action_names == (*NAVIGATION, "attack")
    before = env.game.get_game_variable(vizdoom.GameVariable.AMMO2)
    for _ in range(5):
        env.step(env.action_names.index("attack"))
    assert env.game.get_game_variable(vizdoom.GameVariable.AMMO2) < before
    env.close()


@pytest.mark.slow
def test_the_named_actions_move_and_turn_as_they_say():
    env = make(scenario="my_way_home")

    def pose():
        names = ("POSITION_X", "POSITION_Y", "ANGLE")
        x, y, angle = (env.game.get_game_variable(getattr(vizdoom.GameVariable, name)) for name in names)
        return complex(x, y), angle

    for name, motion in NAVIGATION.items():
        env.reset(seed=1)
        env.step(0)  # the body settles on the floor
        place, angle = pose()
        env.step(env.action_names.index(name))
        new_place, new_angle = pose()
        turned = (angle - new_angle + 180) % 360 - 180  # Doom's angles grow to the left
        assert turned == pytest.approx(7.5 * motion.look, abs=0.05), name
        moved = (new_place - place) * np.exp(-1j * np.radians(angle))  # ahead is real, left imaginary
        assert np.sign(round(moved.real)) == motion.forward, name
        if not motion.look:
            assert np.sign(round(-moved.imag)) == motion.strafe, name
    env.close()


@pytest.mark.slow
def test_looking_left_and_right_again_restores_the_view():
    env = make(scenario="my_way_home")
    left, right = env.action_names.index("look_left"), env.action_names.index("look_right")
    frames, _ = play(env, 3, [0, left, left, left, right, right, right])
    env.close()
    change = abs(frames.astype(float) - frames[1]).mean(axis=(1, 2, 3))
    assert change[4] > 5  # mean gray levels
    assert change[7] < 0.5
    assert change[6] < change[5] < change[4]


@pytest.mark.slow
def test_a_death_is_terminated():
    env = make(scenario="health_gathering_supreme")
    _, terminated, truncated = wait(env)
    assert (terminated, truncated) == (True, False)
    assert env.game.is_player_dead()
    env.close()


@pytest.mark.slow
def test_a_time_limit_is_truncated_and_the_step_after_it_refused():
    env = make(scenario="my_way_home")
    assert wait(env) == (525, False, True)
    with pytest.raises(RuntimeError, match=r"the episode is over: call reset\(\) before step\(\)"):
        env.step(0)
    env.reset()
    env.step(0)
    env.close()


@pytest.mark.slow
def test_the_last_step_repeats_the_last_frame_and_says_so():
    env = make(scenario="take_cover")
    frame, _ = env.reset(seed=0)
    over, info = False, {}
    while not over:
        assert info == {}
        before = frame
        frame, _, terminated, truncated, info = env.step(env.action_names.index("look_left"))
        over = terminated or truncated
    env.close()
    assert np.array_equal(frame, before)
    assert info == {"final_observation_missing": True}


@pytest.mark.slow
def test_an_action_it_does_not_have_is_refused():
    env = make()
    env.reset(seed=0)
    for action in (9, -1, 1.5, "forward"):
        with pytest.raises(ValueError, match=r"action must be in \[0, 9\), got"):
            env.step(action)
    env.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scenario": "my_way_hom"}, "unknown scenario 'my_way_hom': expected one of .*; did you mean 'my_way_home'?"),
        ({"actions": ["forward", "strafe_lef"]}, "unknown action 'strafe_lef': .*; did you mean 'strafe_left'?"),
        ({"scenario": "xyz"}, "unknown scenario 'xyz': expected one of [a-z_, ]*$"),
        ({"map": "E1M10"}, "unknown map 'E1M10': expected one of .*; did you mean 'E1M1'?"),
        ({"size": 0}, "size must be a number of pixels, 1 or more, got 0"),
        ({"size": "84x84"}, "size must be a number of pixels, 1 or more, got '84x84'"),
        ({"render_mode": "ansi"}, "render_mode must be None or 'rgb_array', got 'ansi'"),
    ],
)
@pytest.mark.slow
def test_a_setting_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DoomEnv(**settings)


@pytest.mark.slow
def test_what_is_in_view_is_named_with_its_place_and_the_pictures_stay_the_same():
    plain, telling = (DoomEnv("take_cover", objects=objects) for objects in (False, True))
    frames = [env.reset(seed=3)[0] for env in (plain, telling)]
    np.testing.assert_array_equal(*frames)
    seen = []
    for _ in range(20):
        (frame, *_, bare), (other, *_, info) = (env.step(0) for env in (plain, telling))
        np.testing.assert_array_equal(frame, other)
        assert "objects" not in bare
        seen += info["objects"]
    assert {"DoomImp"} <= {name for name, _, _ in seen}
    boxes = np.array([box for _, _, box in seen])
    assert (boxes >= 0).all() and (boxes <= 1).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    for env in (plain, telling):
        env.close()


@pytest.mark.slow
def test_rendering_gives_the_frame_that_was_observed():
    env = make(render_mode="rgb_array")
    assert np.array_equal(env.reset(seed=0)[0], env.render())
    assert np.array_equal(env.step(1)[0], env.render())
    env.close()


@pytest.mark.slow
def test_a_picture_of_another_size_shows_the_same_view():
    frames = {}
    for size in (42, 84, 128):
        env = make(size=size, render_mode="rgb_array")
        assert env.observation_space.shape == (size, size, 3)
        frames[size], _ = play(env, seed=0, actions=[1, 1, 5])
        assert np.array_equal(env.render(), frames[size][-1]) and frames[size].shape == (4, size, size, 3)
        env.close()
    halved = frames[84].reshape(4, 42, 2, 42, 2, 3).mean((2, 4))
    assert abs(halved - frames[42]).mean() < 2  # gray levels
    assert np.ptp(frames[128]) > 100


@pytest.mark.parametrize("leave", ["close", "forget"])
@pytest.mark.slow
def test_nothing_is_left_in_the_working_folder_or_in_the_temporary_one(leave, tmp_path, monkeypatch):
    here, scratch = tmp_path / "here", tmp_path / "scratch"
    here.mkdir()
    scratch.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    env = make()
    play(env, seed=0)
    assert Path.cwd() == here
    assert len(list(scratch.iterdir())) == 1
    if leave == "close":
        env.close()
        env.close()
    del env
    gc.collect()
    assert list(here.iterdir()) == list(scratch.iterdir()) == []


@pytest.mark.slow
def test_importing_the_worlds_loads_no_engine_and_no_torch():
    program = "import sys, envs; print(*{'torch', 'vizdoom', 'deepmind_lab', 'ray'} & set(sys.modules))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.slow
def test_folders_of_others_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    nobody = 2**22 + 1  # above the largest number of a process
    names = ["vizdoom-2019-archive", f"vizdoom-{nobody}-x", f"worldmodel-vizdoom-{nobody}-x", "worldmodel-vizdoom-x-x"]
    names += [f"worldmodel-vizdoom-{10**20}-x", f"worldmodel-vizdoom-{nobody}-mine"]
    for name in names:
        (tmp_path / name).mkdir()
    for name in names[-2:]:
        (tmp_path / name / "of-worldmodel").touch()
    DoomEnv().close()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[:-1]), (
        "all but the last, whose owner is gone"
    )


@pytest.mark.slow
def test_a_fork_that_ends_leaves_the_game_to_its_parent():
    env = make()
    env.reset(seed=0)
    child = os.fork()
    if not child:
        env._stop()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    env.step(1)
    env.close()


@pytest.mark.slow
def test_an_engine_that_died_is_an_error_and_the_next_reset_starts_another():
    env = make()
    first = env.reset(seed=0)[0]
    (engine,) = (child for child in psutil.Process().children() if "vizdoom" in child.name())
    engine.kill()
    with pytest.raises(ChildProcessError, match="the Doom engine has ended, the next reset starts another"):
        env.step(0)
    with pytest.raises(ChildProcessError):
        env.step(0)
    np.testing.assert_array_equal(env.reset(seed=0)[0], first)
    env.step(0)
    env.close()
    with pytest.raises(RuntimeError, match="the game is closed: make a new one"):
        env.reset()


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
@pytest.mark.slow
def test_the_engine_of_a_killed_process_is_ended_by_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = "import envs.doom, sys; game = envs.doom.DoomEnv(); print(flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    (left,) = tmp_path.glob("worldmodel-vizdoom-*")

    def engines() -> list[Path]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # a process may end while we look
                found += [path] if os.fsencode(left) in path.read_bytes() else []
        return found

    process.kill()
    process.wait()
    assert len(engines()) == 1
    DoomEnv().close()
    assert not left.exists()
    deadline = time.monotonic() + 10
    while engines() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not engines()
