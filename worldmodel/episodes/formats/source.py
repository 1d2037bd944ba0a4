"""Return type and helpers of the importers."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldmodel.episodes.episode import Episode
from worldmodel.episodes.schema import Schema

MAX_UNNAMED_ACTIONS = 4096  # if the files do not name them


@dataclass(frozen=True)
class Source:
    """Episodes to import: their schema, their names, and a function that reads episode n.

    With ``names_repeat``, episodes of different sources can have the same name. Without it, a known name with other
    content means that the episode has changed, which is an error.
    """

    schema: Schema
    names: Sequence[str]
    read: Callable[[int], Episode]
    names_repeat: bool = False


def natural_key(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts names with the numbers in them as numbers, so that 10 comes after 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def ended_by(key: str, flags: np.ndarray) -> bool:
    """Return whether an episode ended in this way: its only flag, or the flag of its last step.

    Raises:
        ValueError: if a flag is not boolean, or is true before the last step, where another episode must begin.
    """
    flags = np.asarray(flags).reshape(-1)
    if not np.isin(flags, (0, 1)).all():
        raise ValueError(f"{key} must be true or false, got {flags[~np.isin(flags, (0, 1))][0]}")
    if flags[:-1].any():
        raise ValueError(
            f"{key} is true at step {int(flags.argmax())} of {len(flags)}: it joins several episodes; "
            "write each into a file of its own"
        )
    return bool(flags[-1])


def check_dtype(dtype: np.dtype | str, shape: tuple[int, ...], source: Path | str) -> str:
    """Return the name of an observation dtype, or raise ValueError if a store cannot hold such observations."""
    if str(dtype) not in ("uint8", "uint16") or len(shape) < 2:
        raise ValueError(f"{source} must hold uint8 images or uint16 codes with height and width, got {dtype} {shape}")
    return str(dtype)
