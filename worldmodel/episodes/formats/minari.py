"""Import from and export to Minari datasets, with the ``minari`` extra."""

import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import numpy as np

from worldmodel.episodes.episode import Episode
from worldmodel.episodes.formats.source import Source, check_dtype, ended_by
from worldmodel.episodes.store import Entry, EpisodeStore, Schema

MINARI_FOLDER = "MINARI_DATASETS_PATH"  # environment variable
SCHEMA, UNREPRODUCIBLE = "worldmodel_schema", "worldmodel_unreproducible"  # what to_minari adds to the metadata


def from_minari(name: str, env: str = "") -> Source:
    """Return the episodes of the Minari dataset with the id ``name``, in either of Minari's formats.

    Raises:
        ImportError: if Minari is not installed.
        FileNotFoundError: if the dataset is not on this machine.
        ValueError: if the observations are not one array of images or codes, or the actions are not discrete.
    """
    minari = import_minari()
    try:
        dataset = minari.load_dataset(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Minari dataset {name} not found; download it with minari download {name}") from error
    except ImportError:
        raise
    except Exception as error:  # a damaged dataset can cause any exception
        raise ValueError(f"the Minari dataset {name} cannot be read: {type(error).__name__}: {error}") from error
    space, actions, storage = dataset.observation_space, dataset.action_space, dataset.storage
    if not isinstance(space, gym.spaces.Box):
        raise ValueError(f"{name} must observe one Box of images or codes, it observes {space}")
    if not isinstance(actions, gym.spaces.Discrete):
        raise ValueError(f"{name} must have discrete actions, it has {actions}")
    spec = dataset.spec.env_spec
    values = storage.metadata.get(SCHEMA) or {
        "observation_shape": space.shape,
        "observation_dtype": check_dtype(space.dtype, space.shape, name),
        "action_names": map(str, range(actions.n)),
        "environment": spec.id if spec else "unknown",
        "kwargs": spec.kwargs if spec else {},
        "provenance": {"imported": name, "jpeg": storage.jpeg_encoding},
    }
    try:
        schema = Schema(**{**values, "environment": env or values["environment"]})
    except (TypeError, KeyError) as error:
        raise ValueError(f"the Minari dataset {name} has a damaged schema: {error!r}") from error
    unreproducible = set(storage.metadata.get(UNREPRODUCIBLE) or ())

    def read(number: int) -> Episode:
        try:
            episode = dataset[number]
        except Exception as error:  # a damaged dataset can cause any exception
            raise ValueError(f"episode {number} of {name} cannot be read: {type(error).__name__}: {error}") from error
        (metadata,) = storage.get_episode_metadata([episode.id])
        try:
            terminated = ended_by("terminations", episode.terminations)
            truncated = ended_by("truncations", episode.truncations)
        except ValueError as error:
            raise ValueError(f"episode {number} of {name}: {error}") from error
        return Episode(
            observations=episode.observations,
            actions=np.asarray(episode.actions) - int(actions.start),
            rewards=np.asarray(episode.rewards, np.float64),
            terminated=terminated,
            truncated=truncated,
            seed=-1 if metadata.get("seed") is None else int(metadata["seed"]),
            reproducible=number not in unreproducible,
        )

    return Source(schema, [f"episode {number}" for number in range(len(dataset))], read)


def to_minari(
    store: EpisodeStore, name: str, pad: bool = False, progress: Callable[[list[Entry]], Iterable[Entry]] = iter
) -> Path:
    """Write all episodes as a new Minari dataset, losslessly but without objects in view, and return its folder.

    The format is Arrow (hdf5 would take a third more for short episodes) without JPEG, which is Minari's default. The
    schema and the numbers of episodes that are not reproducible are stored as well, for :func:`from_minari`.

    Args:
        pad: repeat the last observation of episodes that have none after the last action.
        progress: iterates over the entries, for example with a progress bar.

    Raises:
        ImportError: if Minari is not installed.
        ValueError: if the name is invalid or taken, or an episode lacks its last observation and ``pad`` is false.
    """
    minari = import_minari()
    from minari.data_collector import EpisodeBuffer
    from minari.storage import get_dataset_path

    if not re.fullmatch(r"(\w[-\w]*/)*\w[-\w]+/\w[-\w]*-v\d+", name):
        raise ValueError(
            f"a Minari dataset must be named NAMESPACE/NAME-v0, with two or more letters before the slash, got {name}"
        )
    folder = get_dataset_path(name)
    if folder.exists():
        raise ValueError(f"{folder} already exists; remove it with minari delete {name}, or give another version")
    short = [entry.number for entry in store.entries if entry.observations == entry.steps]
    if short and not pad:
        raise ValueError(
            f"{len(short)} of {len(store)} episodes of {store.path} have no frame after their last action, which "
            f"Minari needs, the first of them number {short[0]}; give --pad true to repeat the last frame"
        )

    def buffer(number: int, position: int) -> EpisodeBuffer:
        episode = store.read(number)
        frames = episode.observations
        frames = frames if episode.has_final_observation else np.concatenate([frames, frames[-1:]])
        last = np.arange(len(episode)) == len(episode) - 1
        return EpisodeBuffer(
            id=position,
            seed=episode.seed if episode.seed >= 0 else None,
            observations=frames,  # pyright: ignore[reportArgumentType]  # Minari accepts arrays, too
            actions=episode.actions,  # pyright: ignore[reportArgumentType]
            rewards=episode.rewards,  # pyright: ignore[reportArgumentType]
            terminations=last & episode.terminated,
            truncations=last & episode.truncated,
        )

    schema = store.schema
    dtype = np.dtype(check_dtype(schema.observation_dtype, schema.observation_shape, store.path))
    temporary = folder.parents[name.count("/")] / f".{os.getpid()}"  # Minari would list an incomplete dataset
    try:
        with warnings.catch_warnings(), _minari_folder(temporary):
            warnings.filterwarnings("ignore", category=UserWarning, module="minari")  # missing author, code link, …
            dataset = minari.create_dataset_from_buffers(
                name,
                buffer=(buffer(entry.number, position) for position, entry in enumerate(progress(store.entries))),
                observation_space=gym.spaces.Box(0, np.iinfo(dtype).max, schema.observation_shape, dtype.type),
                action_space=gym.spaces.Discrete(len(schema.action_names)),
                description=f"Episodes of {schema.environment}",
                data_format="arrow",
                jpeg_encoding=False,
            )
        if short:
            schema = replace(schema, provenance={**schema.provenance, "padded": True})
        unreproducible = [position for position, entry in enumerate(store.entries) if not entry.reproducible]
        dataset.storage.update_metadata({SCHEMA: asdict(schema), UNREPRODUCIBLE: unreproducible})
        for made in sorted(temporary.rglob("namespace_metadata.json")):
            destination = folder.parents[name.count("/")] / made.relative_to(temporary)
            destination.parent.mkdir(parents=True, exist_ok=True)
            if not destination.exists():
                os.replace(made, destination)
        os.replace(temporary / name, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


@contextmanager
def _minari_folder(folder: Path) -> Iterator[None]:
    """Make Minari use another folder of datasets within the block."""
    before = os.environ.get(MINARI_FOLDER)
    os.environ[MINARI_FOLDER] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(MINARI_FOLDER)
        if before is not None:
            os.environ[MINARI_FOLDER] = before


def import_minari() -> ModuleType:
    """Import Minari, or raise an ImportError that says how to install it."""
    try:
        import minari
    except ImportError as error:
        raise ImportError("Minari datasets need the package minari: pip install 'minari[arrow]'") from error
    return minari
