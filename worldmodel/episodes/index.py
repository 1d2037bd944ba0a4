"""The index of a store: one line per episode, which several processes may extend at the same time."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

from worldmodel.episodes.schema import Entry
from worldmodel.files import lock

ENTRY_ERRORS = (ValueError, TypeError, RecursionError, OverflowError)  # of a line that is no entry


class EpisodeIndex:
    """An index.jsonl in memory.

    Attributes:
        entries: index entries by episode number.
        num_frames: total number of observations.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the damaged line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._load()

    @contextmanager
    def locked(self) -> Iterator[Callable[[Entry], None]]:
        """Lock the file, read what other processes added, and yield the function that adds an entry."""
        with open(self.path, "rb+") as file:
            lock(file)
            if file.seek(0, os.SEEK_END) != self._bytes:  # others added lines, or part of one before being killed
                file.seek(0)
                complete, last_line = _split(file.read())
                if _is_entry(last_line):
                    file.write(b"\n")
                else:
                    file.truncate(len(complete))
                file.flush()
                self._load()
            yield lambda entry: self._add(file, entry)

    def _add(self, file: IO[bytes], entry: Entry) -> None:
        file.seek(0, os.SEEK_END)
        file.write(json.dumps(asdict(entry)).encode() + b"\n")
        file.flush()  # fails now if the disk is full
        self._bytes = file.tell()
        self.entries[entry.number] = entry
        self.num_frames += entry.observations

    def _load(self) -> None:
        if not self.path.is_file():
            raise FileNotFoundError(
                f"{self.path.parent} lacks its {self.path.name}; restore it, or record into another --store"
            )
        complete, last_line = _split(self.path.read_bytes())
        self._bytes = len(complete)
        lines = complete.split(b"\n")[:-1] + ([last_line] if _is_entry(last_line) else [])
        self.entries: dict[int, Entry] = {}
        for number, line in enumerate(lines, 1):
            try:
                entry = Entry(**json.loads(line))
            except ENTRY_ERRORS as error:
                raise ValueError(f"{self.path} is damaged in line {number}: {error}") from error
            self.entries[entry.number] = entry
        self.num_frames = sum(entry.observations for entry in self.entries.values())


def _split(data: bytes) -> tuple[bytes, bytes]:
    """Split an index into its complete lines and a last one without a newline, which is usually empty."""
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


def _is_entry(line: bytes) -> bool:
    """Return whether a line without a newline is whole, as an editor leaves it, and not cut by a killed process."""
    try:
        Entry(**json.loads(line))
    except ENTRY_ERRORS:
        return False
    return True
