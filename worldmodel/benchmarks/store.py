"""Time of reading and writing a store compared with other codecs: why CHUNK_SIZE and ZSTD_LEVEL are what they are."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
import zstandard

from worldmodel.benchmarks.collect import make_recorder
from worldmodel.benchmarks.settings import Settings
from worldmodel.benchmarks.timing import MISSING_PACKAGE, Contestant, Section, Stopwatch, race
from worldmodel.episodes.episode import Episode
from worldmodel.episodes.store import CHUNK_SIZE, ZSTD_LEVEL, Entry, EpisodeStore

WINDOW_FRAMES = 16  # read together
NUM_WINDOWS = 128  # per run
NUM_FRAMES = 1024  # to read and write, rounded up to whole episodes
CHUNK_SIZES = (4, 8, 16)
OURS = "EpisodeStore"


def store(settings: Settings) -> Section:
    """Time reading random windows of frames and writing all frames; the bare codecs have no checksums or files.

    The store is not changed: frames are written to a temporary folder.

    Raises:
        ValueError: if no episode is long enough.
    """
    remarks, watch = [], Stopwatch(torch.device("cpu"))
    codecs = _codecs()
    if "lz4" not in codecs:
        remarks.append(MISSING_PACKAGE.format("lz4"))
    with _open_or_record(settings) as episodes, tempfile.TemporaryDirectory() as folder:
        entries = [entry for entry in episodes.entries if entry.observations >= WINDOW_FRAMES]
        if not entries:
            raise ValueError(f"{episodes.path} has no episode of {WINDOW_FRAMES} frames; record longer ones into it")
        np.random.default_rng(0).shuffle(entries)
        chosen = entries[: 1 + int(np.searchsorted(np.cumsum([entry.observations for entry in entries]), NUM_FRAMES))]
        read = [episodes.read(entry.number) for entry in chosen]
        raw = np.concatenate([episode.observations for episode in read])
        copy = EpisodeStore.create(folder, episodes.schema)
        sizes = {OURS: sum(entry.bytes for entry in chosen)}
        reads = [Contestant(OURS, partial(read_windows, episodes, chosen), NUM_WINDOWS * WINDOW_FRAMES)]
        writes = [Contestant(OURS, partial(write_episodes, copy, read), len(raw))]
        for (codec, (compress, decompress)), chunk in product(codecs.items(), CHUNK_SIZES):
            name, chunks = f"{codec}, chunks of {chunk}", compress_chunks(raw, chunk, compress)
            sizes[name] = sum(map(len, chunks))
            reads.append(
                Contestant(
                    name, partial(read_compressed_windows, raw, chunk, chunks, decompress), NUM_WINDOWS * WINDOW_FRAMES
                )
            )
            writes.append(Contestant(name, partial(compress_chunks, raw, chunk, compress), len(raw)))
        rows = []
        for verb, contestants in (("read", reads), ("write", writes)):
            named = [contestant._replace(name=f"{verb}, {contestant.name}") for contestant in contestants]
            for row, contestant in zip(race(named, settings.rounds, watch), contestants, strict=True):
                row.remark = f"{sizes[contestant.name] / raw.nbytes:.3f} of raw"
                rows.append(row)
    remarks.append(
        f"windows of {WINDOW_FRAMES} of {len(raw)} frames of {raw[0].nbytes:,} bytes; the store uses zstd "
        f"{ZSTD_LEVEL} in chunks of {CHUNK_SIZE} and adds checksums, files and fsync"
    )
    return Section(rows, remarks)


@contextmanager
def _open_or_record(settings: Settings) -> Iterator[EpisodeStore]:
    """Open the given store, or record a few episodes into a temporary one."""
    if settings.store:
        yield EpisodeStore(settings.store)
        return
    with tempfile.TemporaryDirectory() as folder:
        recorder, number = make_recorder(folder, settings.env), 0
        while recorder.store.num_frames < NUM_FRAMES:
            recorder.store.add_to_index(recorder.record(number))
            number += 1
        recorder.env.close()
        yield recorder.store


def _codecs() -> Mapping[str, tuple[Callable[[Any], bytes], Callable[[bytes], bytes]]]:
    """Return the compression and decompression functions of the codecs, by name."""
    decompress = zstandard.ZstdDecompressor().decompress
    codecs = {f"zstd {level}": (zstandard.ZstdCompressor(level=level).compress, decompress) for level in (1, 3, 9)}
    try:
        import lz4.block
    except ImportError:
        return codecs
    return {**codecs, "lz4": (lz4.block.compress, lz4.block.decompress)}


def read_windows(store: EpisodeStore, entries: list[Entry]) -> None:
    """Read random windows of episodes from a store."""
    random = np.random.default_rng(0)
    for _ in range(NUM_WINDOWS):
        entry = entries[random.integers(len(entries))]
        store.observations(entry.number, int(random.integers(entry.observations - WINDOW_FRAMES + 1)), WINDOW_FRAMES)


def write_episodes(store: EpisodeStore, episodes: list[Episode]) -> None:
    """Write the files of episodes, overwriting those of the last run."""
    for number, episode in enumerate(episodes):
        store.write(number, episode)


def compress_chunks(raw: np.ndarray, chunk: int, compress: Callable[[Any], bytes]) -> list[bytes]:
    """Compress frames (N, …) in chunks."""
    return [compress(raw[i : i + chunk]) for i in range(0, len(raw), chunk)]


def read_compressed_windows(
    raw: np.ndarray, chunk: int, chunks: list[bytes], decompress: Callable[[bytes], bytes]
) -> None:
    """Read random windows of compressed frames, and check the last one."""
    random = np.random.default_rng(0)
    for _ in range(NUM_WINDOWS):
        start = int(random.integers(len(raw) - WINDOW_FRAMES + 1))
        first, last = start // chunk, (start + WINDOW_FRAMES - 1) // chunk
        joined = b"".join(decompress(part) for part in chunks[first : last + 1])
        window = np.frombuffer(joined, raw.dtype).reshape(-1, *raw.shape[1:])[start - first * chunk :][:WINDOW_FRAMES]
    assert np.array_equal(window, raw[start : start + WINDOW_FRAMES])
