"""Datasets of recorded speech with training and held-out splits, and training batches."""

import hashlib
import json
import os
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.experiments.speech.data import audio
from worldmodel.experiments.speech.data.corpora import LAYOUTS, SPLITS, RecordingInfo, find_recordings
from worldmodel.experiments.speech.data.phonemes import Phonemes, read_phn
from worldmodel.experiments.speech.model import SpeechBatch
from worldmodel.splits import batch_indices, locate

CACHE_BYTES = 2**28  # of mu-law codes: 4.6 hours at 16 kHz


class Recordings:
    """Recordings at one sample rate, read on demand.

    Attributes:
        paths: sound files.
        speakers: (N,) int64, indices of training speakers, -1 for others.
        texts: spoken texts, empty where unknown.
        rate: sample rate in Hz.

    Args:
        names: names of the training speakers.
        cache_bytes: size of the cache of mu-law codes.
    """

    def __init__(
        self, entries: list[RecordingInfo], names: tuple[str, ...], rate: int, cache_bytes: int = CACHE_BYTES
    ) -> None:
        indices = {name: index for index, name in enumerate(names)}
        self.paths = tuple(entry.path for entry in entries)
        self.speakers = np.array([indices.get(entry.speaker, -1) for entry in entries], np.int64)
        self.texts = tuple(entry.text for entry in entries)
        self.rate, self._free_bytes = rate, cache_bytes
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self.paths)

    def mu_law(self, index: int) -> np.ndarray:
        """Return the mu-law codes (N,) uint8 of a recording, not to be modified; raises as :func:`audio.load`."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        codes = audio.mu_law_encode(self.waveform(index))
        self._cache[index] = codes
        self._free_bytes -= len(codes)
        while self._free_bytes < 0:
            self._free_bytes += len(self._cache.popitem(last=False)[1])
        return codes

    def waveform(self, index: int) -> np.ndarray:
        """Return a recording (N,) float32 at normalized loudness; raises as :func:`audio.load`."""
        return audio.normalize_loudness(audio.load(self.paths[index], self.rate))

    def phonemes(self, index: int) -> Phonemes:
        """Return the phonemes of the .phn file beside a recording; raises as :func:`phonemes.read_phn`."""
        path = self.paths[index]
        starts, stops, classes = read_phn(_phn_path(path))
        file_rate = audio.read_header(path)[1]
        return Phonemes(starts * self.rate // file_rate, stops * self.rate // file_rate, classes)

    def find_labeled(self) -> list[int]:
        """Return the indices of the recordings that have a .phn file beside them."""
        return [n for n, path in enumerate(self.paths) if _phn_path(path).is_file()]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of samples of each recording, (N,) int64, according to the file headers."""
        headers = np.array([audio.read_header(path) for path in self.paths], np.int64).reshape(-1, 2)
        return np.maximum(1, headers[:, 0] * self.rate // headers[:, 1])


@dataclass(frozen=True)
class Speech:
    """A speech dataset in up to three splits.

    Attributes:
        train: training recordings.
        held_out: held-out recordings of the same speakers.
        unseen_speakers: recordings of other speakers, if there are any.
        speakers: names of the training speakers, sorted.
        rate: sample rate in Hz.
    """

    train: Recordings
    held_out: Recordings
    unseen_speakers: Recordings | None
    speakers: tuple[str, ...]
    rate: int


def open_speech(source: str | Path, rate: int) -> Speech:
    """Open the recordings at ``source``, a CSV file or a folder of a layout in LAYOUTS, at a sample rate.

    A CSV file may name the splits in a column split (train, held_out or unseen_speakers). The Free Spoken Digit Dataset
    holds out its test set, numbers 0 to 4; other sources every tenth recording of each speaker.

    Raises:
        FileNotFoundError: if there is nothing at ``source``.
        ValueError: if the layout is unknown, or leaves nothing to train on or to hold out.
    """
    source = Path(source).absolute()
    if rate < 1:
        raise ValueError(f"--rate must be 1 sample a second or more, got {rate}")
    if not source.exists():
        raise FileNotFoundError(f"there is nothing at {source}; nothing is downloaded: {LAYOUTS}")
    entries = find_recordings(source)
    splits = {split: [entry for entry in entries if entry.split == split] for split in SPLITS}
    names = tuple(sorted({entry.speaker for entry in splits["train"]}))
    for split in ("train", "held_out"):
        if not splits[split]:
            raise ValueError(f"{source} has no {split} recordings, of {len(entries)}; give two or more of a speaker")
    for split, wrong in (("held_out", "but not"), ("unseen_speakers", "and also")):
        for entry in splits[split]:
            if (entry.speaker in names) == (split == "unseen_speakers"):
                raise ValueError(f"{source} has {entry.speaker} in {split} ({entry.path.name}) {wrong} in train")
    train, held_out, unseen_speakers = (Recordings(splits[split], names, rate) for split in SPLITS)
    return Speech(train, held_out, unseen_speakers if len(unseen_speakers) else None, names, rate)


def describe(speech: Speech) -> dict[str, Any]:
    """Return what a run's config.yaml records of its dataset: rate, speakers, split sizes and a digest."""
    return {
        "rate": speech.rate,
        "speakers": speech.speakers,
        "train": len(speech.train),
        "held_out": len(speech.held_out),
        "unseen_speakers": len(speech.unseen_speakers) if speech.unseen_speakers else 0,
        "recordings": _digest(speech),
    }


def _phn_path(sound: Path) -> Path:
    """Return the path of a recording's phonemes: .phn, or .PHN as on TIMIT's own disc."""
    upper = sound.with_suffix(".PHN")
    return upper if upper.is_file() else sound.with_suffix(".phn")


def _digest(speech: Speech) -> str:
    """Return 12 hexadecimal digits that identify the recordings and splits, independent of the dataset's location."""
    splits = [split for split in (speech.train, speech.held_out, speech.unseen_speakers) if split]
    root = os.path.commonpath([path.parent for split in splits for path in split.paths])
    lines = [
        sorted(
            f"{path.relative_to(root).as_posix()}\t{text}" for path, text in zip(part.paths, part.texts, strict=True)
        )
        for part in splits
    ]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:12]


class SpeechBatches:
    """Batches of random segments: ``batches(step)`` has B segments of ``length`` samples, a function of seed and step.

    Recordings are sampled in proportion to their length; short ones are padded with silence. ``batches(step, rank,
    world_size)`` returns the rows, B / world_size of them, of one worker.
    """

    def __init__(self, recordings: Recordings, batch_size: int, length: int, seed: int) -> None:
        if length < 1:
            raise ValueError(f"a segment must have 1 sample or more, got {length}")
        self.recordings, self.batch_size, self.length, self.seed = recordings, batch_size, length, seed
        self._lengths = recordings.lengths

    def __call__(self, step: int, rank: int = 0, world_size: int = 1) -> SpeechBatch:
        positions = batch_indices(int(self._lengths.sum()), self.batch_size, self.seed, step, rank, world_size)
        indices, offsets = locate(self._lengths, positions)
        samples = np.full((len(indices), self.length), audio.SILENCE, np.uint8)
        lengths = np.zeros(len(indices), np.int64)
        for row, (index, offset) in enumerate(zip(indices, offsets, strict=True)):
            codes = self.recordings.mu_law(int(index))
            fraction = 1 - (self._lengths[index] - offset) / self._lengths[index]  # in [0, 1)
            start = int(fraction * max(1, len(codes) - self.length + 1))
            segment = codes[start : start + self.length]
            samples[row, : len(segment)], lengths[row] = segment, len(segment)
        speakers = torch.from_numpy(self.recordings.speakers[indices])
        return SpeechBatch(torch.from_numpy(samples), torch.from_numpy(lengths), speakers)
