"""Episodes in other formats than the store's: folders of .npz files, and Minari datasets (which need the extra)."""

import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import numpy as np

from worldmodel.episodes.episode import Episode
from worldmodel.episodes.store import Entry, EpisodeStore, Schema
from worldmodel.files import check_archive

MINARI_FOLDER = "MINARI_DATASETS_PATH"  # the variable that Minari reads
MOST_ACTIONS = 4096  # of a world whose files do not name them
KEYS = ("observations", "actions", "rewards", "terminated", "truncated")  # of an .npz file; frames are observations


@dataclass(frozen=True)
class Source:
    """Episodes to read: what they have in common, what each is called, and a function that reads number n."""

    schema: Schema
    names: Sequence[str]
    read: Callable[[int], Episode]


def npz(folder: str, env: str = "") -> Source:
    """The episodes of a folder of .npz files, one a file, in order of their names, in which 10 comes after 9.

    A file has the keys ``frames`` or ``observations`` (T or T+1, H, W, C), ``actions`` (T,), ``rewards`` (T,),
    ``terminated`` and ``truncated`` (one for the episode, or one a step of which the last counts); it may have
    ``seed``, ``action_names``, ``level`` and ``fps``. A file with a ``level`` is one of DeepMind Lab's.

    Raises:
        FileNotFoundError: if there are no such files.
        ValueError: naming the file that lacks a key, is damaged, or is of another world than the first one.
    """
    paths = sorted(Path(folder).glob("*.npz"), key=lambda path: _naturally(path.name))
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no .npz files; give a folder of them, or --format minari with the id of a Minari dataset"
        )
    first = _load(paths[0], KEYS)
    names = first.get("action_names")
    if names is None:
        largest = max((_largest(path), path) for path in paths)
        if largest[0] >= MOST_ACTIONS:
            raise ValueError(
                f"{largest[1]} has action {largest[0]}; without action_names they must be below {MOST_ACTIONS}"
            )
        names = range(1 + largest[0])
    lab = {"level": str(first["level"])} if "level" in first else {}
    if lab and "fps" in first:
        lab["fps"] = _whole(first["fps"], "fps", paths[0])
    if isinstance(names, np.ndarray) and names.ndim != 1:
        raise ValueError(f"{paths[0]} is no episode: action_names must be a list, got {names.shape}")
    if lab and first["level"].ndim:
        raise ValueError(f"{paths[0]} is no episode: level must be one name, got {first['level'].shape}")
    shape = first["observations"].shape[1:]
    schema = Schema(
        observation_shape=shape,
        observation_dtype=_checked(first["observations"].dtype, shape, paths[0]),
        action_names=tuple(map(str, names)),
        environment=env or ("envs:Lab-v0" if lab else "unknown"),
        kwargs=lab,
        provenance={"imported": Path(folder).resolve().name},
    )

    def read(number: int) -> Episode:
        data = _load(paths[number], KEYS)
        for key in ("level", "fps", "action_names"):
            if not np.array_equal(data.get(key), first.get(key)):
                raise ValueError(
                    f"{paths[number]} has {key} {data.get(key)} where {paths[0].name} has {first.get(key)}; "
                    "import them into stores of their own"
                )
        if data["rewards"].dtype.kind not in "fiub":
            raise ValueError(f"{paths[number]} is no episode: rewards must be numbers, got {data['rewards'].dtype}")
        for key in ("terminated", "truncated"):
            if data[key].size not in (1, data["actions"].size):
                raise ValueError(
                    f"{paths[number]} is no episode: {key} must be one, or one a step, got {data[key].shape}"
                )
        try:
            return Episode(
                observations=data["observations"],
                actions=data["actions"],
                rewards=data["rewards"].astype(np.float64),
                terminated=ended("terminated", data["terminated"]),
                truncated=ended("truncated", data["truncated"]),
                seed=_whole(data.get("seed", -1), "seed", paths[number]),
            )
        except (ValueError, TypeError, IndexError, OverflowError) as error:
            raise ValueError(f"{paths[number]} is no episode: {error}") from error

    return Source(schema, [path.name for path in paths], read)


def from_minari(name: str, env: str = "") -> Source:
    """The episodes of the Minari dataset of that id, in either of Minari's formats.

    Raises:
        ImportError: if Minari is not installed.
        FileNotFoundError: if there is no such dataset on this machine.
        ValueError: if its observations are not one array of pictures or codes, or its actions are not discrete.
    """
    minari = import_minari()
    try:
        dataset = minari.load_dataset(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no Minari dataset {name} is here; fetch it with minari download {name}") from error
    except ImportError:
        raise
    except Exception as error:  # damage can make it raise anything
        raise ValueError(f"the Minari dataset {name} cannot be read: {type(error).__name__}: {error}") from error
    space, actions, storage = dataset.observation_space, dataset.action_space, dataset.storage
    if not isinstance(space, gym.spaces.Box):
        raise ValueError(f"{name} must observe one Box of pictures or codes, it observes {space}")
    if not isinstance(actions, gym.spaces.Discrete):
        raise ValueError(f"{name} must have discrete actions, it has {actions}")
    spec = dataset.spec.env_spec
    kept = storage.metadata.get("worldmodel_schema") or {  # there if to_minari wrote it
        "observation_shape": space.shape,
        "observation_dtype": _checked(space.dtype, space.shape, name),
        "action_names": map(str, range(actions.n)),
        "environment": spec.id if spec else "unknown",
        "kwargs": spec.kwargs if spec else {},
        "provenance": {"imported": name, "jpeg": storage.jpeg_encoding},
    }
    try:
        schema = Schema(**{**kept, "environment": env or kept["environment"]})
    except (TypeError, KeyError) as error:
        raise ValueError(f"the Minari dataset {name} has a damaged schema: {error!r}") from error

    def read(number: int) -> Episode:
        try:
            episode = dataset[number]
        except Exception as error:  # damage can make it raise anything
            raise ValueError(f"episode {number} of {name} cannot be read: {type(error).__name__}: {error}") from error
        (metadata,) = storage.get_episode_metadata([episode.id])
        try:
            ends = ended("terminations", episode.terminations), ended("truncations", episode.truncations)
        except ValueError as error:
            raise ValueError(f"episode {number} of {name}: {error}") from error
        return Episode(
            observations=episode.observations,
            actions=np.asarray(episode.actions) - int(actions.start),
            rewards=np.asarray(episode.rewards, np.float64),
            terminated=ends[0],
            truncated=ends[1],
            seed=-1 if metadata.get("seed") is None else int(metadata["seed"]),
        )

    return Source(schema, [f"episode {number}" for number in range(len(dataset))], read)


def to_minari(
    store: EpisodeStore, name: str, pad: bool = False, progress: Callable[[list[Entry]], Iterable[Entry]] = iter
) -> Path:
    """Write all episodes as a new Minari dataset, losslessly, and return its folder.

    Minari's Arrow files, of which hdf5 pads short episodes to a third more; without the JPEG compression of pictures
    that is Minari's default. The schema goes along, so that :func:`from_minari` gives it back.

    Args:
        pad: repeat the last observation of an episode that has none after its last action.
        progress: goes through the episodes, and may show how far it is.

    Raises:
        ImportError: if Minari is not installed.
        ValueError: if the name is none of Minari's or taken, or an episode lacks its last observation and ``pad`` is
            false.
    """
    minari = import_minari()
    from minari.data_collector import EpisodeBuffer
    from minari.storage import get_dataset_path

    if not re.fullmatch(r"(\w[-\w]*/)*\w[-\w]+/\w[-\w]*-v\d+", name):
        raise ValueError(
            f"a Minari dataset is called NAMESPACE/NAME-v0, with two letters or more before the slash, got {name}"
        )
    folder = get_dataset_path(name)
    if folder.exists():
        raise ValueError(f"{folder} is there already; remove it with minari delete {name}, or give another version")
    short = [entry.number for entry in store.entries if entry.observations == entry.steps]
    if short and not pad:
        raise ValueError(
            f"{len(short)} of {len(store)} episodes of {store.path} have no frame after their last action, as Minari "
            f"wants it, number {short[0]} to begin with; give --pad true to repeat the last frame there is"
        )

    def buffer(number: int, position: int) -> EpisodeBuffer:
        episode = store.read(number)
        frames = episode.observations
        last = np.arange(len(episode)) == len(episode) - 1
        return EpisodeBuffer(
            id=position,
            seed=episode.seed if episode.seed >= 0 else None,
            observations=frames if episode.has_final_observation else np.concatenate([frames, frames[-1:]]),
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=last & episode.terminated,
            truncations=last & episode.truncated,
        )

    schema = store.schema
    dtype = np.dtype(_checked(schema.observation_dtype, schema.observation_shape, store.path))
    aside = folder.parents[name.count("/")] / f".{os.getpid()}"  # half a dataset would look like a whole one
    try:
        with (
            warnings.catch_warnings(),
            _datasets_in(aside),
        ):  # of an author, a link to the code, …: nothing that a store could know
            warnings.filterwarnings("ignore", category=UserWarning, module="minari")
            dataset = minari.create_dataset_from_buffers(
                name,
                buffer=(buffer(entry.number, position) for position, entry in enumerate(progress(store.entries))),
                observation_space=gym.spaces.Box(0, np.iinfo(dtype).max, schema.observation_shape, dtype),
                action_space=gym.spaces.Discrete(len(schema.action_names)),
                description=f"Episodes of {schema.environment}",
                data_format="arrow",
                jpeg_encoding=False,
            )
        if short:
            schema = replace(schema, provenance={**schema.provenance, "padded": True})
        dataset.storage.update_metadata({"worldmodel_schema": asdict(schema)})
        for made in sorted(aside.rglob("namespace_metadata.json")):
            there = folder.parents[name.count("/")] / made.relative_to(aside)
            there.parent.mkdir(parents=True, exist_ok=True)
            if not there.exists():
                os.replace(made, there)
        os.replace(aside / name, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


@contextmanager
def _datasets_in(folder: Path) -> Iterator[None]:
    """Have Minari keep its datasets there for a while."""
    before = os.environ.get(MINARI_FOLDER)
    os.environ[MINARI_FOLDER] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(MINARI_FOLDER)
        if before is not None:
            os.environ[MINARI_FOLDER] = before


def ended(key: str, flags: np.ndarray) -> bool:
    """Whether an episode ended so: the only one, or the last, of its flags.

    Raises:
        ValueError: if one is neither true nor false, or is true before the last step, where another episode begins.
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


def import_minari() -> ModuleType:
    """The package, or an ImportError that says how to install it."""
    try:
        import minari
    except ImportError as error:
        raise ImportError("Minari datasets need the package minari: pip install 'minari[arrow]'") from error
    return minari


def _naturally(name: str) -> list[tuple[int, str]]:
    """A key to sort names by, with the numbers in them as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _load(path: Path, keys: Collection[str]) -> dict[str, np.ndarray]:
    """Those arrays of an .npz file, which must be there, and the small ones; frames are called observations."""
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
        if strange := [key for key, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"its {strange[0]} is no array")
        return arrays
    except Exception as error:  # damage can make the readers raise anything
        raise ValueError(f"{path} is no episode: {error}") from error


def _largest(path: Path) -> int:
    """The largest action of an .npz file."""
    actions = _load(path, ("actions",))["actions"]
    if not np.issubdtype(actions.dtype, np.integer) or actions.min(initial=0) < 0:
        raise ValueError(f"{path} is no episode: actions must be integers of 0 or more, got {actions.dtype}")
    return int(actions.max(initial=0))


def _whole(value: np.ndarray | int, name: str, path: Path) -> int:
    """One whole number.

    Raises:
        ValueError: if it is none, or does not fit 64 bits.
    """
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf" or not -(2**63) <= array.item() < 2**63 or array % 1 != 0:
        raise ValueError(f"{path} is no episode: {name} must be one whole number, got {array.dtype} {array.shape}")
    return int(array.item())


def _checked(dtype: np.dtype | str, shape: tuple[int, ...], source: Path | str) -> str:
    if str(dtype) not in ("uint8", "uint16") or len(shape) < 2:
        raise ValueError(f"{source} must hold uint8 pictures or uint16 codes of height and width, got {dtype} {shape}")
    return str(dtype)
