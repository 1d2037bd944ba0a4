"""Action scripts such as ``forward:10,look_left:5``."""

import numpy as np

from worldmodel.suggest import unknown_name

MAX_FRAMES = 1_000_000
DEFAULT_FRAMES = 10


def plan_actions(action: str, actions: str, frames: int | None, action_names: tuple[str, ...]) -> np.ndarray:
    """Return the actions (T,) int64: one repeated, or a script, which is repeated to fill ``frames`` if given."""
    if not actions:
        action = action or ("forward" if "forward" in action_names else action_names[0])
        return parse_actions(f"{action}:{frames or DEFAULT_FRAMES}", action_names)
    script = parse_actions(actions, action_names)
    return np.resize(script, frames) if frames else script


def parse_actions(actions: str, action_names: tuple[str, ...]) -> np.ndarray:
    """``"forward:2,look_left:1"`` -> (T,) int64.

    Raises:
        ValueError: for an unknown action name, or an invalid or too large number of frames.
    """
    indices = []
    for part in actions.split(","):
        name, _, times = part.strip().partition(":")
        if name not in action_names:
            raise ValueError(unknown_name("action", name, action_names))
        if times and not (times.isascii() and times.isdigit() and 0 < int(times[:20]) <= MAX_FRAMES):
            raise ValueError(f"{part!r} must be an action, a colon and a number of frames, such as {name}:10")
        indices += [action_names.index(name)] * int(times or 1)
        if len(indices) > MAX_FRAMES:
            raise ValueError(f"actions must take {MAX_FRAMES} frames or fewer in all, got {len(indices)} by {part!r}")
    return np.array(indices)
