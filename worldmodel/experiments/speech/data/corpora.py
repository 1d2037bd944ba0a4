"""Layouts of speech corpora: find the sound files, speakers, texts and splits of a folder or CSV file."""

import csv
import io
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from worldmodel.experiments.speech.data.audio import SUFFIXES
from worldmodel.renamed import SPEECH_SPLITS
from worldmodel.splits import is_held_out

LAYOUTS = (
    "put there VCTK's folders (wav48 or wav48_silence_trimmed, beside txt), LibriSpeech's (SPEAKER/CHAPTER/*.flac), "
    "the Free Spoken Digit Dataset's recordings (DIGIT_SPEAKER_NUMBER.wav), a folder for each speaker, or a CSV file "
    "(manifest.csv in a folder) with the columns path, speaker and maybe text and split"
)
SPLITS = ("train", "held_out", "unseen_speakers")
VCTK = ("wav48_silence_trimmed", "wav48")
LIBRISPEECH = re.compile(r"(\d+)-(\d+)-(\d+)\.(flac|wav)")
FSDD = re.compile(r"(\d)_([^_]+)_(\d+)\.wav")
FSDD_TEST_RECORDINGS = 5  # first recordings of each digit and speaker: the test set of the dataset


@dataclass(frozen=True)
class RecordingInfo:
    """A recording of a corpus.

    Attributes:
        path: sound file.
        speaker: name of the speaker.
        text: spoken text, empty if unknown.
        split: one of SPLITS.
    """

    path: Path
    speaker: str
    text: str = ""
    split: str = "train"


def find_recordings(source: Path) -> list[RecordingInfo]:
    """Return the recordings at ``source``, ordered by path, or by line for a CSV file.

    Raises:
        ValueError: if there are none, or naming the wrong line of a CSV file.
    """
    if source.is_file():
        return _manifest(source)
    if (source / "manifest.csv").is_file():
        return _manifest(source / "manifest.csv")
    source = source.parent if source.name in VCTK else source
    if folder := next((source / name for name in VCTK if (source / name).is_dir()), None):
        return _hold_out(_vctk(folder, source / "txt"))
    for inner in sorted(source.glob("*")):
        if any((inner / name).is_dir() for name in VCTK):
            raise ValueError(f"{source} holds VCTK's folders in {inner.name}; give {inner}")
    paths = _sounds(source)
    if not paths:
        raise ValueError(f"{source} holds no sounds ({', '.join(SUFFIXES)}); {LAYOUTS}")
    if all(FSDD.fullmatch(path.name) for path in paths):
        return [_fsdd(path) for path in paths]
    if all(LIBRISPEECH.fullmatch(path.name) for path in paths):
        return _hold_out(_librispeech(paths))
    loose = [path.name for path in paths if path.parent == source]
    if loose:
        raise ValueError(f"{source / loose[0]} is in no speaker's folder; {LAYOUTS}")
    return _hold_out([RecordingInfo(path, path.relative_to(source).parts[0]) for path in paths])


def _sounds(folder: Path) -> list[Path]:
    paths = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(root, name) for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    return sorted(paths)


def _vctk(folder: Path, texts: Path) -> list[RecordingInfo]:
    """Return VCTK's recordings, of the first of its two microphones."""
    entries = []
    for path in _sounds(folder):
        name = re.sub(r"_mic[12]$", "", path.stem)
        if path.stem.endswith("_mic2") or path.parent == folder:
            continue
        text = texts / path.parent.name / f"{name}.txt"
        entries.append(RecordingInfo(path, path.parent.name, _read(text).strip() if text.is_file() else ""))
    if not entries:
        raise ValueError(f"{folder} holds no sounds in speakers' folders; {LAYOUTS}")
    return entries


def _librispeech(paths: list[Path]) -> list[RecordingInfo]:
    texts: dict[str, str] = {}
    for folder in dict.fromkeys(path.parent for path in paths):
        for file in sorted(folder.glob("*.trans.txt")):
            texts |= {name: text for name, _, text in (line.partition(" ") for line in _read(file).splitlines())}
    return [RecordingInfo(path, path.name.split("-")[0], texts.get(path.stem, "")) for path in paths]


def _fsdd(path: Path) -> RecordingInfo:
    digit, speaker, number = path.stem.split("_")
    return RecordingInfo(path, speaker, digit, "held_out" if int(number) < FSDD_TEST_RECORDINGS else "train")


def _manifest(source: Path) -> list[RecordingInfo]:
    if source.suffix.lower() != ".csv":
        raise ValueError(f"{source} must be a .csv file or a folder; {LAYOUTS}")
    entries: dict[Path, RecordingInfo] = {}
    reader = csv.DictReader(io.StringIO(_read(source)), strict=True)
    try:
        columns = reader.fieldnames or []
        if not {"path", "speaker"} <= set(columns):
            raise ValueError(f"{source}, line 1: must name the columns path and speaker, has {','.join(columns)!r}")
        for row in reader:
            where = f"{source}, line {reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{where}: expected {len(columns)} fields: {','.join(columns)}")
            path, split = source.parent / row["path"], row.get("split", "train")
            split = SPEECH_SPLITS.get(split, split)
            if not row["speaker"]:
                raise ValueError(f"{where}: has no speaker")
            if split not in SPLITS:
                raise ValueError(f"{where}: split must be one of {', '.join(SPLITS)}, got {split!r}")
            if path in entries:
                raise ValueError(f"{where}: {row['path']} is there twice")
            if not path.is_file():
                raise ValueError(f"{where}: there is no file {path}")
            entries[path] = RecordingInfo(path, row["speaker"], row.get("text", ""), split)
    except csv.Error as error:
        raise ValueError(f"{source}, after line {reader.line_num}: {error}") from error
    if not entries:
        raise ValueError(f"{source} lists no recordings")
    recordings = list(entries.values())
    return recordings if "split" in columns else _hold_out(recordings)


def _hold_out(entries: list[RecordingInfo]) -> list[RecordingInfo]:
    """Hold out every tenth recording of a speaker, or the last of fewer; a single one stays in the training split."""
    by_speaker: dict[str, list[int]] = {}
    for n, entry in enumerate(entries):
        by_speaker.setdefault(entry.speaker, []).append(n)
    held_out = {n for own in by_speaker.values() for n in np.array(own)[is_held_out(range(len(own)))]}
    return [replace(entry, split="held_out") if n in held_out else entry for n, entry in enumerate(entries)]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text: {error}") from error
