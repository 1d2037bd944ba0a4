"""Import episodes from folders of ``.npz`` files."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from worldmodel.episodes.episode import Episode
from worldmodel.episodes.formats.source import MAX_UNNAMED_ACTIONS, Source, check_dtype, ended_by, natural_key
from worldmodel.episodes.schema import Schema
from worldmodel.files import check_archive

KEYS = ("observations", "actions", "rewards", "terminated", "truncated")  # required; frames means observations


def from_npz(folder: str, env: str = "") -> Source:
    """Return the episodes of a folder of .npz files, one per file, in natural order of their names (10 after 9).

    A file has the keys ``frames`` or ``observations`` (T or T+1, H, W, C), ``actions`` (T,), ``rewards`` (T,),
    ``terminated`` and ``truncated`` (one for the episode, or one per step, of which the last counts); optional keys are
    ``seed``, ``action_names``, ``level`` and ``fps``. A file with a ``level`` is from DeepMind Lab.

    Raises:
        FileNotFoundError: if there are no such files.
        ValueError: naming the file that lacks a key, is damaged, or is from another environment than the first.
    """
    paths = sorted(Path(folder).glob("*.npz"), key=lambda path: natural_key(path.name))
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no .npz files; give a folder of them, or --format minari with the id of a Minari dataset"
        )
    first = _load_arrays(paths[0], KEYS)
    names = first.get("action_names")
    if names is None:
        largest, path = max((_max_action(path), path) for path in paths)
        if largest >= MAX_UNNAMED_ACTIONS:
            raise ValueError(
                f"{path} has action {largest}; without action_names they must be below {MAX_UNNAMED_ACTIONS}"
            )
        names = range(1 + largest)
    lab: dict[str, str | int] = {"level": str(first["level"])} if "level" in first else {}
    if lab and "fps" in first:
        lab["fps"] = _to_int(first["fps"], "fps", paths[0])
    if isinstance(names, np.ndarray) and names.ndim != 1:
        raise ValueError(f"{paths[0]} is not an episode: action_names must be a list, got {names.shape}")
    if lab and first["level"].ndim:
        raise ValueError(f"{paths[0]} is not an episode: level must be one name, got {first['level'].shape}")
    shape = first["observations"].shape[1:]
    schema = Schema(
        observation_shape=shape,
        observation_dtype=check_dtype(first["observations"].dtype, shape, paths[0]),
        action_names=tuple(map(str, names)),
        environment=env or ("envs:Lab-v0" if lab else "unknown"),
        kwargs=lab,
        provenance={"imported": Path(folder).resolve().name},
    )

    def read(number: int) -> Episode:
        data = _load_arrays(paths[number], KEYS)
        for key in ("level", "fps", "action_names"):
            if not np.array_equal(np.asarray(data.get(key)), np.asarray(first.get(key))):
                raise ValueError(
                    f"{paths[number]} has {key} {data.get(key)} where {paths[0].name} has {first.get(key)}; "
                    "import them into separate stores"
                )
        if data["rewards"].dtype.kind not in "fiub":
            raise ValueError(f"{paths[number]} is not an episode: rewards must be numeric, got {data['rewards'].dtype}")
        for key in ("terminated", "truncated"):
            if data[key].size not in (1, data["actions"].size):
                raise ValueError(
                    f"{paths[number]} is not an episode: {key} must be one flag, or one per step, got {data[key].shape}"
                )
        try:
            return Episode(
                observations=data["observations"],
                actions=data["actions"],
                rewards=data["rewards"].astype(np.float64),
                terminated=ended_by("terminated", data["terminated"]),
                truncated=ended_by("truncated", data["truncated"]),
                seed=_to_int(data.get("seed", -1), "seed", paths[number]),
            )
        except (ValueError, TypeError, IndexError, OverflowError) as error:
            raise ValueError(f"{paths[number]} is not an episode: {error}") from error

    return Source(schema, [path.name for path in paths], read)


def _load_arrays(path: Path, keys: Collection[str]) -> dict[str, np.ndarray]:
    """Read the given arrays and the optional small ones of an .npz file; frames are returned as observations."""
    try:
        check_archive(path)
        with np.load(path) as file:
            found = {"observations" if name == "frames" else name: name for name in file.files}
            if {"frames", "observations"} <= set(file.files):
                raise ValueError("it has both frames and observations; give one of them")
            if missing := [key for key in KEYS if key not in found]:
                raise ValueError(
                    f"it lacks {', '.join(missing)}; expected frames or observations, {', '.join(KEYS[1:])}, "
                    f"found {', '.join(file.files)}"
                )
            wanted = (*keys, "seed", "action_names", "level", "fps")
            arrays = {key: file[name] for key, name in found.items() if key in wanted}
        if invalid := [key for key, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"its {invalid[0]} is not an array")
        return arrays
    except Exception as error:  # a damaged file can cause any exception
        raise ValueError(f"{path} is not an episode: {error}") from error


def _max_action(path: Path) -> int:
    """Return the largest action of an .npz file."""
    actions = _load_arrays(path, ("actions",))["actions"]
    if not np.issubdtype(actions.dtype, np.integer) or actions.min(initial=0) < 0:
        raise ValueError(f"{path} is not an episode: actions must be integers of 0 or more, got {actions.dtype}")
    return int(actions.max(initial=0))


def _to_int(value: np.ndarray | int, name: str, path: Path) -> int:
    """Convert a value to an integer.

    Raises:
        ValueError: if it is not one whole number of 64 bits.
    """
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf" or not -(2**63) <= array.item() < 2**63 or array % 1 != 0:
        raise ValueError(f"{path} is not an episode: {name} must be one whole number, got {array.dtype} {array.shape}")
    return int(array.item())
