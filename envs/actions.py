"""The named discrete actions that Doom and DeepMind Lab share.

Both have the same nine navigation actions in the same order, so that policies, recordings and dreams can be exchanged.
"""

from typing import NamedTuple


class MotionCommand(NamedTuple):
    """The movement that one action commands; each field is -1, 0 or 1."""

    forward: int = 0  # 1 forward, -1 backward
    strafe: int = 0  # 1 right, -1 left
    look: int = 0  # 1 turns right, -1 left
    attack: int = 0


NAVIGATION: dict[str, MotionCommand] = {
    "noop": MotionCommand(),
    "forward": MotionCommand(forward=1),
    "backward": MotionCommand(forward=-1),
    "strafe_left": MotionCommand(strafe=-1),
    "strafe_right": MotionCommand(strafe=1),
    "look_left": MotionCommand(look=-1),
    "look_right": MotionCommand(look=1),
    "forward_look_left": MotionCommand(forward=1, look=-1),
    "forward_look_right": MotionCommand(forward=1, look=1),
}

ATTACK: dict[str, MotionCommand] = {"attack": MotionCommand(attack=1)}
