"""Atomic writes, file locks, lines of text files, and early checks of output paths."""

import contextlib
import errno
import fcntl
import gzip
import itertools
import os
import re
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

STALE_SECONDS = 3600  # age at which the temporary file of a dead process is removed
LARGE_ARCHIVE_BYTES = 1 << 29  # unpacked size above which MAX_COMPRESSION_RATIO applies
MAX_COMPRESSION_RATIO = 300
LOCKS_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # errors of file systems without locks


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file in one step: readers see the old or the new content, even if this process is killed.

    Folders above it are created if necessary.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
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
def write_folder_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends, or is removed if the block fails.

    Raises:
        ValueError: if ``path`` exists.
    """
    if path.exists():
        raise ValueError(f"{path} already exists; remove it, or give another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_temporaries(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def unused_path(path: Path) -> Path:
    """Return ``path`` if nothing is there, else the first unused of ``name-2``, ``name-3``, …."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return next(candidate for candidate in itertools.chain([path], numbered) if not candidate.exists())


def remove_stale_temporaries(folder: Path) -> None:
    """Remove the temporaries that killed processes left in a folder while writing atomically."""
    for path in folder.glob(".*"):
        writer = re.fullmatch(r"\..+\.([0-9]+)", path.name)
        with contextlib.suppress(OSError):  # another process may remove it first
            if writer and time.time() - path.stat().st_mtime > STALE_SECONDS and not _is_running(int(writer[1])):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock file ``path`` until the block or the process ends; see :func:`lock`."""
    with open(path, "w") as file:
        lock(file, wait)
        yield


def lock(file: IO, wait: bool = True) -> None:
    """Lock an open file until it is closed; does nothing on file systems without locks.

    Args:
        wait: wait until the lock is free.

    Raises:
        BlockingIOError: if another process holds the lock and ``wait`` is false.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in LOCKS_UNSUPPORTED:
            raise


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 only checks that the process exists
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def check_file(path: Path) -> None:
    """Check that a file can be written to a path.

    Raises:
        ValueError: if the path is a folder, or its folder cannot be created or written to.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file in it")
    check_folder(path.parent)


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, plain or .gz, each with single spaces between its words and none around them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not UTF-8 text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of sentences {path}")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            return [" ".join(line.split()) for line in file]
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} must be UTF-8 text, one sentence a line: {error}") from error


def check_archive(path: Path) -> None:
    """Refuse a zip file, such as a .npz, that unpacks to far more than its size (a zip bomb).

    Raises:
        ValueError: if it does.
        zipfile.BadZipFile: if it is not a zip file.
    """
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(part.file_size for part in archive.infolist())
    if unpacked > LARGE_ARCHIVE_BYTES and unpacked > MAX_COMPRESSION_RATIO * path.stat().st_size:
        ratio = f"{MAX_COMPRESSION_RATIO} times its size or more"
        raise ValueError(f"{path} would unpack into {unpacked / 1e9:.1f} GB, {ratio}")


def check_folder(path: Path) -> None:
    """Check that a folder can be created at a path and written to.

    Raises:
        ValueError: naming the part of the path that is in the way.
    """
    path = path.absolute()
    existing = next(part for part in (path, *path.parents) if part.exists() or part.is_symlink())
    if not existing.is_dir():
        raise ValueError(f"{existing} is not a folder, so nothing can be written to {path}; give another path")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{existing} is not writable; give another path")
