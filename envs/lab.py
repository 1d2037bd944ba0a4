"""DeepMind Lab's first-person levels as a Gymnasium environment, with the action names of :mod:`envs.actions`."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from envs import lab_engine
from envs.actions import NAVIGATION, MotionCommand

ACTION_REPEAT = 4  # engine frames per step
LOOK_PIXELS_PER_FRAME = 20  # of mouse movement: 16.9° per step at 30 frames per second, 8.4° at 60

_RESERVED_SETTINGS = {"width": "frames are 84×84", "height": "frames are 84×84", "fps": "give fps itself"}


class LabEnv(gym.Env):
    """A DeepMind Lab level as a Gymnasium environment.

    Observations: Box (84, 84, 3) uint8, RGB.
    Actions: Discrete(9), named by ``action_names``; each is held for 4 engine frames, in which a look turns 16.9° at
    30 frames per second.
    Rewards are the level's own. Every end is ``terminated``: the engine does not tell a time limit from a goal.
    Info: ``final_observation_missing`` is True at the last step, whose observation repeats the frame before it;
    ``reproducible`` is False at a reset that the seed does not determine.

    The same seed and actions give the same frames, however many episodes came before. ``reset(seed=None)`` continues
    the random stream of the last seed. The engine runs in a child process, which ends with this one.

    Args:
        level: name of the level, such as ``"seekavoid_arena_01"`` or
            ``"contributed/dmlab30/explore_goal_locations_small"``.
        fps: engine frames per second of level time, 1 to 1000; at 60, a look turns half as far as at 30.
        renderer: ``"software"``, or ``"hardware"`` if the wheel was built with it.
        config: settings of the engine and the level by name; ``minimalUI``, which hides the status overlay, is true
            by default.
        reproducible: whether to open a new engine for each episode, which takes a third of a CPU second. If False, one
            engine plays all episodes, and in most levels carries over some state that the seed does not determine;
            the info of each reset then has ``{"reproducible": False}``, and a store marks the episode.
        render_mode: ``"rgb_array"`` or None.

    Raises:
        ImportError: if the ``deepmind_lab`` module is not installed; the message says how to build it.
        ValueError: for an unknown level, a renderer that was not built, or a setting that the engine refuses.
        ChildProcessError: from any method, if the engine ends its process; the next reset starts another.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30 / ACTION_REPEAT}

    def __init__(
        self,
        level: str = "seekavoid_arena_01",
        fps: int = 30,
        renderer: str = "software",
        config: Mapping[str, Any] = {},
        reproducible: bool = True,
        render_mode: str | None = None,
    ) -> None:
        if not isinstance(level, str):
            raise ValueError(f"level must be the name of a level, got {level!r}")
        if not isinstance(fps, int) or isinstance(fps, bool) or not 0 < fps <= 1000:
            raise ValueError(f"fps must be a positive whole number, 1000 at most, got {fps!r}")
        if renderer not in ("software", "hardware"):
            raise ValueError(f"renderer must be 'software' or 'hardware', got {renderer!r}")
        if not isinstance(reproducible, bool):
            raise ValueError(f"reproducible must be true or false, got {reproducible!r}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        settings = {"minimalUI": "true", **_to_strings(config), "width": "84", "height": "84", "fps": str(fps)}
        try:
            self._engine = lab_engine.Engine(level, settings, renderer, fresh=reproducible)
        except RuntimeError as error:
            raise ValueError(
                f"DeepMind Lab cannot open level {level!r} with the {renderer} renderer: {error}"
            ) from error
        self.render_mode, self._reproducible = render_mode, reproducible
        self.metadata = {**self.metadata, "render_fps": fps / ACTION_REPEAT, "engine": lab_engine.engine_build()}
        self.action_names = tuple(NAVIGATION)
        self._engine_actions = [_engine_action(command) for command in NAVIGATION.values()]
        self.action_space = gym.spaces.Discrete(len(NAVIGATION))
        self.observation_space = gym.spaces.Box(0, 255, (84, 84, 3), np.uint8)
        self._frame = np.zeros((84, 84, 3), np.uint8)
        self._running = self._closed = False

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; returns the first frame (84, 84, 3) uint8 and the info."""
        super().reset(seed=seed)
        if self._closed:
            raise RuntimeError("the level is closed: make a new one")
        self._running = False
        self._frame = self._engine.reset(int(self.np_random.integers(2**31)))
        self._running = True
        return self._frame.copy(), {} if self._reproducible else {"reproducible": False}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold ``action`` for four engine frames; the last step of an episode repeats the frame before it."""
        if not self.action_space.contains(action):
            raise ValueError(f"action must be in [0, {len(self.action_names)}), got {action!r}")
        if not self._running:
            raise RuntimeError("the episode is over: call reset() before step()")
        self._running = False  # if the engine fails, the episode is over
        reward, frame = self._engine.step(self._engine_actions[action], ACTION_REPEAT)
        if frame is None:
            return self._frame.copy(), reward, True, False, {"final_observation_missing": True}
        self._frame, self._running = frame, True
        return frame.copy(), reward, False, False, {}

    def render(self) -> np.ndarray | None:
        """Return the current frame (84, 84, 3) uint8, or None without a render mode."""
        return self._frame.copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Stop the engine; closing twice is fine."""
        self._engine.close()
        self._closed, self._running = True, False


def _to_strings(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings as the strings that the engine expects, ``"true"`` for True."""
    if not isinstance(config, Mapping):
        raise ValueError(f"config must be the engine's settings by name, got {config!r}")
    for name, value in config.items():
        if (reserved := str(name).lower()) in _RESERVED_SETTINGS:
            raise ValueError(f"config cannot set {name}: {_RESERVED_SETTINGS[reserved]}")
        if not isinstance(value, str | int | float) or value != value:
            raise ValueError(f"config {name} must be a string or a number, got {value!r}")
    return {str(name): str(value).lower() if isinstance(value, bool) else str(value) for name, value in config.items()}


def _engine_action(command: MotionCommand) -> np.ndarray:
    """Return the engine's action (7,): look right, look up, strafe right, move forward, fire, jump, crouch."""
    return np.array(
        [command.look * LOOK_PIXELS_PER_FRAME, 0, command.strafe, command.forward, command.attack, 0, 0], np.intc
    )
