"""An append-only, lossless folder of episodes with checksums, which survives a process killed at any moment.

Layout of a store::

    store.json               :class:`worldmodel.episodes.schema.Schema`
    index.jsonl              one :class:`worldmodel.episodes.schema.Entry` per line
    episodes/000017.safetensors

An episode file is plain safetensors: ``actions``, ``rewards``, and the observations in chunks of eight, each compressed
as a zstd frame, concatenated as ``chunks`` and separated by ``offsets``; and, if the environment reports the objects in
view, ``objects.frames`` and so on (:class:`worldmodel.episodes.episode.Objects`). The file is written under a temporary
name, synced and renamed; only then is its index line appended. Zstd level 1 and chunks of eight were chosen by
measurement: see ``python -m worldmodel.benchmark --only store``.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from safetensors import safe_open
from safetensors.numpy import save

from worldmodel.episodes.episode import Episode, Objects
from worldmodel.episodes.index import EpisodeIndex
from worldmodel.episodes.schema import Entry, Schema, episode_file
from worldmodel.files import check_folder, remove_stale_temporaries, write_atomically
from worldmodel.renamed import PROVENANCE, renamed

CHUNK_SIZE = 8  # observations compressed together; a segment of 16 frames needs two or three chunks
ZSTD_LEVEL = 1
OBJECT_ARRAYS = ("frames", "kinds", "identities", "boxes")


class CorruptEpisodeError(ValueError):
    """A missing, truncated or damaged episode file, named in the message."""


class EpisodeStore:
    """An open store; ``EpisodeStore(path)`` opens an existing one, :meth:`create` creates one if necessary.

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
            values = json.loads((self.path / "store.json").read_text("utf-8"))
            if isinstance(values, dict):
                values["provenance"] = renamed(values.get("provenance", {}), PROVENANCE)
            self.schema = Schema(**values)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{self.path / 'store.json'} is damaged: {error}") from error
        self._index = EpisodeIndex(self.path / "index.jsonl")

    @classmethod
    def create(cls, path: str | Path, schema: Schema) -> "EpisodeStore":
        """Create a store, or open the existing one if it has the same schema.

        Raises:
            ValueError: if the existing store has a different schema; the message names the difference. Also if episodes
                are there without the store.json or the index that belongs to them, or a run is.
        """
        path = Path(path)
        check_folder(path)
        try:
            schema = Schema(**json.loads(json.dumps(asdict(schema))))  # as it will be read: tuples become lists
        except TypeError as error:
            raise ValueError(f"{path} keeps the arguments of the environment as JSON: {error}") from error
        index, has_files = path / "index.jsonl", any(path.glob("episodes/*.safetensors"))
        if not (path / "store.json").exists():
            if has_files or (index.exists() and index.stat().st_size):
                raise ValueError(f"{path} holds episodes but no store.json; restore it, or use another --store")
            if (path / "config.yaml").exists():
                raise ValueError(f"{path} is the folder of a run; use another --store")
        (path / "episodes").mkdir(parents=True, exist_ok=True)
        for folder in (path, path / "episodes"):
            remove_stale_temporaries(folder)
        if not (path / "store.json").exists():
            index.touch()  # first, so that every store.json has an index
            write_atomically(path / "store.json", json.dumps(asdict(schema), indent=2).encode())
        store = cls(path)
        schema = schema.with_rate_of(store.schema)
        if not len(store) and store.schema != schema:  # left by an import that failed
            if has_files:
                raise ValueError(
                    f"{path} holds files of episodes, but its index.jsonl is empty; restore it, or use another --store"
                )
            write_atomically(path / "store.json", json.dumps(asdict(schema), indent=2).encode())
            store = cls(path)
        for name, expected in asdict(store.schema).items():
            if (given := asdict(schema)[name]) != expected:
                raise ValueError(f"{path} holds episodes with {name} {expected}, got {given}; use another --store")
        return store

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self._index.entries)

    def __contains__(self, number: int) -> bool:
        """Return whether the store has an episode with that number."""
        return number in self._index.entries

    def __iter__(self) -> Iterator[Episode]:
        return (self.read(number) for number in self._index.entries)

    @property
    def entries(self) -> list[Entry]:
        """Index entries in the order of the episode numbers."""
        return [entry for _, entry in sorted(self._index.entries.items())]

    @property
    def num_frames(self) -> int:
        """Total number of observations."""
        return self._index.num_frames

    def write(self, number: int, episode: Episode, source: str = "") -> Entry:
        """Write an episode file atomically; :meth:`add_to_index` then makes it part of the store.

        Many processes can write files while one updates the index.

        Args:
            source: source of an imported episode, see :class:`Entry`.

        Raises:
            ValueError: if the episode does not match the store's schema.
        """
        return self._write(number, episode, self._pack(episode), source)

    def _pack(self, episode: Episode) -> bytes:
        """Return the content of an episode's file; raises as :meth:`write` does."""
        self._check_episode(episode)
        compressor = zstandard.ZstdCompressor(
            level=ZSTD_LEVEL, write_checksum=True
        )  # so that partial reads detect damage, too
        observations = np.ascontiguousarray(episode.observations)
        chunks = [
            compressor.compress(observations[i : i + CHUNK_SIZE].data) for i in range(0, len(observations), CHUNK_SIZE)
        ]
        tensors = {
            "actions": episode.actions.astype(np.int64),
            "rewards": episode.rewards.astype(np.float64),
            "chunks": np.frombuffer(b"".join(chunks), np.uint8),
            "offsets": np.cumsum([0, *map(len, chunks)]),
        }
        metadata: dict[str, Any] = {"observations": len(observations), "seed": int(episode.seed)}
        if episode.objects is not None:
            tensors |= {f"objects.{name}": getattr(episode.objects, name) for name in OBJECT_ARRAYS}
            metadata["object_names"] = episode.objects.names
        return save(tensors, metadata={"episode": json.dumps(metadata)})  # one key: the order of several is random

    def _write(self, number: int, episode: Episode, data: bytes, source: str) -> Entry:
        entry = Entry(
            number=number,
            steps=len(episode),
            observations=len(episode.observations),
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

    def add_to_index(self, entry: Entry) -> None:
        """Add a written episode to the index.

        Raises:
            ValueError: if this or another process has already added an episode with this number.
        """
        with self._index.locked() as add:
            if entry.number in self:
                raise ValueError(
                    f"{self.path} already holds episode {entry.number}: is another process recording there?"
                )
            add(entry)

    def append(self, episode: Episode, source: str = "") -> Entry:
        """Write an episode under the next free number, which no other process takes, and add it to the index.

        A number is not free if its file holds another episode, which the index may have lost.

        Raises:
            ValueError: if the episode does not match the store's schema.
        """
        data = self._pack(episode)
        with self._index.locked() as add:
            number = max(self._index.entries, default=-1) + 1
            while (path := self.path / episode_file(number)).exists() and path.read_bytes() != data:
                number += 1
            entry = self._write(number, episode, data, source)
            add(entry)
        return entry

    def read(self, number: int) -> Episode:
        """Read a whole episode after checking its file against the index.

        Raises:
            KeyError: if the episode does not exist.
            CorruptEpisodeError: if its file is missing or damaged.
        """
        entry = self._entry(number)
        self._check_file(entry)
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
        """Read ``length`` observations from ``start`` on, (length, *shape), decompressing only the necessary chunks.

        Only :meth:`read` and :meth:`verify` check the checksum of the file.

        Raises:
            KeyError: if the episode does not exist.
            ValueError: if it has no such observations.
            CorruptEpisodeError: if its file is missing or damaged.
        """
        entry = self._entry(number)
        if not (length > 0 and 0 <= start <= entry.observations - length):
            raise ValueError(f"episode {number} has {entry.observations} observations, got {length} from {start} on")
        first, last = start // CHUNK_SIZE, (start + length - 1) // CHUNK_SIZE
        with self._open(entry) as file:
            offsets = file.get_slice("offsets")[first : last + 2]
            chunks = file.get_slice("chunks")[int(offsets[0]) : int(offsets[-1])].tobytes()
            boundaries = (offsets - offsets[0]).tolist()
            shape, dtype = self.schema.observation_shape, np.dtype(self.schema.observation_dtype)
            max_bytes = CHUNK_SIZE * prod(shape) * dtype.itemsize
            raw = b"".join(_decompress(chunks[a:b], max_bytes) for a, b in pairwise(boundaries))
            array = np.frombuffer(raw, dtype).reshape(-1, *shape)
            observations = array[start - first * CHUNK_SIZE :][:length]
            if len(observations) != length:
                raise ValueError(f"{length} observations expected from {start} on, {len(observations)} found")
        return observations

    def steps(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Read all actions (T,) int64 and rewards (T,) float64 of an episode; raises as :meth:`observations` does."""
        entry = self._entry(number)
        with self._open(entry) as file:
            actions, rewards = file.get_tensor("actions"), file.get_tensor("rewards")
            num_actions = len(self.schema.action_names)
            types, shapes = (actions.dtype, rewards.dtype), {actions.shape, rewards.shape}
            if types != (np.int64, np.float64) or shapes != {(entry.steps,)}:
                raise ValueError(f"actions and rewards must be {entry.steps} int64 and float64, as the index says")
            if not 0 <= actions.min() <= actions.max() < num_actions:
                raise ValueError(f"actions must be in [0, {num_actions}), got {actions.min()} to {actions.max()}")
            return actions, rewards

    def objects(self, number: int) -> Objects | None:
        """Read the objects in view, or None if they were not recorded; raises as :meth:`observations` does."""
        with self._open(self._entry(number)) as file:
            names = json.loads((file.metadata() or {}).get("episode", "{}")).get("object_names")
            if names is None:
                return None
            return Objects(tuple(names), *(file.get_tensor(f"objects.{name}") for name in OBJECT_ARRAYS))

    def verify(self) -> Iterator[tuple[Entry, str]]:
        """Check every file against the index; yields each entry with its problem, or ``""``."""
        for entry in self.entries:
            try:
                self._check_episode(self.read(entry.number))
                yield entry, ""
            except ValueError as error:
                yield entry, str(error)

    def _entry(self, number: int) -> Entry:
        if number not in self:
            raise KeyError(f"{self.path} has {len(self)} episodes, none of them with number {number}")
        return self._index.entries[number]

    @contextmanager
    def _open(self, entry: Entry) -> Iterator[Any]:
        try:
            with safe_open(self.path / entry.file, framework="np") as file:
                yield file
        except Exception as error:  # a damaged file can cause any exception
            raise CorruptEpisodeError(f"{self.path / entry.file} is damaged: {error}") from error

    def _check_file(self, entry: Entry) -> None:
        path = self.path / entry.file
        if not path.is_file():
            raise CorruptEpisodeError(f"{path} is missing")
        data = path.read_bytes()
        if len(data) != entry.bytes:
            raise CorruptEpisodeError(f"{path} is truncated: {entry.bytes} bytes expected, {len(data)} found")
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise CorruptEpisodeError(f"{path} is damaged: its sha256 differs from the index")

    def _check_episode(self, episode: Episode) -> None:
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


def _decompress(chunk: bytes, max_bytes: int) -> bytes:
    """Decompress a chunk, unless its header announces more than ``max_bytes``."""
    if not 0 <= (size := zstandard.frame_content_size(chunk)) <= max_bytes:
        raise ValueError(f"a chunk has {size} bytes, expected {max_bytes} or fewer")
    return zstandard.ZstdDecompressor().decompress(chunk)
