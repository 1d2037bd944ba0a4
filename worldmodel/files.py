"""Files that are written whole or not at all, and paths that are looked at before the work for them is done."""

import os
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file in one step: whoever reads it, or whenever this process is killed, it is the old or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def check_file(path: Path) -> None:
    """Refuse a path that no file can be written to.

    Raises:
        ValueError: if it is a folder, or lies where none can be made or written in.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file in it")
    check_folder(path.parent)


def check_folder(path: Path) -> None:
    """Refuse a path that no folder can be made at, or written in.

    Raises:
        ValueError: naming the part of it that is in the way.
    """
    path = path.absolute()
    there = next(part for part in (path, *path.parents) if part.exists() or part.is_symlink())
    if not there.is_dir():
        raise ValueError(f"{there} is no folder, so nothing can be written to {path}; give another path")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{there} cannot be written in; give another path")
