"""Any Gymnasium world as frames of 84×84 pixels, unless it is told another size, and named discrete actions."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import AddRenderObservation
from PIL import Image

SIZE = 84  # of a side
OURS = ("", "envs")  # modules whose worlds a file may name
SMALLEST = 32  # a smaller "image" is a symbolic grid (MiniGrid's is 7×7), not a picture


def make(env: str, **kwargs: Any) -> gym.Env:
    """Make the world with the id ``env``, such as ``"envs:Doom-v0"`` or ``"ALE/Breakout-v5"``.

    Its observations are (84, 84, 3) uint8, scaled with an antialiasing filter where they are not already, or as large
    as the world's ``frame_size`` says, which is what Doom-v0 is given as ``size``; the picture is the observation
    itself, the one picture in a dictionary of observations, or else what the world renders.
    ``env.get_wrapper_attr("action_names")`` names its actions.

    Raises:
        ValueError: if there is no such id, it shows no picture, or its actions are not discrete.
    """
    if strange := [name for name in kwargs if not isinstance(name, str)]:
        raise ValueError(f"cannot make --env {env}: the names of its settings must be words, got {strange[0]!r}")
    try:
        world = gym.make(env, **kwargs)
        if not _pictures(world.observation_space) and "rgb_array" in world.metadata.get("render_modes", []):
            world.close()
            world = AddRenderObservation(gym.make(env, **{**kwargs, "render_mode": "rgb_array"}), render_only=True)
    except (gym.error.Error, ModuleNotFoundError) as error:
        hint = "name the module that registers it before a colon, as in envs:Doom-v0 or ale_py:ALE/Breakout-v5"
        raise ValueError(f"cannot make --env {env}: {error}; {hint}") from error
    except TypeError as error:
        raise ValueError(f"cannot make --env {env} with {kwargs}: {error}") from error
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:  # such as pyglet's, where there is no display
        raise ValueError(
            f"cannot make --env {env}: {type(error).__name__}: {error}; a world that opens a window needs a display, "
            "such as xvfb-run gives to a program"
        ) from error
    if not isinstance(world.action_space, gym.spaces.Discrete) or world.action_space.start != 0:
        raise ValueError(f"--env {env} must have discrete actions, counted from 0; it has {world.action_space}")
    if not _pictures(world.observation_space):
        raise ValueError(
            f"--env {env} must observe or render one uint8 picture of {SMALLEST} or more pixels a side, "
            f"it observes {world.observation_space}"
        )
    return Frames(world)


def trusted(env: str, source: object, flag: str = "--env ") -> str:
    """The id of a world that a file names, if making it imports no module but this package's.

    Args:
        source: of the id, for the message.
        flag: by which the user can name it.

    Raises:
        ValueError: if it would import another; whoever made the file would then run code here.
    """
    module = env.rpartition(":")[0]
    if module not in OURS:
        raise ValueError(
            f"{source} names the world {env}, which is in the module {module}; if you trust that, name it yourself: "
            f"{flag}{env}"
        )
    return env


class Frames(gym.ObservationWrapper):
    """Shows a world's picture as (84, 84, 3) uint8, or the size it asks for, and names its actions.

    Names are the world's own ``action_names``, Atari's ``get_action_meanings()``, or ``"0"``, ``"1"``, ….
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._key = _pictures(env.observation_space)[0]
        bare = env.unwrapped
        size = getattr(bare, "frame_size", SIZE)
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        names = getattr(bare, "action_names", None) or getattr(bare, "get_action_meanings", lambda: None)()
        self.action_names = tuple(str(name).lower() for name in names or range(env.action_space.n))

    def observation(self, observation: Any) -> np.ndarray:
        picture = observation if self._key is None else observation[self._key]
        height, width, _ = shape = self.observation_space.shape
        if picture.shape == shape:
            return picture
        image = Image.fromarray(picture.squeeze()).convert("RGB")
        return np.array(image.resize((width, height), Image.Resampling.BILINEAR))  # a copy: Pillow's own is read-only


def _pictures(space: gym.Space) -> list[str | None]:
    """The keys of the one picture in an observation space: ``[None]`` for the space itself, ``[]`` for no picture."""
    if isinstance(space, gym.spaces.Dict):
        keys = [key for key, part in space.spaces.items() if _is_picture(part)]
        return keys if len(keys) == 1 else []
    return [None] if _is_picture(space) else []


def _is_picture(space: gym.Space) -> bool:
    if not isinstance(space, gym.spaces.Box) or space.dtype != np.uint8:
        return False
    height_and_width, channels = space.shape[:2], space.shape[2:]
    return len(height_and_width) == 2 and channels in ((), (1,), (3,)) and min(height_and_width) >= SMALLEST
