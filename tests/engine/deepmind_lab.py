"""Stands in for ``deepmind_lab``: the signatures and errors of a real build, and noise for pictures.

A picture is a function of the level, the episode's number and seed, the actions since the reset, and of what a real
engine carries from one episode into the next: the phase of its clock, the last action and the height of the start.
Forward earns half a point an engine frame.

Every engine adds a line to the file that the variable ``FAKE_LAB_LOG`` names for all that it is asked, prints a maze,
and opens descriptors; beyond ``FAKE_LAB_LIMIT`` engines in a process, that ends without an exception.
"""

import json
import os
import zlib
from typing import Any

import numpy as np

LEVELS = ("seekavoid_arena_01", "nav_maze_random_goal_01")
EPISODE_FRAMES = 42  # so that an episode ends in the middle of its eleventh step of four
LOOK, FLAG = (-512, 512), (0, 1)
ACTIONS = {
    "LOOK_LEFT_RIGHT_PIXELS_PER_FRAME": LOOK,
    "LOOK_DOWN_UP_PIXELS_PER_FRAME": LOOK,
    "STRAFE_LEFT_RIGHT": (-1, 1),
    "MOVE_BACK_FORWARD": (-1, 1),
    "FIRE": FLAG,
    "JUMP": FLAG,
    "CROUCH": FLAG,
}


class Lab:
    """``deepmind_lab.Lab``."""

    made = 0

    def __init__(
        self,
        level: str,
        observations: list[str],
        config: dict[str, str] | None = None,
        renderer: str = "software",
        level_cache: Any = None,
        temp_folder: str = "",
    ) -> None:
        if not isinstance(level, str):
            raise TypeError(f"argument 1 must be str, not {type(level).__name__}")
        if not isinstance(observations, list):
            raise TypeError(f"argument 2 must be list, not {type(observations).__name__}")
        config = {} if config is None else config
        if not isinstance(config, dict) or not all(isinstance(value, str) for value in config.values()):
            raise TypeError("bad argument type for built-in operation")
        if renderer != "software":
            raise RuntimeError(f"Failed to set renderer: {renderer!r} was not built")
        if level not in LEVELS:
            raise RuntimeError(f"Level not found: {level!r}")
        size = [config.get("height", "240"), config.get("width", "320")]
        if not all(side.isdigit() and int(side) > 0 for side in size):
            raise RuntimeError(f"Failed to apply setting: bad width or height in {size}")
        self._shape = (int(size[0]), int(size[1]), 3)
        for name in observations:
            if name not in [spec["name"] for spec in self.observation_spec()]:
                raise ValueError(f"Unknown observation '{name}'.")
        self._observations = observations
        self._level, self._episode, self._digest, self._frames = level, 0, 0, 0
        self._status = "uninitialized"
        self._clock, self._last, self._height = 0, (), 24.1  # what stays from one episode to the next
        self.config = config
        Lab.made += 1
        if Lab.made > int(os.environ.get("FAKE_LAB_LIMIT", "1000")):
            os.write(2, b"Couldn't load default.cfg\n")
            os._exit(3)
        os.write(1, b"****\n*  *\n****\n")
        _log("open", os.getpid(), config, temp_folder)

    def observation_spec(self) -> list[dict[str, Any]]:
        height, width, _ = self._shape
        return [
            {"name": "RGB_INTERLEAVED", "shape": self._shape, "dtype": np.uint8},
            {"name": "RGB", "shape": (3, height, width), "dtype": np.uint8},
            {"name": "VEL.TRANS", "shape": (3,), "dtype": np.float64},
        ]

    def action_spec(self) -> list[dict[str, Any]]:
        return [{"name": name, "min": low, "max": high} for name, (low, high) in ACTIONS.items()]

    def fps(self) -> int:
        return int(self.config.get("fps", "60"))

    def num_steps(self) -> int:
        return self._frames

    def is_running(self) -> bool:
        return self._status == "running"

    def reset(self, episode: int | None = None, seed: int | None = None) -> bool:
        if seed is not None and type(seed) is not int:
            raise ValueError(f"'seed' must be int or None, was '{type(seed).__name__}'.")
        if self._status == "closed":
            raise RuntimeError("Failed to start environment")
        self._episode = self._episode if episode is None else episode
        start = (self._level, self._episode, seed, self._clock % 7, self._last, self._height)
        self._digest, self._height = zlib.crc32(repr(start).encode()), 41.0
        self._frames, self._status = 0, "running"
        self._episode += 1
        _log("reset", os.getpid(), seed, episode)
        return True

    def step(self, action: np.ndarray, num_steps: int = 1) -> float:
        if not isinstance(action, np.ndarray):
            raise TypeError(f"argument 1 must be numpy.ndarray, not {type(action).__name__}")
        if not self.is_running():
            raise RuntimeError("Environment in wrong status to advance.")
        if action.shape != (len(ACTIONS),):
            raise ValueError(f"action must have shape ({len(ACTIONS)})")
        if action.dtype != np.intc:
            raise ValueError("action must have dtype np.intc")
        played = min(num_steps, EPISODE_FRAMES - self._frames)
        self._frames += played
        self._clock += played
        self._last = tuple(action.tolist())
        self._digest = zlib.crc32(action.tobytes(), self._digest)
        self._status = "running" if self._frames < EPISODE_FRAMES else "terminated"
        _log("step", *action.tolist(), num_steps)
        return 0.5 * played * max(0, int(action[3]))

    def observations(self) -> dict[str, np.ndarray]:
        if not self.is_running():
            raise RuntimeError("Environment in wrong status for call to observations()")
        picture = np.random.default_rng(self._digest).integers(0, 256, self._shape, np.uint8)
        values = {"RGB_INTERLEAVED": picture, "RGB": picture.transpose(2, 0, 1).copy(), "VEL.TRANS": np.zeros(3)}
        return {name: values[name] for name in self._observations}

    def close(self) -> bool:
        closed, self._status = self._status == "closed", "closed"
        return not closed


def _log(*call: Any) -> None:
    if "FAKE_LAB_LOG" in os.environ:
        with open(os.environ["FAKE_LAB_LOG"], "a", encoding="utf-8") as file:
            print(json.dumps(call), file=file)
