"""worldmodel.env_wrappers: how environments are wrapped, and which are refused."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from worldmodel import env_wrappers


class World(gym.Env):
    """Observes a sample of a space and renders a picture that is red on the left and blue on the right."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, observation_space, action_space=None, render_mode=None, size=(48, 64)):
        self.observation_space = observation_space
        self.action_space = spaces.Discrete(3) if action_space is None else action_space
        self.render_mode, self.size = render_mode, size

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, False, False, {}

    def render(self):
        picture = np.zeros((*self.size, 3), np.uint8)
        picture[:, : self.size[1] // 2, 0] = picture[:, self.size[1] // 2 :, 2] = 255
        return picture


class Blind(World):
    """Renders nothing."""

    metadata = {"render_modes": []}


class Named(World):
    """Names its actions."""

    action_names = ("stay", "go", "turn")


class Atari(World):
    """Names its actions as Atari does."""

    def get_action_meanings(self):
        return ["NOOP", "FIRE", "UP"]


class Sized(World):
    """Says how large its frames are to be."""

    frame_size = 128


KINDS = (World, Blind, Named, Atari, Sized)


@pytest.fixture(autouse=True)
def registered():
    for kind in KINDS:
        gym.register(f"{kind.__name__}-v0", entry_point=kind)
    yield
    for kind in KINDS:
        del gym.registry[f"{kind.__name__}-v0"]


def picture(*shape, dtype=np.uint8):
    return spaces.Box(0, 255, shape, dtype)


SYMBOLS = spaces.Box(-1, 1, (4,), np.float32)


def check(env, shape=(84, 84, 3)):
    """Look at a reset and a step; returns the first frame."""
    first, _ = env.reset(seed=0)
    second = env.step(0)[0]
    for frame in (first, second):
        assert frame.shape == shape and frame.dtype == np.uint8 and frame.flags.writeable
        assert frame in env.observation_space
    return first


def is_rendered(frame):
    """Whether a frame is the red and blue picture that worlds render here."""
    return frame[:, :30, 0].min() == frame[:, -30:, 2].min() == 255 and frame[:, :30, 2].max() == 0


@pytest.mark.parametrize("shape", [(48, 64, 3), (210, 160, 3), (84, 84, 3), (32, 400, 3), (96, 96), (96, 96, 1)])
def test_a_picture_of_any_size_becomes_84_by_84_in_colour(shape):
    frame = check(env_wrappers.make_env("Blind-v0", observation_space=picture(*shape)))
    if shape[2:] != (3,):
        assert np.ptp(frame, axis=-1).max() == 0, "a gray picture has three equal channels"


def test_a_picture_of_the_right_size_is_left_alone():
    space = picture(84, 84, 3)
    frame, _ = env_wrappers.make_env("Blind-v0", observation_space=space).reset(seed=5)
    space.seed(5)
    assert np.array_equal(frame, space.sample())


def test_a_world_can_say_how_large_its_frames_are():
    check(env_wrappers.make_env("Sized-v0", observation_space=picture(128, 128, 3)), (128, 128, 3))
    assert is_rendered(check(env_wrappers.make_env("Sized-v0", observation_space=SYMBOLS), (128, 128, 3)))


def test_scaling_down_averages_what_it_drops():
    stripes = np.tile(np.array([0, 255], np.uint8), (336, 168))
    env = env_wrappers.make_env("Blind-v0", observation_space=picture(336, 336))
    assert abs(env.observation(stripes).astype(float) - 127.5).max() < 16


def test_width_and_height_are_not_mixed_up():
    left_is_white = np.zeros((48, 64, 3), np.uint8)
    left_is_white[:, :32] = 255
    frame = env_wrappers.make_env("Blind-v0", observation_space=picture(48, 64, 3)).observation(left_is_white)
    assert frame[:, :40].min() == 255 and frame[:, 44:].max() == 0


def test_the_one_picture_of_a_dictionary_is_shown():
    space = spaces.Dict(velocity=SYMBOLS, camera=picture(48, 64, 3), depth=picture(48, 64, dtype=np.float32))
    frame = check(env_wrappers.make_env("World-v0", observation_space=space))
    assert not is_rendered(frame)


@pytest.mark.parametrize(
    "space",
    [
        SYMBOLS,
        spaces.Discrete(16),
        picture(7, 7, 3),
        picture(48, 64, 4),
        picture(48, 64, 3, dtype=np.float32),
        spaces.Dict(image=picture(7, 7, 3), direction=spaces.Discrete(4)),
        spaces.Dict(left=picture(48, 64, 3), right=picture(48, 64, 3)),
    ],
    ids=["symbols", "number", "grid", "four channels", "float32", "dictionary with a grid", "two pictures"],
)
def test_a_world_without_one_picture_to_observe_is_rendered_instead(space):
    assert is_rendered(check(env_wrappers.make_env("World-v0", observation_space=space)))


def test_asking_for_the_rendering_that_is_used_anyway_is_fine():
    assert is_rendered(check(env_wrappers.make_env("World-v0", observation_space=SYMBOLS, render_mode="rgb_array")))


@pytest.mark.parametrize(
    "space", [SYMBOLS, picture(7, 7, 3), spaces.Dict(left=picture(48, 64), right=picture(48, 64))], ids=str
)
def test_a_world_that_shows_no_picture_is_refused(space):
    with pytest.raises(ValueError, match=r"must observe or render one uint8 image of 32 or more .*it observes"):
        env_wrappers.make_env("Blind-v0", observation_space=space)


@pytest.mark.parametrize(
    "space",
    [spaces.Box(-1, 1, (2,), np.float32), spaces.MultiDiscrete([3, 3]), spaces.Discrete(3, start=1)],
    ids=["continuous", "several at once", "counted from 1"],
)
def test_actions_that_are_not_discrete_are_refused_and_the_environment_closed(space, monkeypatch):
    closed = []
    monkeypatch.setattr(World, "close", lambda env: closed.append(env))
    with pytest.raises(ValueError, match="--env World-v0 must have discrete actions, counted from 0; it has"):
        env_wrappers.make_env("World-v0", observation_space=picture(48, 64, 3), action_space=space)
    assert len(closed) == 1


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("Worlds-v0", r"cannot make --env Worlds-v0: .*doesn't exist"),
        ("World-v7", r"cannot make --env World-v7: .*version"),
        ("ALE/Nothing-v5", r"cannot make --env ALE/Nothing-v5: "),
        ("no_such_module:World-v0", r"cannot make --env no_such_module:World-v0: No module named 'no_such_module'"),
        ("not an id", r"cannot make --env not an id: "),
    ],
)
def test_an_unknown_id_is_refused_by_name(env, message):
    with pytest.raises(ValueError, match=message):
        env_wrappers.make_env(env)


def test_an_unknown_argument_is_refused_by_name():
    with pytest.raises(ValueError, match=r"cannot make --env Blind-v0 with .*'colour'"):
        env_wrappers.make_env("Blind-v0", observation_space=picture(48, 64, 3), colour="red")


@pytest.mark.parametrize(
    ("env", "names"),
    [("Named-v0", ("stay", "go", "turn")), ("Atari-v0", ("noop", "fire", "up")), ("World-v0", ("0", "1", "2"))],
)
def test_actions_are_named_by_the_world_or_else_numbered(env, names):
    made = env_wrappers.make_env(env, observation_space=picture(48, 64, 3))
    assert made.get_wrapper_attr("action_names") == names


def test_the_same_seed_gives_the_same_frames():
    env = env_wrappers.make_env("World-v0", observation_space=picture(48, 64, 3))
    assert np.array_equal(env.reset(seed=1)[0], env.reset(seed=1)[0])


@pytest.mark.parametrize("env", ["CartPole-v1", "FrozenLake-v1"])
def test_a_world_that_comes_with_gymnasium_works(env, monkeypatch):
    pytest.importorskip("pygame", reason="Gymnasium's own worlds draw with pygame")
    monkeypatch.setenv("SDL_AUDIODRIVER", "dummy")
    made = env_wrappers.make_env(env)
    assert np.ptp(check(made)) > 0
    made.close()


def test_a_world_that_cannot_start_is_one_line(monkeypatch):
    def failing(**kwargs):
        raise type("NoSuchDisplayException", (Exception,), {})('Cannot connect to "None"')

    gym.register("Windowed-v0", entry_point=failing)
    with pytest.raises(ValueError, match=r'Windowed-v0: NoSuchDisplayException: Cannot connect to "None"; .*a display'):
        env_wrappers.make_env("Windowed-v0")
    gym.registry.pop("Windowed-v0")


@pytest.mark.parametrize("env", ["envs:Doom-v0", "CartPole-v1", ":Odd-v0"])
def test_worlds_of_this_package_and_of_gymnasium_are_trusted(env):
    assert env_wrappers.check_trusted(env, "a file") == env


@pytest.mark.parametrize("env", ["evil:World-v0", "ale_py:ALE/Breakout-v5", "envs.evil:X", "a:b:c"])
def test_worlds_of_other_modules_are_not(env):
    with pytest.raises(ValueError, match=f"a file names the environment {env}.* --env {env}"):
        env_wrappers.check_trusted(env, "a file")


@pytest.mark.parametrize("env", ["", "envs:Doom-v0", "worldmodel/Doom-v0"])
def test_an_environment_is_made_as_it_was_recorded(env):
    recorded = {"environment": "envs:Doom-v0", "kwargs": {"scenario": "take_cover"}}
    assert env_wrappers.recorded_kwargs(env, recorded) == {"scenario": "take_cover"}
    assert env_wrappers.recorded_kwargs("ALE/Breakout-v5", recorded) == {}
