"""Recorded speech, whatever it lies in: what is learnt from, what is held out, and batches of it."""

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

from worldmodel.episodes.segments import draw
from worldmodel.experiments.speech.data import audio
from worldmodel.experiments.speech.data.corpora import LAYOUTS, PARTS, Entry, find
from worldmodel.experiments.speech.data.phonemes import Phonemes, read_phn
from worldmodel.experiments.speech.model import SpeechBatch

CACHED = 2**28  # bytes of codes that are kept: 4.6 hours at 16,000 samples a second


class Recordings:
    """Recordings at one rate, numbered from 0.

    Attributes:
        paths: of the files.
        speakers: (N,) int64, numbers of those learnt from, -1 for others.
        texts: what is said; empty where that is not known.
        rate: samples a second.

    Args:
        entries: them.
        names: of the speakers learnt from.
        cached: bytes of what was read that are kept.
    """

    def __init__(self, entries: list[Entry], names: tuple[str, ...], rate: int, cached: int = CACHED) -> None:
        numbers = {name: number for number, name in enumerate(names)}
        self.paths = tuple(entry.path for entry in entries)
        self.speakers = np.array([numbers.get(entry.speaker, -1) for entry in entries], np.int64)
        self.texts = tuple(entry.text for entry in entries)
        self.rate, self._room = rate, cached
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> np.ndarray:
        """The mu-law codes of a recording, (N,) uint8, which must not be changed; raises as :func:`audio.load`."""
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        codes = audio.mu_law(self.waveform(index))
        self._kept[index] = codes
        self._room -= len(codes)
        while self._room < 0:
            self._room += len(self._kept.popitem(last=False)[1])
        return codes

    def waveform(self, index: int) -> np.ndarray:
        """A recording before it becomes codes, as loud as all others, (N,) float32; raises as :func:`audio.load`."""
        return audio.levelled(audio.load(self.paths[index], self.rate))

    def phonemes(self, index: int) -> Phonemes:
        """What is said when, from the .phn file beside a recording; raises as :func:`phonemes.read_phn`."""
        path = self.paths[index]
        starts, stops, classes = read_phn(path.with_suffix(".phn"))
        there = audio.header(path)[1]
        return Phonemes(starts * self.rate // there, stops * self.rate // there, classes)

    @cached_property
    def lengths(self) -> np.ndarray:
        """The samples of each, (N,) int64, as the headers of the files claim."""
        claims = np.array([audio.header(path) for path in self.paths], np.int64).reshape(-1, 2)
        return np.maximum(1, claims[:, 0] * self.rate // claims[:, 1])


@dataclass(frozen=True)
class Speech:
    """Recordings in up to three parts.

    Attributes:
        learnt: what to learn from.
        held_out: others of the same speakers, to measure on.
        unheard: of speakers never learnt from, if there are any.
        speakers: names of those learnt from, sorted.
        rate: samples a second.
    """

    learnt: Recordings
    held_out: Recordings
    unheard: Recordings | None
    speakers: tuple[str, ...]
    rate: int


def open_speech(source: str | Path, rate: int) -> Speech:
    """The recordings at ``source``, a CSV file or a folder of any of the kinds that LAYOUTS names, at a rate.

    A CSV file with a column split (learnt, held_out or unheard) says which are held out; of the Free Spoken Digit
    Dataset it is numbers 0 to 4, its own tests, and of others every tenth recording of each speaker. The files are
    read when they are asked for.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is of no such kind, or leaves nothing to learn from or to hold out.
    """
    source = Path(source).absolute()
    if rate < 1:
        raise ValueError(f"--rate must be 1 sample a second or more, got {rate}")
    if not source.exists():
        raise FileNotFoundError(f"there is nothing at {source}; nothing is downloaded: {LAYOUTS}")
    entries = find(source)
    parts = {part: [entry for entry in entries if entry.part == part] for part in PARTS}
    names = tuple(sorted({entry.speaker for entry in parts["learnt"]}))
    for part in PARTS[:2]:
        if not parts[part]:
            raise ValueError(f"{source} has no recordings that are {part}, of {len(entries)}; two of a speaker will do")
    for part, known in (("held_out", False), ("unheard", True)):
        for entry in parts[part]:
            if (entry.speaker in names) == known:
                heard = "also" if known else "never"
                raise ValueError(f"{source} has {entry.speaker} as {part} ({entry.path.name}) and {heard} as learnt")
    learnt, held_out, unheard = (Recordings(parts[part], names, rate) for part in PARTS)
    return Speech(learnt, held_out, unheard if len(unheard) else None, names, rate)


def describe(speech: Speech) -> dict[str, Any]:
    """What a run's config.yaml says of the speech it learnt from."""
    return {
        "rate": speech.rate,
        "speakers": speech.speakers,
        "learnt": len(speech.learnt),
        "held_out": len(speech.held_out),
        "unheard": len(speech.unheard) if speech.unheard else 0,
        "recordings": _digest(speech),
    }


def _digest(speech: Speech) -> str:
    """Twelve hexadecimal digits that say which recordings are in which part, wherever their folder is."""
    parts = [part for part in (speech.learnt, speech.held_out, speech.unheard) if part]
    top = os.path.commonpath([path.parent for part in parts for path in part.paths])
    lines = [
        sorted(f"{path.relative_to(top).as_posix()}\t{text}" for path, text in zip(part.paths, part.texts, strict=True))
        for part in parts
    ]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:12]


class SpeechBatches:
    """Random pieces of recordings: ``batches(n)`` is B of ``length`` samples, the same for the same seed and n.

    A recording is as likely as it is long, and a shorter one is followed by silence. ``batches(n, rank, workers)`` is
    the part of it, B / workers pieces, that worker number ``rank`` learns from.
    """

    def __init__(self, recordings: Recordings, batch: int, length: int, seed: int) -> None:
        if length < 1:
            raise ValueError(f"a piece must have 1 sample or more, got {length}")
        self.recordings, self.size, self.length, self.seed = recordings, batch, length, seed
        self._ends = np.cumsum(recordings.lengths)

    def __call__(self, number: int, rank: int = 0, workers: int = 1) -> SpeechBatch:
        positions = draw(int(self._ends[-1]), self.size, self.seed, number, rank, workers)
        which = np.searchsorted(self._ends, positions, side="right")
        samples = np.full((len(which), self.length), audio.SILENCE, np.uint8)
        lengths = np.zeros(len(which), np.int64)
        for row, (index, position) in enumerate(zip(which, positions, strict=True)):
            codes = self.recordings.read(int(index))
            into = 1 - (self._ends[index] - position) / self.recordings.lengths[index]  # in [0, 1)
            start = int(into * max(1, len(codes) - self.length + 1))
            piece = codes[start : start + self.length]
            samples[row, : len(piece)], lengths[row] = piece, len(piece)
        speakers = torch.from_numpy(self.recordings.speakers[which])
        return SpeechBatch(torch.from_numpy(samples), torch.from_numpy(lengths), speakers)
