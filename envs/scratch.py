"""Scratch folders of game engines; those that a killed program left behind are removed by the next one."""

import contextlib
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

MARKER_FILE = "of-worldmodel"  # a file in each scratch folder; folders without it are never removed


def make_folder(engine: str) -> str:
    """Return a new folder ``worldmodel-ENGINE-PID-…`` in the temporary directory, after :func:`remove_stale`."""
    remove_stale(engine)
    scratch = tempfile.mkdtemp(prefix=f"worldmodel-{engine}-{os.getpid()}-")
    Path(scratch, MARKER_FILE).touch()
    return scratch


def remove_stale(engine: str) -> None:
    """Remove the folders of killed programs, and end their engines, which may still be running."""
    prefix = f"worldmodel-{engine}-"
    for scratch in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        owner = re.fullmatch(rf"{prefix}([0-9]+)-\w+", scratch.name)
        if not owner or not (scratch / MARKER_FILE).is_file():
            continue  # not a scratch folder of ours
        try:
            os.kill(int(owner[1]), 0)  # signal 0 only checks that the process exists
        except ProcessLookupError:
            for process in Path("/proc").glob("[0-9]*"):  # empty where there is no /proc
                with contextlib.suppress(OSError):
                    if os.fsencode(scratch) in (process / "cmdline").read_bytes():
                        os.kill(int(process.name), signal.SIGKILL)
            shutil.rmtree(scratch, ignore_errors=True)
        except (PermissionError, OverflowError):
            continue  # another user's process, or not a process id
