"""An environment for the tests of recording: a square that moves, and ways to make the recording process fail."""

import os
import signal
import time
from pathlib import Path

import gymnasium as gym
import numpy as np

gym.register("Tiny-v0", entry_point="tests.tiny_world:TinyWorld")


class TinyWorld(gym.Env):
    """Shows frames (84, 84, 3), which depend on the seed and the actions, for 16 to 24 steps.

    Args:
        pause: duration of a step in seconds.
        dies: file; the first process to take forty steps creates it and kills itself.
        breaks: number of steps after which an error is raised.
    """

    metadata = {"render_modes": []}
    action_names = ("noop", "forward", "look_left", "look_right")

    def __init__(self, pause: float = 0.0, dies: str = "", breaks: int = 0) -> None:
        self.observation_space = gym.spaces.Box(0, 255, (84, 84, 3), np.uint8)
        self.action_space = gym.spaces.Discrete(4)
        self.pause, self.dies, self.breaks = pause, Path(dies), breaks
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left, self.place = int(self.np_random.integers(16, 25)), self.np_random.integers(74, size=2)
        return self.frame(), {}

    def step(self, action):
        time.sleep(self.pause)
        self.steps += 1
        if self.steps == self.breaks:
            raise RuntimeError(f"the world broke after {self.steps} steps")
        if self.steps >= 40 and self.dies.name and not self.dies.exists():
            self.dies.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        moved = np.array([action - 1, self.np_random.integers(3)])
        self.place = (self.place + moved) % 74
        return self.frame(), float(action == 1), self.left == 0, False, {}

    def frame(self):
        picture = np.zeros((84, 84, 3), np.uint8)
        row, column = self.place
        picture[row : row + 10, column : column + 10] = 255
        return picture
