"""Gymnasium environments as RGB frames, 84×84 by default, with named discrete actions."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import AddRenderObservation
from PIL import Image

FRAME_SIZE = 84  # default height and width in pixels
TRUSTED_MODULES = ("", "envs")  # modules whose environments a file may name
DEFAULT_RATE = 10.0  # steps per second of an environment without render_fps
ACTION_REPEAT = 4  # frames of the engine per step, in Doom and in DeepMind Lab
DOOM_RATE, LAB_RATE = 35, 30  # frames of the engine per second; Lab's is its default
MIN_IMAGE_SIDE = 32  # smaller arrays are symbolic grids, such as MiniGrid's 7×7


def canonical_id(env: str) -> str:
    """Return the id as files spell it: ``envs:Doom-v0`` for ``worldmodel/Doom-v0`` and ``envs:worldmodel/Doom-v0``."""
    return re.sub(r"^(envs:)?worldmodel/", "envs:", env)


def frame_rate(env: gym.Env) -> float:
    """Return the steps per second at which an environment passes in real time: its ``render_fps``, 10 without one."""
    return _rate(env.metadata) or DEFAULT_RATE


def recorded_rate(data: dict[str, Any]) -> float:
    """Return the :func:`frame_rate` of the environment that a world or a store was recorded in.

    Args:
        data: data section of the world's config.yaml, or a store's schema; older ones do not have the rate itself.
    """
    if rate := _rate(data.get("provenance", {})):
        return rate
    environment = data.get("environment", "")
    if environment == "envs:Doom-v0":
        return DOOM_RATE / ACTION_REPEAT
    if environment == "envs:Lab-v0":
        return data.get("kwargs", {}).get("fps", LAB_RATE) / ACTION_REPEAT
    return DEFAULT_RATE


def _rate(facts: dict[str, Any]) -> float:
    """Return the ``render_fps`` among some facts, or 0 if there is none that a clock could keep."""
    rate = facts.get("render_fps")
    if isinstance(rate, int | float | np.number) and not isinstance(rate, bool) and 0 < float(rate) < math.inf:
        return float(rate)
    return 0.0


def make_env(env: str, **kwargs: Any) -> gym.Env:
    """Make the environment with the Gymnasium id ``env``, such as ``"envs:Doom-v0"`` or ``"ALE/Breakout-v5"``.

    Observations are (84, 84, 3) uint8, resized with antialiasing if necessary; an environment can set another size as
    its ``frame_size``. The image is the observation itself, the only image in a dictionary of observations, or else
    the rendered image. ``env.get_wrapper_attr("action_names")`` returns the names of the actions.

    Raises:
        ValueError: if the id is unknown, there is no image to observe or render, or the actions are not discrete.
    """
    env = canonical_id(env)
    if invalid := [name for name in kwargs if not isinstance(name, str)]:
        raise ValueError(f"cannot make --env {env}: the names of its arguments must be strings, got {invalid[0]!r}")
    try:
        made = gym.make(env, **kwargs)
        if not _image_keys(made.observation_space) and "rgb_array" in made.metadata.get("render_modes", []):
            made.close()
            made = AddRenderObservation(gym.make(env, **{**kwargs, "render_mode": "rgb_array"}), render_only=True)
    except (gym.error.Error, ModuleNotFoundError) as error:
        hint = "name the module that registers it before a colon, as in envs:Doom-v0 or ale_py:ALE/Breakout-v5"
        raise ValueError(f"cannot make --env {env}: {error}; {hint}") from error
    except TypeError as error:
        raise ValueError(f"cannot make --env {env} with {kwargs}: {error}") from error
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:  # such as pyglet's if there is no display
        raise ValueError(
            f"cannot make --env {env}: {type(error).__name__}: {error}; an environment that opens a window needs a "
            "display; xvfb-run provides one"
        ) from error
    refusal = ""
    if not isinstance(made.action_space, gym.spaces.Discrete) or made.action_space.start != 0:
        refusal = f"have discrete actions, counted from 0; it has {made.action_space}"
    elif not _image_keys(made.observation_space):
        refusal = (
            f"observe or render one uint8 image of {MIN_IMAGE_SIDE} or more pixels per side, "
            f"it observes {made.observation_space}"
        )
    if refusal:
        made.close()
        raise ValueError(f"--env {env} must {refusal}")
    return ResizeFrames(made)


@contextmanager
def closed_on_error(env: gym.Env) -> Iterator[None]:
    """Close an environment if the block raises an error, so that what refuses it leaves no engine running."""
    try:
        yield
    except BaseException:
        env.close()
        raise


def recorded_kwargs(env: str, data: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that an environment was recorded with, none if another one was recorded.

    Args:
        env: Gymnasium id; "" is the recorded environment.
        data: data section of a world's or an agent's config.yaml.
    """
    return data["kwargs"] if canonical_id(env) in ("", data["environment"]) else {}


def check_trusted(env: str, source: object, flag: str = "--env ") -> str:
    """Return an environment id read from a file, if making the environment imports only this package's modules.

    Args:
        source: source of the id, for the error message.
        flag: flag with which the user can give the id instead.

    Raises:
        ValueError: if another module would be imported, which would let the file's author run code here.
    """
    module = env.rpartition(":")[0]
    if module not in TRUSTED_MODULES:
        raise ValueError(
            f"{source} names the environment {env} of the module {module}; if you trust that module, pass {flag}{env}"
        )
    return env


class ResizeFrames(gym.ObservationWrapper):
    """Resize images to (84, 84, 3) uint8, or to the environment's ``frame_size``, and provide ``action_names``.

    The names are the environment's ``action_names``, Atari's ``get_action_meanings()``, or ``"0"``, ``"1"``, ….
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._key = _image_keys(env.observation_space)[0]
        base = env.unwrapped
        self._size = size = getattr(base, "frame_size", FRAME_SIZE)
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        num_actions = cast(gym.spaces.Discrete, env.action_space).n
        names = getattr(base, "action_names", None) or getattr(base, "get_action_meanings", lambda: None)()
        self.action_names = tuple(str(name).lower() for name in names or range(num_actions))

    def observation(self, observation: Any) -> np.ndarray:
        """Return the image as an RGB frame."""
        array = observation if self._key is None else observation[self._key]
        return resize_frame(array, self._size, self._size)


def resize_frame(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image (H, W), (H, W, 1) or (H, W, 3) uint8 to (height, width, 3), with antialiasing."""
    if image.shape == (height, width, 3):
        return image
    resized = Image.fromarray(image.squeeze()).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    return np.array(resized)  # a writable copy


def _image_keys(space: gym.Space) -> list[str | None]:
    """Return the key of the only image in an observation space: ``[None]`` for the space itself, ``[]`` if none."""
    if isinstance(space, gym.spaces.Dict):
        keys: list[str | None] = [key for key, part in space.spaces.items() if _is_image(part)]
        return keys if len(keys) == 1 else []
    return [None] if _is_image(space) else []


def _is_image(space: gym.Space) -> bool:
    if not isinstance(space, gym.spaces.Box) or space.dtype != np.uint8:
        return False
    height_and_width, channels = space.shape[:2], space.shape[2:]
    return len(height_and_width) == 2 and channels in ((), (1,), (3,)) and min(height_and_width) >= MIN_IMAGE_SIDE
