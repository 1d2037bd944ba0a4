"""DeepMind Lab's first-person levels, 84×84 pixels, with the action names of :mod:`envs.actions`."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from envs import lab_engine
from envs.actions import NAVIGATION, Motion

ACTION_REPEAT = 4  # engine frames per step
LOOK_PIXELS_PER_FRAME = 20  # of a mouse: 16.9° a step at 30 frames a second, 8.4° at 60

_OURS = {"width": "frames are 84×84", "height": "frames are 84×84", "fps": "give fps itself"}


class LabEnv(gym.Env):
    """A DeepMind Lab level as a Gymnasium environment.

    Observations are (84, 84, 3) uint8, rewards the level's own. The same seed and actions give the same frames, however
    many episodes came before. ``reset(seed=None)`` draws the next episode's seed from the generator of the last seed.

    The engine draws nothing after the last action of an episode: that step gives the frame before it once more, with
    ``{"final_observation_missing": True}`` for its info. Nor does it tell a time limit from a goal, so every end is
    ``terminated``. The engine runs in a process of its own, which ends with this one.

    Args:
        level: such as ``"seekavoid_arena_01"`` or ``"contributed/dmlab30/explore_goal_locations_small"``.
        fps: engine frames in a second of the level's time; a step is four of them, so at 60 a look turns half as far.
        renderer: ``"software"``, or ``"hardware"`` where the wheel was built with it.
        config: settings of the engine and the level, by name; by default ``minimalUI`` is true, which draws no status
            overlay over the picture.
        reproducible: open a fresh engine for each episode, a third of a CPU second. False uses one engine again and
            again: in most levels it carries something of an episode into the next, so that the seed does not fix it;
            each reset's info then has ``{"reproducible": False}``, and a store marks the episode.

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
            raise ValueError(f"level must be the name of one, got {level!r}")
        if not isinstance(fps, int) or isinstance(fps, bool) or not 0 < fps <= 1000:
            raise ValueError(f"fps must be a positive whole number, 1000 at most, got {fps!r}")
        if renderer not in ("software", "hardware"):
            raise ValueError(f"renderer must be 'software' or 'hardware', got {renderer!r}")
        if not isinstance(reproducible, bool):
            raise ValueError(f"reproducible must be true or false, got {reproducible!r}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        settings = {"minimalUI": "true", **_words(config), "width": "84", "height": "84", "fps": str(fps)}
        try:
            self._engine = lab_engine.Engine(level, settings, renderer, fresh=reproducible)
        except RuntimeError as error:
            raise ValueError(
                f"DeepMind Lab cannot open level {level!r} with the {renderer} renderer: {error}"
            ) from error
        self.render_mode, self._reproducible = render_mode, reproducible
        self.metadata = {**self.metadata, "render_fps": fps / ACTION_REPEAT, "engine": lab_engine.build()}
        self.action_names = tuple(NAVIGATION)
        self._commands = [_command(motion) for motion in NAVIGATION.values()]
        self.action_space = gym.spaces.Discrete(len(NAVIGATION))
        self.observation_space = gym.spaces.Box(0, 255, (84, 84, 3), np.uint8)
        self._frame = np.zeros((84, 84, 3), np.uint8)
        self._running = self._closed = False

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; returns the first frame (84, 84, 3) uint8 and an info."""
        super().reset(seed=seed)
        if self._closed:
            raise RuntimeError("the level is closed: make a new one")
        self._running = False
        self._frame = self._engine.reset(int(self.np_random.integers(2**31)))
        self._running = True
        return self._frame.copy(), {} if self._reproducible else {"reproducible": False}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold ``action`` for four engine frames; after the last step of an episode the frame is the one before it."""
        if not self.action_space.contains(action):
            raise ValueError(f"action must be in [0, {self.action_space.n}), got {action!r}")
        if not self._running:
            raise RuntimeError("the episode is over: call reset() before step()")
        self._running = False  # until the engine has answered
        reward, frame = self._engine.step(self._commands[action], ACTION_REPEAT)
        if frame is None:
            return self._frame.copy(), reward, True, False, {"final_observation_missing": True}
        self._frame, self._running = frame, True
        return frame.copy(), reward, False, False, {}

    def render(self) -> np.ndarray | None:
        """The current frame, (84, 84, 3) uint8."""
        return self._frame.copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Stop the engine; closing twice is fine."""
        self._engine.close()
        self._closed, self._running = True, False


def _words(config: Mapping[str, Any]) -> dict[str, str]:
    """The engine's settings as it wants them: all strings, ``"true"`` for True."""
    if not isinstance(config, Mapping):
        raise ValueError(f"config must be the engine's settings by name, got {config!r}")
    for name, value in config.items():
        if (known := str(name).lower()) in _OURS:
            raise ValueError(f"config cannot set {name}: {_OURS[known]}")
        if not isinstance(value, str | int | float) or value != value:
            raise ValueError(f"config {name} must be a word or a number, got {value!r}")
    return {str(name): str(value).lower() if isinstance(value, bool) else str(value) for name, value in config.items()}


def _command(motion: Motion) -> np.ndarray:
    """The engine's seven numbers: look right, look up, strafe right, move forward, fire, jump, crouch."""
    return np.array(
        [motion.look * LOOK_PIXELS_PER_FRAME, 0, motion.strafe, motion.forward, motion.attack, 0, 0], np.intc
    )
