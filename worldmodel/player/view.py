"""What a player sees."""

from typing import NamedTuple

import numpy as np


class View(NamedTuple):
    """What a player sees after a start or a step."""

    frame: np.ndarray  # (H, W, 3) uint8
    step: int = 0
    reward: float = 0.0  # since the start
    termination_prob: float | None = None  # the model's, for the latest step; None without a model
    end: str = ""  # terminated, truncated, or empty while the episode goes on
    truth: np.ndarray | None = None  # (H, W, 3) uint8, the real frame beside a dream
    psnr: float | None = None  # dB, of the dreamed frame against the real one
    surprise: float | None = None  # bits per code of the real frame, given the real past
    chosen: str = ""  # the action that an agent chose for the latest step
