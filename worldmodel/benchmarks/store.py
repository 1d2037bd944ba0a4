"""What reading and writing a store cost beside other codecs: the evidence for the store's CHUNK and LEVEL."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
import zstandard

from worldmodel.benchmarks.collect import recorder
from worldmodel.benchmarks.settings import Settings
from worldmodel.benchmarks.timing import NEEDS, Contestant, Section, Stopwatch, race
from worldmodel.episodes.episode import Episode
from worldmodel.episodes.store import CHUNK, LEVEL, Entry, EpisodeStore

WINDOW = 16  # frames that are read together
WINDOWS = 128  # in a run
FRAMES = 1024  # to read and write, or a little more: episodes are whole
CHUNKS = (4, 8, 16)
OURS = "EpisodeStore"


def store(settings: Settings) -> Section:
    """Read random windows of frames, and write the frames; the bare codecs have neither checksums nor files.

    The store is only read: what is written goes to a temporary folder.

    Raises:
        ValueError: if no episode of it is long enough.
    """
    remarks, watch = [], Stopwatch(torch.device("cpu"))
    codecs = _codecs()
    if "lz4" not in codecs:
        remarks.append(NEEDS.format("lz4"))
    with _store(settings) as episodes, tempfile.TemporaryDirectory() as folder:
        entries = [entry for entry in episodes.entries if entry.observations >= WINDOW]
        if not entries:
            raise ValueError(f"{episodes.path} has no episode of {WINDOW} frames; record longer ones into it")
        np.random.default_rng(0).shuffle(entries)
        chosen = entries[: 1 + int(np.searchsorted(np.cumsum([entry.observations for entry in entries]), FRAMES))]
        read = [episodes.read(entry.number) for entry in chosen]
        raw = np.concatenate([episode.observations for episode in read])
        copy = EpisodeStore.create(folder, episodes.schema)
        sizes = {OURS: sum(entry.bytes for entry in chosen)}
        reads = [Contestant(OURS, partial(read_windows, episodes, chosen), WINDOWS * WINDOW)]
        writes = [Contestant(OURS, partial(write, copy, read), len(raw))]
        for (codec, (compress, decompress)), chunk in product(codecs.items(), CHUNKS):
            name, chunks = f"{codec}, chunks of {chunk}", compressed(raw, chunk, compress)
            sizes[name] = sum(map(len, chunks))
            reads.append(Contestant(name, partial(decompressed, raw, chunk, chunks, decompress), WINDOWS * WINDOW))
            writes.append(Contestant(name, partial(compressed, raw, chunk, compress), len(raw)))
        rows = []
        for verb, contestants in (("read", reads), ("write", writes)):
            named = [contestant._replace(name=f"{verb}, {contestant.name}") for contestant in contestants]
            for row, contestant in zip(race(named, settings.rounds, watch), contestants, strict=True):
                row.remark = f"{sizes[contestant.name] / raw.nbytes:.3f} of raw"
                rows.append(row)
    remarks.append(
        f"windows of {WINDOW} of {len(raw)} frames of {raw[0].nbytes:,} bytes; the store has zstd {LEVEL} in chunks "
        f"of {CHUNK}, and checksums, files and fsync besides"
    )
    return Section(rows, remarks)


@contextmanager
def _store(settings: Settings) -> Iterator[EpisodeStore]:
    """The store that was given, or a temporary one of a few episodes."""
    if settings.store:
        yield EpisodeStore(settings.store)
        return
    with tempfile.TemporaryDirectory() as folder:
        player, number = recorder(folder, settings.env), 0
        while player.store.frames < FRAMES:
            player.store.record(player.record(number))
            number += 1
        player.env.close()
        yield player.store


def _codecs() -> dict[str, tuple[Callable[[Any], bytes], Callable[[bytes], bytes]]]:
    """Names and both directions of the codecs to compare."""
    decompress = zstandard.ZstdDecompressor().decompress
    codecs = {f"zstd {level}": (zstandard.ZstdCompressor(level=level).compress, decompress) for level in (1, 3, 9)}
    try:
        import lz4.block
    except ImportError:
        return codecs
    return {**codecs, "lz4": (lz4.block.compress, lz4.block.decompress)}


def read_windows(store: EpisodeStore, entries: list[Entry]) -> None:
    """Read windows from random places of some episodes."""
    random = np.random.default_rng(0)
    for _ in range(WINDOWS):
        entry = entries[random.integers(len(entries))]
        store.observations(entry.number, int(random.integers(entry.observations - WINDOW + 1)), WINDOW)


def write(store: EpisodeStore, episodes: list[Episode]) -> None:
    """Write the files of some episodes, over those of the last time."""
    for number, episode in enumerate(episodes):
        store.write(number, episode)


def compressed(raw: np.ndarray, chunk: int, compress: Callable[[Any], bytes]) -> list[bytes]:
    """Frames (N, …), so many at a time."""
    return [compress(raw[i : i + chunk]) for i in range(0, len(raw), chunk)]


def decompressed(raw: np.ndarray, chunk: int, chunks: list[bytes], decompress: Callable[[bytes], bytes]) -> None:
    """Read windows from random places of frames in chunks, and compare the last one with the frames themselves."""
    random = np.random.default_rng(0)
    for _ in range(WINDOWS):
        start = int(random.integers(len(raw) - WINDOW + 1))
        first, last = start // chunk, (start + WINDOW - 1) // chunk
        joined = b"".join(decompress(part) for part in chunks[first : last + 1])
        window = np.frombuffer(joined, raw.dtype).reshape(-1, *raw.shape[1:])[start - first * chunk :][:WINDOW]
    assert np.array_equal(window, raw[start : start + WINDOW])
