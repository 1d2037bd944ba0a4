"""DeepMind Lab's first-person levels, 84×84 pixels, with the action names of :mod:`envs.actions`."""

from typing import Any

import gymnasium as gym
import numpy as np

from envs.actions import NAVIGATION, Motion

ACTION_REPEAT = 4  # engine frames per step
LOOK_PIXELS_PER_FRAME = 20  # of a mouse: 16.9° a step at 30 frames a second, 8.4° at 60

_PICTURE = "RGB_INTERLEAVED"


class LabEnv(gym.Env):
    """A DeepMind Lab level as a Gymnasium environment.

    Observations are (84, 84, 3) uint8, rewards the level's own. The same seed and actions give the same frames, however
    many episodes came before. ``reset(seed=None)`` draws the next episode's seed from the generator of the last seed.

    The engine draws nothing after the last action of an episode: that step gives the frame before it once more, with
    ``{"final_observation_missing": True}`` for its info. Nor does it tell a time limit from a goal, so every end is
    ``terminated``. A process that holds an open level must not be forked; spawning is fine.

    Args:
        level: such as ``"seekavoid_arena_01"`` or ``"contributed/dmlab30/explore_goal_locations_small"``.
        fps: engine frames in a second of the level's time; a step is four of them, so at 60 a look turns half as far.
        renderer: ``"software"``, or ``"hardware"`` where the wheel was built with it.

    Raises:
        ImportError: if the ``deepmind_lab`` module is not installed; the message says how to build it.
        ValueError: for an unknown level, or a renderer that was not built.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30 / ACTION_REPEAT}

    def __init__(
        self,
        level: str = "seekavoid_arena_01",
        fps: int = 30,
        renderer: str = "software",
        render_mode: str | None = None,
    ) -> None:
        if not isinstance(fps, int) or fps <= 0:
            raise ValueError(f"fps must be a positive whole number, got {fps!r}")
        if renderer not in ("software", "hardware"):
            raise ValueError(f"renderer must be 'software' or 'hardware', got {renderer!r}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": fps / ACTION_REPEAT}
        self._lab = _open(level, fps, renderer)  # for all episodes: every one that is opened leaks file descriptors
        self.action_names = tuple(NAVIGATION)
        self._commands = [_command(motion) for motion in NAVIGATION.values()]
        self.action_space = gym.spaces.Discrete(len(NAVIGATION))
        self.observation_space = gym.spaces.Box(0, 255, (84, 84, 3), np.uint8)
        self._frame = np.zeros((84, 84, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; returns the first frame (84, 84, 3) uint8 and an empty info."""
        super().reset(seed=seed)
        if self._lab is None:
            raise RuntimeError("the level is closed: make a new one")
        # A level may read the episode's number, which counts up by itself: held at 0, the seed alone decides.
        self._lab.reset(episode=0, seed=int(self.np_random.integers(2**31)))
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold ``action`` for four engine frames; after the last step of an episode the frame is the one before it."""
        if not self.action_space.contains(action):
            raise ValueError(f"action must be in [0, {self.action_space.n}), got {action!r}")
        if self._lab is None or not self._lab.is_running():
            raise RuntimeError("the episode is over: call reset() before step()")
        reward = self._lab.step(self._commands[action], num_steps=ACTION_REPEAT)
        if self._lab.is_running():
            return self._observe(), reward, False, False, {}
        return self._frame.copy(), reward, True, False, {"final_observation_missing": True}

    def render(self) -> np.ndarray | None:
        """The current frame, (84, 84, 3) uint8."""
        return self._frame.copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Stop the engine; closing twice is fine."""
        if self._lab is not None:
            self._lab.close()
            self._lab = None

    def _observe(self) -> np.ndarray:
        self._frame = self._lab.observations()[_PICTURE]
        return self._frame.copy()


def _open(level: str, fps: int, renderer: str) -> Any:
    try:
        import deepmind_lab  # here, so that everything else of the package works without it
    except ModuleNotFoundError as error:
        if error.name != "deepmind_lab":
            raise
        raise ImportError(
            "envs:Lab-v0 needs the module deepmind_lab, which is not on PyPI: build its wheel with bazel from the "
            "DeepMind Lab repository (https://github.com/google-deepmind/lab, docs/users/build.md) and pip install it; "
            "envs:Doom-v0 works meanwhile"
        ) from error
    settings = {"width": "84", "height": "84", "fps": str(fps)}
    try:
        return deepmind_lab.Lab(level, [_PICTURE], config=settings, renderer=renderer)
    except RuntimeError as error:
        raise ValueError(f"DeepMind Lab cannot open level {level!r} with the {renderer} renderer: {error}") from error


def _command(motion: Motion) -> np.ndarray:
    """The engine's seven numbers: look right, look up, strafe right, move forward, fire, jump, crouch."""
    return np.array(
        [motion.look * LOOK_PIXELS_PER_FRAME, 0, motion.strafe, motion.forward, motion.attack, 0, 0], np.intc
    )
