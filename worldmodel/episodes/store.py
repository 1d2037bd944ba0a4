"""A folder of episodes: append-only, lossless, checked; survives a process killed at any moment.

Layout of a store::

    store.json               what every episode of it looks like (:class:`Schema`)
    index.jsonl              one line an episode: file, steps, observations, seed, sha256, …
    episodes/000017.safetensors

An episode file is plain safetensors: ``actions``, ``rewards``, and the observations in chunks of eight, each chunk
one zstd frame, laid end to end in ``chunks`` with their borders in ``offsets``; and, where the world says what is in
view, ``objects.frames`` and so on (:class:`worldmodel.episodes.episode.Objects`). It is written under a temporary name,
synced, then renamed; its index line is appended after that. Zstd level 1 on chunks of eight was chosen by
measurement: see ``python -m worldmodel.benchmark --only store``.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import zstandard
from safetensors import safe_open
from safetensors.numpy import save

from worldmodel.episodes.episode import Episode, Objects
from worldmodel.files import lock, sweep, write_atomically

CHUNK = 8  # observations compressed together: a 16-frame window opens two or three chunks
LEVEL = 1
MOST = 2**24  # numbers in an observation
DTYPES = ("uint8", "uint16")
OBJECTS = ("frames", "kinds", "identities", "boxes")


class CorruptEpisodeError(ValueError):
    """An episode file that is missing, truncated or not what its checksum says; the message names the file."""


@dataclass(frozen=True)
class Schema:
    """What every episode of a store has in common.

    Attributes:
        observation_shape: of one observation, such as (84, 84, 3) for frames or (21, 21) for codes.
        observation_dtype: numpy's name for its type, such as ``"uint8"``.
        action_names: what actions 0, 1, … are called.
        environment: the Gymnasium id, or where else the episodes come from.
        kwargs: what the environment was made with.
        provenance: anything that explains the data: seeds, policy, versions.
    """

    observation_shape: tuple[int, ...]
    observation_dtype: str
    action_names: tuple[str, ...]
    environment: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in (("observation_shape", int), ("action_names", str)):
            given = getattr(self, name)
            values = () if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)  # JSON has lists
            if {type(value) for value in values} != {kind}:
                raise ValueError(f"{name} must be a list of {kind.__name__}, got {given!r:.80}")
            object.__setattr__(self, name, values)
        for name, kind in (("environment", str), ("kwargs", dict), ("provenance", dict)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} must be {kind.__name__}, got {getattr(self, name)!r:.80}")
        if min(self.observation_shape) < 1 or prod(self.observation_shape) > MOST:
            raise ValueError(f"no observation has the shape {self.observation_shape}")
        if self.observation_dtype not in DTYPES:
            raise ValueError(
                f"observation_dtype must be one of {', '.join(DTYPES)}, got {self.observation_dtype!r:.80}"
            )


@dataclass(frozen=True)
class Entry:
    """One line of a store's index.

    Attributes:
        source: the name and the fingerprint of what an imported episode was elsewhere; empty for others.
        reproducible: as :class:`worldmodel.episodes.episode.Episode` has it.

    Raises:
        ValueError: if a value is of another type, or cannot be.
    """

    number: int
    steps: int
    observations: int
    terminated: bool
    truncated: bool
    seed: int
    episode_return: float
    bytes: int
    sha256: str
    source: str = ""
    reproducible: bool = True

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Entry).items():
            value = getattr(self, name)
            if type(value) is not kind and (kind, type(value)) != (float, int):
                raise ValueError(f"{name} must be {kind.__name__}, got {value!r:.80}")
        if max(self.number, self.bytes, self.steps, abs(self.seed)) >= 2**63 or not abs(self.episode_return) < 1e300:
            raise ValueError("a number is too large")
        if self.number < 0 or self.bytes < 0 or self.steps < 1 or self.observations - self.steps not in (0, 1):
            raise ValueError(f"no episode has number {self.number}, {self.steps} steps, {self.observations} frames")

    @property
    def file(self) -> str:
        return f"episodes/{self.number:06d}.safetensors"


class EpisodeStore:
    """An open store. ``EpisodeStore(path)`` opens one, :meth:`create` makes one or reopens an equal one.

    Raises:
        FileNotFoundError: if there is no store at ``path``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "store.json").is_file():
            raise FileNotFoundError(
                f"{self.path} holds no store.json; record one with python -m worldmodel.collect --store {self.path}"
            )
        try:
            self.schema = Schema(**json.loads((self.path / "store.json").read_text("utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{self.path / 'store.json'} is damaged: {error}") from error
        self._load_index()

    @classmethod
    def create(cls, path: str | Path, schema: Schema) -> "EpisodeStore":
        """Make a store, or open the one that is there if its schema is equal.

        Raises:
            ValueError: if a store with another schema is there; the message names what differs.
        """
        path = Path(path)
        (path / "episodes").mkdir(parents=True, exist_ok=True)
        for folder in (path, path / "episodes"):
            sweep(folder)
        if not (path / "store.json").exists():
            (path / "index.jsonl").touch()  # first, so that wherever there is a store.json there is an index
            write_atomically(path / "store.json", json.dumps(asdict(schema), indent=2).encode())
        store = cls(path)
        if not len(store) and store.schema != schema:  # as a refused import leaves it
            write_atomically(path / "store.json", json.dumps(asdict(schema), indent=2).encode())
            store = cls(path)
        for name, expected in asdict(store.schema).items():
            if (given := asdict(schema)[name]) != expected:
                raise ValueError(f"{path} holds episodes with {name} {expected}, got {given}; use another --store")
        return store

    def __len__(self) -> int:
        """The number of episodes."""
        return len(self._entries)

    def __contains__(self, number: int) -> bool:
        """Whether the store has an episode of that number."""
        return number in self._entries

    def __iter__(self) -> Iterator[Episode]:
        return (self.read(number) for number in self._entries)

    @property
    def entries(self) -> list[Entry]:
        """The index, in order of episode number."""
        return [self._entries[number] for number in sorted(self._entries)]

    @property
    def frames(self) -> int:
        """Observations in all episodes together."""
        return self._frames

    def write(self, number: int, episode: Episode, source: str = "") -> Entry:
        """Write an episode's file, atomically; :meth:`record` makes it part of the store.

        The two halves are apart so that many processes can write files while one keeps the index.

        Args:
            source: as :class:`Entry` has it.

        Raises:
            ValueError: if the episode does not fit the store's schema.
        """
        self._check(episode)
        compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)  # so that windows notice damage, too
        observations = np.ascontiguousarray(episode.observations)
        chunks = [compressor.compress(observations[i : i + CHUNK]) for i in range(0, len(observations), CHUNK)]
        tensors = {
            "actions": episode.actions.astype(np.int64),
            "rewards": episode.rewards.astype(np.float64),
            "chunks": np.frombuffer(b"".join(chunks), np.uint8),
            "offsets": np.cumsum([0, *map(len, chunks)]),
        }
        facts = {"observations": len(observations), "seed": int(episode.seed)}
        if episode.objects is not None:
            tensors |= {f"objects.{name}": getattr(episode.objects, name) for name in OBJECTS}
            facts["object_names"] = episode.objects.names
        data = save(
            tensors, metadata={"episode": json.dumps(facts)}
        )  # one key: several would be written in a random order
        entry = Entry(
            number=number,
            steps=len(episode),
            observations=len(observations),
            terminated=bool(episode.terminated),
            truncated=bool(episode.truncated),
            seed=int(episode.seed),
            episode_return=float(episode.rewards.sum()),
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            source=source,
            reproducible=bool(episode.reproducible),
        )
        write_atomically(self.path / entry.file, data)
        return entry

    def record(self, entry: Entry) -> None:
        """Add a written episode to the index.

        Raises:
            ValueError: if the number is taken, by this process or another: no episode counts twice.
        """
        with open(self.path / "index.jsonl", "rb+") as file:
            lock(file)
            size = file.seek(0, os.SEEK_END)
            if size != self._indexed:  # others have added lines, or half a line before they were killed
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
                self._load_index()
            if entry.number in self._entries:
                raise ValueError(
                    f"{self.path} already holds episode {entry.number}: is another process recording there?"
                )
            file.seek(0, os.SEEK_END)
            file.write(json.dumps(asdict(entry)).encode() + b"\n")
            self._indexed = file.tell()
        self._entries[entry.number] = entry
        self._frames += entry.observations

    def append(self, episode: Episode, source: str = "") -> Entry:
        """Write an episode under the next free number and record it."""
        entry = self.write(max(self._entries, default=-1) + 1, episode, source)
        self.record(entry)
        return entry

    def read(self, number: int) -> Episode:
        """Read a whole episode, after checking its file against the index.

        Raises:
            KeyError: if there is no such episode.
            CorruptEpisodeError: if its file is missing or damaged.
        """
        entry = self._entry(number)
        self._verify(entry)
        actions, rewards = self.steps(number)
        if not np.isclose(rewards.sum(), entry.episode_return):
            raise CorruptEpisodeError(
                f"{self.path / 'index.jsonl'} says that episode {number} has return {entry.episode_return}, "
                f"its file has {float(rewards.sum())}"
            )
        try:
            return Episode(
                observations=self.observations(number, 0, entry.observations),
                actions=actions,
                rewards=rewards,
                terminated=entry.terminated,
                truncated=entry.truncated,
                seed=entry.seed,
                objects=self.objects(number),
                reproducible=entry.reproducible,
            )
        except CorruptEpisodeError:
            raise
        except ValueError as error:
            raise CorruptEpisodeError(f"{self.path / entry.file} is damaged: {error}") from error

    def observations(self, number: int, start: int, length: int) -> np.ndarray:
        """Read ``length`` observations from ``start`` on, (length, *shape); opens only the chunks they lie in.

        The checksum is left to :meth:`read` and :meth:`verify`.

        Raises:
            KeyError: if there is no such episode.
            ValueError: if they do not lie inside it.
            CorruptEpisodeError: if its file is missing or damaged.
        """
        entry = self._entry(number)
        if not (length > 0 and 0 <= start <= entry.observations - length):
            raise ValueError(f"episode {number} has {entry.observations} observations, got {length} from {start} on")
        first, last = start // CHUNK, (start + length - 1) // CHUNK
        with self._open(entry) as file:
            offsets = file.get_slice("offsets")[first : last + 2]
            chunks = file.get_slice("chunks")[int(offsets[0]) : int(offsets[-1])].tobytes()
            borders = (offsets - offsets[0]).tolist()
            most = CHUNK * prod(self.schema.observation_shape) * np.dtype(self.schema.observation_dtype).itemsize
            raw = b"".join(_decompressed(chunks[a:b], most) for a, b in pairwise(borders))
            array = np.frombuffer(raw, self.schema.observation_dtype).reshape(-1, *self.schema.observation_shape)
            wanted = array[start - first * CHUNK :][:length]
            if len(wanted) != length:
                raise ValueError(f"{length} observations expected from {start} on, {len(wanted)} found")
        return wanted

    def steps(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Read all actions (T,) int64 and rewards (T,) float64 of an episode; raises as :meth:`observations` does."""
        entry = self._entry(number)
        with self._open(entry) as file:
            actions, rewards = file.get_tensor("actions"), file.get_tensor("rewards")
            names = len(self.schema.action_names)
            types, shapes = (actions.dtype, rewards.dtype), {actions.shape, rewards.shape}
            if types != (np.int64, np.float64) or shapes != {(entry.steps,)}:
                raise ValueError(f"actions and rewards must be {entry.steps} int64 and float64, as the index says")
            if not 0 <= actions.min() <= actions.max() < names:
                raise ValueError(f"actions must be in [0, {names}), got {actions.min()} to {actions.max()}")
            return actions, rewards

    def objects(self, number: int) -> Objects | None:
        """Read what was in view in an episode, None if the world did not say; raises as :meth:`observations` does."""
        with self._open(self._entry(number)) as file:
            names = json.loads((file.metadata() or {}).get("episode", "{}")).get("object_names")
            if names is None:
                return None
            return Objects(tuple(names), *(file.get_tensor(f"objects.{name}") for name in OBJECTS))

    def verify(self) -> Iterator[tuple[Entry, str]]:
        """Read every file, and check it against the index; yields each entry with what is wrong with it, or ``""``."""
        for entry in self.entries:
            try:
                self._check(self.read(entry.number))
                yield entry, ""
            except ValueError as error:
                yield entry, str(error)

    def _entry(self, number: int) -> Entry:
        if number not in self._entries:
            raise KeyError(f"{self.path} has {len(self)} episodes and none is number {number}")
        return self._entries[number]

    @contextmanager
    def _open(self, entry: Entry) -> Iterator[Any]:
        try:
            with safe_open(self.path / entry.file, framework="np") as file:
                yield file
        except Exception as error:  # damage can make the readers raise anything
            raise CorruptEpisodeError(f"{self.path / entry.file} is damaged: {error}") from error

    def _verify(self, entry: Entry) -> None:
        path = self.path / entry.file
        if not path.is_file():
            raise CorruptEpisodeError(f"{path} is missing")
        data = path.read_bytes()
        if len(data) != entry.bytes:
            raise CorruptEpisodeError(f"{path} is truncated: {entry.bytes} bytes expected, {len(data)} found")
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise CorruptEpisodeError(f"{path} is damaged: its sha256 is not the one in the index")

    def _check(self, episode: Episode) -> None:
        shape, dtype = episode.observations.shape[1:], str(episode.observations.dtype)
        if (shape, dtype) != (self.schema.observation_shape, self.schema.observation_dtype):
            raise ValueError(
                f"{self.path} holds {self.schema.observation_dtype} observations of shape "
                f"{self.schema.observation_shape}, got {dtype} {shape}"
            )
        if episode.actions.min() < 0 or episode.actions.max() >= len(self.schema.action_names):
            raise ValueError(
                f"{self.path} knows actions 0 to {len(self.schema.action_names) - 1}, got "
                f"{episode.actions.min()} to {episode.actions.max()}"
            )

    def _load_index(self) -> None:
        self._entries = {entry.number: entry for entry in self._read_index()}
        self._frames = sum(entry.observations for entry in self._entries.values())

    def _read_index(self) -> Iterator[Entry]:
        if not (self.path / "index.jsonl").is_file():
            raise FileNotFoundError(f"{self.path} lacks its index.jsonl; restore it, or record into another --store")
        data = (self.path / "index.jsonl").read_bytes()
        self._indexed = data.rfind(b"\n") + 1  # what follows the last newline is torn
        lines = data[: self._indexed].split(b"\n")
        for number, line in enumerate(lines[:-1], 1):
            try:
                yield Entry(**json.loads(line))
            except (ValueError, TypeError, RecursionError, OverflowError) as error:
                raise ValueError(f"{self.path / 'index.jsonl'} is damaged in line {number}: {error}") from error


def _decompressed(chunk: bytes, most: int) -> bytes:
    """A chunk of ``most`` bytes or fewer, whatever its header promises."""
    if not 0 <= zstandard.frame_content_size(chunk) <= most:
        raise ValueError(f"a chunk is of {zstandard.frame_content_size(chunk)} bytes, expected {most} or fewer")
    return zstandard.ZstdDecompressor().decompress(chunk)
