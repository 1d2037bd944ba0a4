"""First-person Doom on ViZDoom, as a Gymnasium environment with the action names of :mod:`envs.actions`."""

import os
import shutil
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import vizdoom
from PIL import Image

from envs import scratch
from envs.actions import ATTACK, NAVIGATION, MotionCommand
from worldmodel.suggest import unknown_name

SCENARIOS = (
    "health_gathering_supreme",
    "health_gathering",
    "my_way_home",
    "take_cover",
    "deadly_corridor",
    "defend_the_center",
)
MAPS = tuple(f"E{episode}M{number}" for episode in (1, 2, 3, 4) for number in range(1, 10))
ACTION_REPEAT = 4  # tics per step; Doom runs at 35 tics per second
ENGINE_ERRORS = (  # of vizdoom, when its process has ended
    vizdoom.ViZDoomErrorException,
    vizdoom.ViZDoomIsNotRunningException,
    vizdoom.ViZDoomUnexpectedExitException,
    vizdoom.MessageQueueException,
    vizdoom.SharedMemoryException,
)
LOOK_DEGREES_PER_TIC = 1.875  # 7.5° per step, close to the 8.4° of DeepMind Lab at 60 frames per second

_BUTTONS = [
    vizdoom.Button.MOVE_FORWARD,
    vizdoom.Button.MOVE_BACKWARD,
    vizdoom.Button.MOVE_LEFT,
    vizdoom.Button.MOVE_RIGHT,
    vizdoom.Button.TURN_LEFT_RIGHT_DELTA,  # degrees per tic; TURN_LEFT would accelerate while held
    vizdoom.Button.ATTACK,
]


class DoomEnv(gym.Env):
    """A Doom scenario as a Gymnasium environment.

    Observations: Box (size, size, 3) uint8, RGB; the game's 320×240 image, resized with an antialiasing filter.
    Actions: Discrete, named by ``action_names``; each is held for 4 tics (1/35 s each), in which a look turns 7.5°.
    Rewards and episode ends are the scenario's own: a death or a goal is ``terminated``, a time limit ``truncated``.
    Info: ``final_observation_missing`` is True at the last step, whose observation repeats the frame before it;
    ``objects`` as described below.

    The same seed and actions give the same frames. ``reset(seed=None)`` continues the random stream of the last seed.

    Args:
        scenario: one of :data:`SCENARIOS`; ignored when ``map`` is given.
        map: Freedoom map to play instead of a scenario, ``"E1M1"`` to ``"E4M9"``.
        actions: names of the available actions, in this order; by default the nine of
            :data:`envs.actions.NAVIGATION`, and ``attack`` if the scenario has it.
        render_mode: ``"rgb_array"`` or None.
        size: width and height of the observations in pixels.
        objects: whether info["objects"] lists the visible objects of the engine's labels buffer as (name, id, box),
            with box (left, top, right, bottom) in fractions of the image's width and height.

    Raises:
        ValueError: for an unknown scenario, map or action, or a size below 1.
        ChildProcessError: from reset and step, if the engine ended its process; the next reset starts another.
    """

    metadata = {
        "render_modes": ["rgb_array"],
        "render_fps": 35 / ACTION_REPEAT,
        "engine": f"vizdoom {vizdoom.__version__}",
    }

    def __init__(
        self,
        scenario: str = "health_gathering_supreme",
        map: str | None = None,
        actions: Sequence[str] = (),
        render_mode: str | None = None,
        size: int = 84,
        objects: bool = False,
    ) -> None:
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"size must be a number of pixels, 1 or more, got {size!r}")
        if map is None and scenario not in SCENARIOS:
            raise ValueError(unknown_name("scenario", scenario, SCENARIOS))
        if map is not None and map not in MAPS:
            raise ValueError(unknown_name("map", map, MAPS))
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.render_mode, self.frame_size, self._objects = render_mode, size, objects
        self._scenario, self._map, self._closed = scenario, map, False
        commands = _select(self._start_engine(), actions)
        self.action_names = tuple(commands)
        self._button_values = [_button_values(command) for command in commands.values()]
        self.action_space = gym.spaces.Discrete(len(commands))
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self._frame = np.zeros((size, size, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; returns the first frame (size, size, 3) uint8 and the info."""
        super().reset(seed=seed)
        if self._closed:
            raise RuntimeError("the game is closed: make a new one")
        if not self._stop.alive:
            self._start_engine()
        with self._engine_errors():
            self.game.set_seed(int(self.np_random.integers(2**31)))
            self.game.new_episode()
            return self._observe(), self._visible_objects()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold ``action`` for four tics; the last step of an episode repeats the last frame that was drawn."""
        if not self.action_space.contains(action):
            raise ValueError(f"action must be in [0, {len(self.action_names)}), got {action!r}")
        with self._engine_errors():
            if self.game.is_episode_finished():
                raise RuntimeError("the episode is over: call reset() before step()")
            reward = self.game.make_action(self._button_values[action], ACTION_REPEAT)
            finished = self.game.is_episode_finished()
            truncated = finished and self.game.is_episode_timeout_reached() and not self.game.is_player_dead()
            info = {"final_observation_missing": True} if finished else {}  # the engine draws none
            return self._observe(), reward, finished and not truncated, truncated, info | self._visible_objects()

    def render(self) -> np.ndarray | None:
        """Return the current frame (size, size, 3) uint8, or None without a render mode."""
        return self._frame.copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Stop the game and remove its scratch folder; closing twice is fine."""
        self._closed = True
        self._stop()

    def _start_engine(self) -> dict[str, MotionCommand]:
        """Start the engine, and return its actions by name."""
        folder = scratch.make_folder("vizdoom")  # for the engine's settings and logs, removed on close
        self.game = vizdoom.DoomGame()
        self._stop = weakref.finalize(self, _stop, self.game, folder, os.getpid())
        return _launch(self.game, self._scenario, self._map, folder, self._objects)

    @contextmanager
    def _engine_errors(self) -> Iterator[None]:
        """Turn the errors of an engine that has ended into a ChildProcessError."""
        try:
            yield
        except ENGINE_ERRORS as error:
            self._stop()
            raise ChildProcessError(f"the Doom engine has ended, the next reset starts another: {error}") from error

    def _observe(self) -> np.ndarray:
        state = self.game.get_state()
        if state is not None:  # None once the episode is over
            image = Image.fromarray(state.screen_buffer)
            self._frame = np.asarray(image.resize((self.frame_size, self.frame_size), Image.Resampling.BILINEAR))
        return self._frame.copy()

    def _visible_objects(self) -> dict[str, Any]:
        state = self.game.get_state() if self._objects else None
        if state is None:
            return {}
        assert state.labels_buffer is not None and state.labels is not None  # _launch enabled them
        height, width = state.labels_buffer.shape
        return {
            "objects": [
                (
                    label.object_name,
                    label.object_id,
                    (
                        label.x / width,
                        label.y / height,
                        (label.x + label.width) / width,
                        (label.y + label.height) / height,
                    ),
                )
                for label in state.labels
            ]
        }


def _launch(
    game: vizdoom.DoomGame, scenario: str, map: str | None, folder: str, objects: bool
) -> dict[str, MotionCommand]:
    """Start a game in ``folder`` and return its actions by name; ``attack`` only if the scenario has it."""
    game.load_config(str(Path(vizdoom.scenarios_path) / f"{'freedoom1' if map else scenario}.cfg"))
    if map:
        game.set_doom_map(map)
    attacks = vizdoom.Button.ATTACK in game.get_available_buttons()
    game.set_available_buttons(_BUTTONS)
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_window_visible(False)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_320X240)
    game.set_labels_buffer_enabled(objects)
    game.set_doom_config_path(os.path.join(folder, "vizdoom.ini"))
    working_folder = os.getcwd()
    os.chdir(folder)  # the engine also leaves a folder in its working directory
    try:
        game.init()
    finally:
        os.chdir(working_folder)
    return {**NAVIGATION, **(ATTACK if attacks else {})}


def _select(commands: dict[str, MotionCommand], names: Sequence[str]) -> dict[str, MotionCommand]:
    for name in names:
        if name not in commands:
            raise ValueError(unknown_name("action", name, commands))
    return {name: commands[name] for name in names} if names else commands


def _stop(game: vizdoom.DoomGame, folder: str, owner: int) -> None:
    if os.getpid() != owner:  # in a fork, the game still belongs to the parent
        return
    game.close()
    shutil.rmtree(folder, ignore_errors=True)


def _button_values(command: MotionCommand) -> list[float]:
    """Return the value of each of :data:`_BUTTONS`."""
    return [
        command.forward == 1,
        command.forward == -1,
        command.strafe == -1,
        command.strafe == 1,
        command.look * LOOK_DEGREES_PER_TIC,
        command.attack == 1,
    ]
