"""Files that are written whole or not at all, and paths that are looked at before the work for them is done."""

import contextlib
import errno
import fcntl
import itertools
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

OLD = 3600  # seconds after which a file that its writer left unfinished is swept, if that process is gone
LARGE, MOST_PACKED = 1 << 29, 300  # bytes unpacked; how much smaller a zip file may make so many
LOCKLESS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # what file systems say that know no locks


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file in one step: whoever reads it, or whenever this process is killed, it is the old or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``path`` when the block ends, or is gone if that fails.

    Raises:
        ValueError: if there is something at ``path`` already.
    """
    if path.exists():
        raise ValueError(f"{path} is there already; remove it, or give another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def free(path: Path) -> Path:
    """``path``, or if there is something already ``name-2``, ``name-3``, … beside it."""
    names = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], names) if not name.exists())


def sweep(folder: Path) -> None:
    """Remove what killed writers of :func:`write_atomically` and :func:`written_whole` left in a folder."""
    for path in folder.glob(".*"):
        writer = re.fullmatch(r"\..+\.([0-9]+)", path.name)
        with contextlib.suppress(OSError):  # another process sweeps, too
            if writer and time.time() - path.stat().st_mtime > OLD and not _alive(int(writer[1])):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file of its own until the block, or the process, ends, however it ends; see :func:`lock`."""
    with open(path, "w") as file:
        lock(file, wait)
        yield


def lock(file: IO, wait: bool = True) -> None:
    """Lock an open file until it is closed; on a file system that knows no locks nothing happens.

    Args:
        wait: for whoever holds it.

    Raises:
        BlockingIOError: if another process holds it, and this one does not wait.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in LOCKLESS:
            raise


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # asks only whether there is such a process
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def check_file(path: Path) -> None:
    """Refuse a path that no file can be written to.

    Raises:
        ValueError: if it is a folder, or lies where none can be made or written in.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file in it")
    check_folder(path.parent)


def check_archive(path: Path) -> None:
    """Refuse a zip file, such as a .npz, that would unpack into far more than it is.

    Raises:
        ValueError: if it would.
        zipfile.BadZipFile: if it is none.
    """
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(part.file_size for part in archive.infolist())
    if unpacked > LARGE and unpacked > MOST_PACKED * path.stat().st_size:
        raise ValueError(f"{path} would unpack into {unpacked / 1e9:.1f} GB, {MOST_PACKED} times its size or more")


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
