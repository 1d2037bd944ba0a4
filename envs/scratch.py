"""Scratch folders for games that run in a process of their own; what a killed program left is removed by the next."""

import contextlib
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

MARKER = "of-worldmodel"  # a file in each, without which a folder is taken for somebody else's


def make(engine: str) -> str:
    """A new empty folder, ``worldmodel-ENGINE-PID-…`` in the temporary directory, after :func:`sweep`."""
    sweep(engine)
    scratch = tempfile.mkdtemp(prefix=f"worldmodel-{engine}-{os.getpid()}-")
    Path(scratch, MARKER).touch()
    return scratch


def sweep(engine: str) -> None:
    """End the engines and remove the folders of processes that were killed: an engine may not notice by itself."""
    prefix = f"worldmodel-{engine}-"
    for scratch in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        owner = re.fullmatch(rf"{prefix}([0-9]+)-\w+", scratch.name)
        if not owner or not (scratch / MARKER).is_file():
            continue  # it is none of ours
        try:
            os.kill(int(owner[1]), 0)  # asks only whether there is such a process
        except ProcessLookupError:
            for process in Path("/proc").glob("[0-9]*"):  # empty where there is no /proc
                with contextlib.suppress(OSError):
                    if os.fsencode(scratch) in (process / "cmdline").read_bytes():
                        os.kill(int(process.name), signal.SIGKILL)
            shutil.rmtree(scratch, ignore_errors=True)
        except (PermissionError, OverflowError):
            continue  # another user's, or no number of a process
