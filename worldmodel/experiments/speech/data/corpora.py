"""Folders and lists of recorded speech: which files, who speaks, what is said."""

import csv
import io
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from worldmodel.episodes.segments import HELD_OUT_EVERY
from worldmodel.experiments.speech.data.audio import SUFFIXES

LAYOUTS = (
    "put there VCTK's folders (wav48 or wav48_silence_trimmed, beside txt), LibriSpeech's (SPEAKER/CHAPTER/*.flac), "
    "the Free Spoken Digit Dataset's recordings (DIGIT_SPEAKER_NUMBER.wav), a folder for each speaker, or a CSV file "
    "(manifest.csv in a folder) with the columns path, speaker and maybe text and split"
)
PARTS = ("learnt", "held_out", "unheard")
VCTK = ("wav48_silence_trimmed", "wav48")
LIBRISPEECH = re.compile(r"(\d+)-(\d+)-(\d+)\.(flac|wav)")
DIGITS = re.compile(r"(\d)_([^_]+)_(\d+)\.wav")
DIGIT_TESTS = 5  # the first of each digit of each speaker are the data set's tests


@dataclass(frozen=True)
class Entry:
    """A recording.

    Attributes:
        path: of the sound file.
        speaker: a name.
        text: what is said, if that is known.
        part: one of PARTS.
    """

    path: Path
    speaker: str
    text: str = ""
    part: str = "learnt"


def find(source: Path) -> list[Entry]:
    """The recordings at ``source``, in the order of their paths, or of a CSV file's lines.

    Raises:
        ValueError: if there are none, or a CSV file is wrong, naming the line.
    """
    if source.is_file():
        return _manifest(source)
    if (source / "manifest.csv").is_file():
        return _manifest(source / "manifest.csv")
    source = source.parent if source.name in VCTK else source
    if folder := next((source / name for name in VCTK if (source / name).is_dir()), None):
        return _parted(_vctk(folder, source / "txt"))
    for inner in sorted(source.glob("*")):
        if any((inner / name).is_dir() for name in VCTK):
            raise ValueError(f"{source} holds VCTK's folders in {inner.name}; give {inner}")
    paths = _sounds(source)
    if not paths:
        raise ValueError(f"{source} holds no sounds ({', '.join(SUFFIXES)}); {LAYOUTS}")
    if all(DIGITS.fullmatch(path.name) for path in paths):
        return [_digit(path) for path in paths]
    if all(LIBRISPEECH.fullmatch(path.name) for path in paths):
        return _parted(_librispeech(paths))
    loose = [path.name for path in paths if path.parent == source]
    if loose:
        raise ValueError(f"{source / loose[0]} is in no speaker's folder; {LAYOUTS}")
    return _parted([Entry(path, path.relative_to(source).parts[0]) for path in paths])


def _sounds(folder: Path) -> list[Path]:
    paths = []
    for place, inner, files in os.walk(folder, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        paths += [Path(place, name) for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    return sorted(paths)


def _vctk(folder: Path, texts: Path) -> list[Entry]:
    """Of two microphones, the first."""
    entries = []
    for path in _sounds(folder):
        name = re.sub(r"_mic[12]$", "", path.stem)
        if path.stem.endswith("_mic2") or path.parent == folder:
            continue
        text = texts / path.parent.name / f"{name}.txt"
        entries.append(Entry(path, path.parent.name, _read(text).strip() if text.is_file() else ""))
    if not entries:
        raise ValueError(f"{folder} holds no sounds in speakers' folders; {LAYOUTS}")
    return entries


def _librispeech(paths: list[Path]) -> list[Entry]:
    texts: dict[str, str] = {}
    for folder in dict.fromkeys(path.parent for path in paths):
        for file in sorted(folder.glob("*.trans.txt")):
            texts |= {name: text for name, _, text in (line.partition(" ") for line in _read(file).splitlines())}
    return [Entry(path, path.name.split("-")[0], texts.get(path.stem, "")) for path in paths]


def _digit(path: Path) -> Entry:
    digit, speaker, number = DIGITS.fullmatch(path.name).groups()
    return Entry(path, speaker, digit, "held_out" if int(number) < DIGIT_TESTS else "learnt")


def _manifest(source: Path) -> list[Entry]:
    if source.suffix.lower() != ".csv":
        raise ValueError(f"{source} must be a .csv file or a folder; {LAYOUTS}")
    entries: dict[Path, Entry] = {}
    reader = csv.DictReader(io.StringIO(_read(source)), strict=True)
    columns = reader.fieldnames or []
    if not {"path", "speaker"} <= set(columns):
        raise ValueError(f"{source}, line 1: must name the columns path and speaker, has {','.join(columns)!r}")
    try:
        for row in reader:
            where = f"{source}, line {reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{where}: expected {len(columns)} fields: {','.join(columns)}")
            path, part = source.parent / row["path"], row.get("split", "learnt")
            if not row["speaker"]:
                raise ValueError(f"{where}: has no speaker")
            if part not in PARTS:
                raise ValueError(f"{where}: split must be one of {', '.join(PARTS)}, got {part!r}")
            if path in entries:
                raise ValueError(f"{where}: {row['path']} is there twice")
            if not path.is_file():
                raise ValueError(f"{where}: there is no file {path}")
            entries[path] = Entry(path, row["speaker"], row.get("text", ""), part)
    except csv.Error as error:
        raise ValueError(f"{source}, after line {reader.line_num}: {error}") from error
    if not entries:
        raise ValueError(f"{source} lists no recordings")
    found = list(entries.values())
    return found if "split" in columns else _parted(found)


def _parted(entries: list[Entry]) -> list[Entry]:
    """Every tenth recording of a speaker is held out, or the last of fewer; a single one is learnt from."""
    places: dict[str, list[int]] = {}
    for place, entry in enumerate(entries):
        places.setdefault(entry.speaker, []).append(place)
    held_out = {place for own in places.values() for place in own[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY] or own[1:][-1:]}
    return [replace(entry, part="held_out") if place in held_out else entry for place, entry in enumerate(entries)]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text: {error}") from error
