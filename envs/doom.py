"""First-person Doom worlds on ViZDoom, 84×84 pixels or another size, with the action names of :mod:`envs.actions`."""

import os
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import vizdoom
from PIL import Image

from envs import scratch
from envs.actions import ATTACK, NAVIGATION, Motion
from worldmodel.suggest import unknown

SCENARIOS = (
    "health_gathering_supreme",
    "health_gathering",
    "my_way_home",
    "take_cover",
    "deadly_corridor",
    "defend_the_center",
)
MAPS = tuple(f"E{episode}M{number}" for episode in (1, 2, 3, 4) for number in range(1, 10))
ACTION_REPEAT = 4  # game tics per step; Doom runs at 35 tics a second
LOOK_DEGREES_PER_TIC = 1.875  # 7.5° a step, near the 8.4° of DeepMind Lab at 60 frames a second

_BUTTONS = [
    vizdoom.Button.MOVE_FORWARD,
    vizdoom.Button.MOVE_BACKWARD,
    vizdoom.Button.MOVE_LEFT,
    vizdoom.Button.MOVE_RIGHT,
    vizdoom.Button.TURN_LEFT_RIGHT_DELTA,  # degrees a tic: turns evenly, where TURN_LEFT speeds up while it is held
    vizdoom.Button.ATTACK,
]


class DoomEnv(gym.Env):
    """A Doom scenario as a Gymnasium environment.

    Observations are (84, 84, 3) uint8, or of another size: the game's 320×240 picture scaled with an antialiasing
    filter (the 160×120 picture is twice as fast to draw, but its floors shimmer). Rewards, episode ends and time
    limits are the scenario's own; a time limit reports ``truncated``, a death or a goal ``terminated``. The same seed
    and actions give the same frames. ``reset(seed=None)`` draws the next episode's seed from the generator of the last
    seed.

    Args:
        scenario: one of :data:`SCENARIOS`; ignored when ``map`` is given.
        map: a Freedoom map of the first game, ``"E1M1"`` to ``"E4M9"``, instead of a scenario.
        actions: names of those to offer, in this order; by default the nine of :data:`envs.actions.NAVIGATION`, and
            ``attack`` where the scenario has it.
        size: pixels of a side of the picture.
        objects: say in each info's ``objects`` what is in view, (name, identity, box), as the engine's labels buffer
            knows it; box is (left, top, right, bottom) as shares of the picture's sides.

    Raises:
        ValueError: for an unknown scenario, map or action, or a size below 1.
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
            raise ValueError(unknown("scenario", scenario, SCENARIOS))
        if map is not None and map not in MAPS:
            raise ValueError(unknown("map", map, MAPS))
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.render_mode, self.frame_size, self._objects = render_mode, size, objects
        folder = scratch.make("vizdoom")  # the engine writes settings and logs; they leave with the game
        self.game = vizdoom.DoomGame()
        self._shut = weakref.finalize(self, _shut, self.game, folder, os.getpid())
        motions = _select(_launch(self.game, scenario, map, folder, objects), actions)
        self.action_names = tuple(motions)
        self._commands = [_command(motion) for motion in motions.values()]
        self.action_space = gym.spaces.Discrete(len(motions))
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self._frame = np.zeros((size, size, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; returns the first frame (size, size, 3) uint8 and an info."""
        super().reset(seed=seed)
        self.game.set_seed(int(self.np_random.integers(2**31)))
        self.game.new_episode()
        return self._observe(), self._seen()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold ``action`` for four tics; after the last step of an episode the frame is the last one that was drawn."""
        if not self.action_space.contains(action):
            raise ValueError(f"action must be in [0, {self.action_space.n}), got {action!r}")
        if self.game.is_episode_finished():
            raise RuntimeError("the episode is over: call reset() before step()")
        reward = self.game.make_action(self._commands[action], ACTION_REPEAT)
        finished = self.game.is_episode_finished()
        truncated = finished and self.game.is_episode_timeout_reached() and not self.game.is_player_dead()
        info = {"final_observation_missing": True} if finished else {}  # the game shows no picture once it is over
        return self._observe(), reward, finished and not truncated, truncated, info | self._seen()

    def render(self) -> np.ndarray | None:
        """The current frame, (size, size, 3) uint8."""
        return self._frame.copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Stop the game and remove its scratch folder; closing twice is fine."""
        self._shut()

    def _observe(self) -> np.ndarray:
        state = self.game.get_state()
        if state is not None:  # None once the episode is over
            picture = Image.fromarray(state.screen_buffer)
            self._frame = np.asarray(picture.resize((self.frame_size, self.frame_size), Image.Resampling.BILINEAR))
        return self._frame.copy()

    def _seen(self) -> dict[str, Any]:
        state = self.game.get_state() if self._objects else None
        if state is None:
            return {}
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


def _launch(game: vizdoom.DoomGame, scenario: str, map: str | None, folder: str, objects: bool) -> dict[str, Motion]:
    """Start a game in ``folder`` and say its actions: there is an attack if the scenario's own has one."""
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
    here = os.getcwd()
    os.chdir(folder)  # the engine's process also leaves a folder where it is started
    try:
        game.init()
    finally:
        os.chdir(here)
    return {**NAVIGATION, **(ATTACK if attacks else {})}


def _select(motions: dict[str, Motion], names: Sequence[str]) -> dict[str, Motion]:
    for name in names:
        if name not in motions:
            raise ValueError(unknown("action", name, motions))
    return {name: motions[name] for name in names} if names else motions


def _shut(game: vizdoom.DoomGame, folder: str, owner: int) -> None:
    if os.getpid() != owner:  # a fork of the process whose game it is
        return
    game.close()
    shutil.rmtree(folder, ignore_errors=True)


def _command(motion: Motion) -> list[float]:
    return [
        motion.forward == 1,
        motion.forward == -1,
        motion.strafe == -1,
        motion.strafe == 1,
        motion.look * LOOK_DEGREES_PER_TIC,
        motion.attack == 1,
    ]
