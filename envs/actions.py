"""The named discrete actions that Doom and DeepMind Lab share.

Every world of this package with a moving first-person camera understands the same nine words, in the same order, so a
policy, a recording or a dream made in one can be read in the other. A positive look turns right, a positive strafe
steps right.
"""

from typing import NamedTuple


class Motion(NamedTuple):
    """What one action asks of the body: each field is -1, 0 or 1."""

    forward: int = 0
    strafe: int = 0
    look: int = 0
    attack: int = 0


NAVIGATION: dict[str, Motion] = {
    "noop": Motion(),
    "forward": Motion(forward=1),
    "backward": Motion(forward=-1),
    "strafe_left": Motion(strafe=-1),
    "strafe_right": Motion(strafe=1),
    "look_left": Motion(look=-1),
    "look_right": Motion(look=1),
    "forward_look_left": Motion(forward=1, look=-1),
    "forward_look_right": Motion(forward=1, look=1),
}

ATTACK: dict[str, Motion] = {"attack": Motion(attack=1)}
