"""Look after a store: ``python -m worldmodel.episodes {info,verify,import,export,benchmark} --store stores/doom``."""

import re
import shutil
import statistics
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import zstandard
from tqdm import tqdm

from worldmodel import config
from worldmodel.data.episode import Episode
from worldmodel.data.store import CHUNK, LEVEL, EpisodeStore, Schema

WINDOW = 16  # frames that the benchmark reads together
WINDOWS = 64  # that it reads in one measurement
Source = tuple[Schema, int, Callable[[int], Episode]]  # what its episodes have in common, how many, and number n


def info(store: str) -> None:
    """Say what a store holds: its world, how much of it, how the episodes ended and which actions were taken.

    Args:
        store: folder of recorded episodes.
    """
    episodes = EpisodeStore(store)
    schema, entries, count = episodes.schema, episodes.entries, max(1, len(episodes))
    steps, size = sum(entry.steps for entry in entries), sum(entry.bytes for entry in entries)
    taken = np.zeros(len(schema.action_names), np.int64)
    for entry in tqdm(entries, unit="episode", leave=False):
        taken += np.bincount(episodes.steps(entry.number)[0], minlength=len(taken))
    raw = episodes.frames * _bytes(schema)
    print(f"{store}: {len(episodes)} episodes, {episodes.frames} frames, {steps} steps")
    for name, value in asdict(schema).items():
        print(f"  {name:18} {value if isinstance(value, str) else _listed(value)}")
    print(f"  {'mean return':18} {sum(entry.episode_return for entry in entries) / count:.4g}")
    print(f"  {'mean steps':18} {steps / count:.1f}")
    for end in ("terminated", "truncated"):
        print(f"  {end:18} {sum(getattr(entry, end) for entry in entries)}")
    print(f"  {'bytes':18} {size}, {size / max(1, raw):.3f} of raw")
    print("actions")
    for name, number in zip(schema.action_names, taken.tolist(), strict=True):
        print(f"  {name:18} {number:9} {number / max(1, steps):6.1%}")


def verify(store: str) -> None:
    """Check every episode file of a store against its checksum; the damaged ones are named, and make the exit code 1.

    Args:
        store: folder of recorded episodes.
    """
    episodes = EpisodeStore(store)
    damaged = 0
    for _, problem in tqdm(episodes.verify(), total=len(episodes), unit="episode"):
        if problem:
            damaged += 1
            tqdm.write(problem)
    known = {Path(entry.file).name for entry in episodes.entries}
    strangers = sorted(path.name for path in (episodes.path / "episodes").iterdir() if path.name not in known)
    if strangers:
        print(
            f"{len(strangers)} files in {episodes.path / 'episodes'} are not in the index, such as {strangers[0]}: "
            "leftovers of a killed run, harmless; nothing reads them"
        )
    if damaged:
        raise ValueError(
            f"{damaged} of {len(episodes)} episodes of {store} are damaged; the other {len(episodes) - damaged} can be read"
        )
    print(f"{store}: all {len(episodes)} episodes are whole")


def import_(store: str, source: str, format: Literal["npz", "minari"] = "npz", env: str = "") -> None:
    """Copy episodes from elsewhere into a store; run it again to continue, or after more were added at the end.

    Episode n is the nth file of the folder by name, or episode n of the Minari dataset.

    Args:
        store: folder to copy into.
        source: a folder of .npz files, an episode each, or the id of a Minari dataset. A file has the keys frames or
            observations (T or T+1, H, W, C) uint8, actions (T,), rewards (T,), terminated and truncated (one for the
            episode, or one a step), and may have seed, action_names, level and fps.
        format: of the source.
        env: Gymnasium id of the world that the episodes are from; by default what the source says.
    """
    schema, count, read = {"npz": _npz, "minari": _minari}[format](source, env)
    episodes = EpisodeStore.create(store, schema)
    before = len(episodes)
    for number in tqdm(range(count), unit="episode"):
        episode = read(number)
        if number not in episodes:
            episodes.record(episodes.write(number, episode))
            continue
        there = next(entry for entry in episodes.entries if entry.number == number)
        if (there.steps, there.seed, there.episode_return) != (
            len(episode),
            episode.seed,
            float(episode.rewards.sum()),
        ):
            raise ValueError(
                f"episode {number} of {store} is not the one that is now number {number} in {source}; "
                "where others came before it, import into a new --store"
            )
    print(f"{store}: {len(episodes)} episodes, {episodes.frames} frames; {len(episodes) - before} new ones of {count}")


def export(store: str, name: str, pad: bool = False) -> None:
    """Write a store as a Minari dataset, losslessly; import --format minari gives the same episodes back.

    Minari's Arrow files are used, with the JPEG compression of pictures that is Minari's default switched off.

    Args:
        store: folder of recorded episodes.
        name: id of the new dataset, NAMESPACE/NAME-v0; it goes where MINARI_DATASETS_PATH says, or ~/.minari/datasets.
        pad: repeat the last frame of episodes whose world drew none after the last action; Minari wants one.
    """
    minari = _import_minari()
    from minari.data_collector import EpisodeBuffer
    from minari.storage import get_dataset_path

    episodes = EpisodeStore(store)
    short = {entry.number for entry in episodes.entries if entry.observations == entry.steps}
    path = get_dataset_path(name)
    if not re.fullmatch(r"[-\w/]*[-\w]{2}/[-\w]+-v\d+", name):
        raise ValueError(f"--name must look like NAMESPACE/NAME-v0, two letters or more and a version, got {name}")
    if path.exists():
        raise ValueError(f"{path} is there already; remove it with minari delete {name}, or give another version")
    if not len(episodes):
        raise ValueError(f"{store} holds no episodes to export")
    if short and not pad:
        raise ValueError(
            f"{len(short)} of {len(episodes)} episodes of {store} have no frame after their last action, which a Minari "
            "dataset must have; give --pad true to repeat the last frame there is"
        )

    def buffers() -> Iterator[EpisodeBuffer]:
        for position, entry in enumerate(tqdm(episodes.entries, unit="episode")):
            episode = episodes.read(entry.number)
            frames = episode.observations
            last = np.arange(len(episode)) == len(episode) - 1
            yield EpisodeBuffer(
                id=position,
                seed=episode.seed if episode.seed >= 0 else None,
                observations=frames if episode.has_final_observation else np.concatenate([frames, frames[-1:]]),
                actions=episode.actions,
                rewards=episode.rewards,
                terminations=last & episode.terminated,
                truncations=last & episode.truncated,
            )

    schema = episodes.schema
    limits = np.iinfo(schema.observation_dtype)
    try:
        with warnings.catch_warnings():  # about an author, a code link, …: nothing that a store could know
            warnings.filterwarnings("ignore", category=UserWarning, module="minari")
            dataset = minari.create_dataset_from_buffers(
                name,
                buffer=buffers(),
                observation_space=gym.spaces.Box(limits.min, limits.max, schema.observation_shape, limits.dtype),
                action_space=gym.spaces.Discrete(len(schema.action_names)),
                description=f"Episodes of {schema.environment}",
                data_format="arrow",
                jpeg_encoding=False,
            )
        if short:
            schema = replace(schema, provenance={**schema.provenance, "padded": True})
        dataset.storage.update_metadata({"worldmodel_schema": asdict(schema)})
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    print(f"{path}: {len(dataset)} episodes, {dataset.total_steps} steps; minari.load_dataset({name!r}) opens it")


def benchmark(store: str, frames: int = 1024, repeats: int = 3) -> None:
    """Measure codecs and chunk lengths on a store's own frames: the evidence for the store's CHUNK and LEVEL.

    Every figure is a median over the repeats, in process CPU time, so on one core however busy the others are.

    Args:
        store: folder of recorded episodes; it is only read.
        frames: how many to measure on, from episodes spread over the store.
        repeats: measurements of each setting, taken in turns.
    """
    episodes = EpisodeStore(store)
    entries = [entry for entry in episodes.entries if entry.observations >= WINDOW]
    if not entries:
        raise ValueError(f"{store} must hold an episode of {WINDOW} or more frames, it holds none")
    wanted = min(frames, sum(entry.observations for entry in entries))
    parts: list[np.ndarray] = []
    for entry in entries[:: max(1, len(entries) * 32 // max(wanted, 32))] + entries:
        parts.append(episodes.observations(entry.number, 0, entry.observations))
        if sum(map(len, parts)) >= wanted:
            break
    raw = np.concatenate(parts)[:wanted]
    starts = np.random.default_rng(0).integers(len(raw) - WINDOW + 1, size=WINDOWS)
    codecs = _codecs()
    settings = list(product(codecs, (4, 8, 16)))
    measured: dict[Any, list[tuple[float, float, float]]] = {setting: [] for setting in settings}
    for _ in tqdm(range(repeats), unit="round"):
        for codec, chunk in settings:
            measured[codec, chunk].append(_measure(raw, chunk, *codecs[codec], starts))
    print(
        f"{len(raw)} frames of {store}, {raw[0].nbytes} bytes each, on one core; windows of {WINDOW} frames at random"
    )
    print(f"{'codec':8}{'chunk':>6}{'size/raw':>10}{'write frames/s':>16}{'window frames/s':>17}")
    for (codec, chunk), figures in measured.items():
        size, write, window = map(statistics.median, zip(*figures, strict=True))
        used = "  <- in use" if (codec, chunk) == (f"zstd {LEVEL}", CHUNK) else ""
        print(f"{codec:8}{chunk:6}{size:10.3f}{write:16.0f}{window:17.0f}{used}")
    write, window = zip(*(_measure_store(episodes, entries, len(raw)) for _ in range(repeats)), strict=True)
    print(f"EpisodeStore.write, checksum and fsync included: {statistics.median(write):.0f} frames/s")
    print(f"EpisodeStore.observations, opening the file included: {statistics.median(window):.0f} frames/s")


def _npz(source: str, env: str) -> Source:
    paths = sorted(Path(source).glob("*.npz"))
    if not paths:
        raise FileNotFoundError(
            f"{source} holds no .npz files; give a folder of them, or --format minari with the id of a Minari dataset"
        )
    first = _load(paths[0])
    names = first.get("action_names")
    if names is None:
        names = range(1 + max(int(_load(path, ["actions"])["actions"].max()) for path in paths))
    level = {"level": str(first["level"])} if "level" in first else {}
    fps = {"fps": int(first["fps"])} if "fps" in first else {}
    schema = Schema(
        observation_shape=first["observations"].shape[1:],
        observation_dtype=_known_dtype(first["observations"].dtype, first["observations"].shape[1:], str(paths[0])),
        action_names=tuple(str(name) for name in names),
        environment=env or ("envs:Lab-v0" if level else "unknown"),
        kwargs={**level, **fps} if level else {},
        provenance={"imported": Path(source).resolve().name},
    )

    def read(number: int) -> Episode:
        data = first if number == 0 else _load(paths[number])
        for key in ("level", "fps", "action_names"):
            if not np.array_equal(data.get(key), first.get(key)):
                raise ValueError(
                    f"{paths[number]} has {key} {data.get(key)} where {paths[0].name} has {first.get(key)}; "
                    "import them into stores of their own"
                )
        try:
            return Episode(
                observations=data["observations"],
                actions=data["actions"],
                rewards=data["rewards"].astype(np.float64),
                terminated=bool(data["terminated"].reshape(-1)[-1]),
                truncated=bool(data["truncated"].reshape(-1)[-1]),
                seed=int(data.get("seed", -1)),
            )
        except (ValueError, IndexError, TypeError) as error:
            raise ValueError(f"{paths[number]} is no episode: {error}") from error

    return schema, len(paths), read


def _load(path: Path, keys: list[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, or some of them; frames are called observations."""
    try:
        with np.load(path) as file:
            found = [{"frames": "observations"}.get(name, name) for name in file.files]
            needed = ["observations", "actions", "rewards", "terminated", "truncated"]
            if missing := [key for key in needed if key not in found]:
                raise KeyError(
                    f"{path} has no {', '.join(missing)}; expected observations or frames, actions, rewards, terminated "
                    f"and truncated, found {', '.join(file.files)}"
                )
            return {key: file[name] for key, name in zip(found, file.files, strict=True) if not keys or key in keys}
    except KeyError as error:
        raise ValueError(error.args[0]) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as .npz: {error}") from error


def _minari(source: str, env: str) -> Source:
    dataset = _import_minari().load_dataset(source)
    space, actions, storage = dataset.observation_space, dataset.action_space, dataset.storage
    if not isinstance(space, gym.spaces.Box):
        raise ValueError(f"{source} must observe one Box of pictures or codes, it observes {space}")
    if not isinstance(actions, gym.spaces.Discrete):
        raise ValueError(f"{source} must have discrete actions, it has {actions}")
    dtype = _known_dtype(space.dtype, space.shape, source)
    if storage.jpeg_encoding:
        print(f"{source} is stored as JPEG: its pictures are near what the world showed, not equal to it")
    spec = dataset.spec.env_spec
    kept = storage.metadata.get("worldmodel_schema") or {
        "observation_shape": space.shape,
        "observation_dtype": dtype,
        "action_names": tuple(map(str, range(actions.n))),
        "environment": spec.id if spec else "unknown",
        "kwargs": dict(spec.kwargs) if spec else {},
        "provenance": {"imported": source},
    }
    schema = replace(Schema(**kept), **({"environment": env} if env else {}))

    def read(number: int) -> Episode:
        episode = dataset[number]
        (metadata,) = storage.get_episode_metadata([episode.id])
        seed = metadata.get("seed")
        return Episode(
            observations=episode.observations,
            actions=np.asarray(episode.actions) - int(actions.start),
            rewards=np.asarray(episode.rewards, np.float64),
            terminated=bool(episode.terminations[-1]),
            truncated=bool(episode.truncations[-1]),
            seed=-1 if seed is None else int(seed),
        )

    return schema, len(dataset), read


def _import_minari() -> ModuleType:
    try:
        import minari
    except ImportError as error:
        raise ImportError("Minari datasets need the package minari: pip install 'minari[arrow]'") from error
    return minari


def _known_dtype(dtype: np.dtype, shape: tuple[int, ...], source: str) -> str:
    if str(dtype) not in ("uint8", "uint16") or len(shape) < 2:
        raise ValueError(
            f"{source} must hold pictures or codes, uint8 or uint16 with height and width, got {dtype} {shape}"
        )
    return str(dtype)


def _codecs() -> dict[str, tuple[Callable[[Any], bytes], Callable[[bytes], bytes]]]:
    """Names and both directions of the codecs to compare."""
    decompress = zstandard.ZstdDecompressor().decompress
    codecs = {f"zstd {level}": (zstandard.ZstdCompressor(level=level).compress, decompress) for level in (1, 3, 9)}
    try:
        import lz4.block
    except ImportError:
        return codecs
    return {**codecs, "lz4": (lz4.block.compress, lz4.block.decompress)}


def _measure(
    raw: np.ndarray, chunk: int, compress: Callable, decompress: Callable, starts: np.ndarray
) -> tuple[float, float, float]:
    """Share of the raw size, frames/s written and frames/s read in windows."""
    began = time.process_time()
    chunks = [compress(raw[i : i + chunk]) for i in range(0, len(raw), chunk)]
    written = time.process_time()
    for start in starts.tolist():
        first, last = start // chunk, (start + WINDOW - 1) // chunk
        joined = b"".join(decompress(part) for part in chunks[first : last + 1])
        window = np.frombuffer(joined, raw.dtype).reshape(-1, *raw.shape[1:])[start - first * chunk :][:WINDOW]
    read = time.process_time()
    assert np.array_equal(window, raw[start : start + WINDOW])
    size = sum(map(len, chunks)) / raw.nbytes
    return size, len(raw) / (written - began), len(starts) * WINDOW / (read - written)


def _measure_store(episodes: EpisodeStore, entries: list, frames: int) -> tuple[float, float]:
    """Frames/s written to a store in a temporary folder, and read in windows from this one."""
    random = np.random.default_rng(0)
    whole: list[Episode] = []
    for entry in entries:
        whole.append(episodes.read(entry.number))
        if sum(len(episode.observations) for episode in whole) >= frames:
            break
    with tempfile.TemporaryDirectory() as folder:
        copy = EpisodeStore.create(folder, episodes.schema)
        began = time.process_time()
        for number, episode in enumerate(whole):
            copy.record(copy.write(number, episode))
        written = time.process_time() - began
    chosen = [entries[i] for i in random.integers(len(entries), size=WINDOWS)]
    began = time.process_time()
    for entry in chosen:
        episodes.observations(entry.number, int(random.integers(entry.observations - WINDOW + 1)), WINDOW)
    read = time.process_time() - began
    return sum(len(episode.observations) for episode in whole) / written, WINDOWS * WINDOW / read


def _bytes(schema: Schema) -> int:
    """Of one observation, as it is."""
    return int(np.prod(schema.observation_shape)) * np.dtype(schema.observation_dtype).itemsize


def _listed(value: Any) -> str:
    items = [f"{key} {item}" for key, item in value.items()] if isinstance(value, dict) else map(str, value)
    return ", ".join(items)


if __name__ == "__main__":
    config.run({"info": info, "verify": verify, "import": import_, "export": export, "benchmark": benchmark})
