"""DeepMind Lab's engine in a process of its own, where it can be opened anew for every episode.

An engine that is used again keeps some of the episode before: the phase of its clock, the last action, the height of
the start. Opening one leaks file descriptors, and at their limit it ends its process; so it is opened a number of
times in a child process, and that is replaced.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from hashlib import sha256
from importlib import metadata
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from envs import scratch

ENGINES = 50  # opened in one process: six descriptors and 3 MiB each, of 1,024 that a process may usually have
PICTURE = "RGB_INTERLEAVED"

_SERVE = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from envs.lab_engine import serve; serve(sys.argv)"
_MISSING = (
    "envs:Lab-v0 needs the module deepmind_lab, which is not on PyPI: build its wheel with bazel from the DeepMind Lab "
    "repository (https://github.com/google-deepmind/lab, docs/users/build.md) and pip install it; envs:Doom-v0 works "
    "meanwhile"
)


class Engine:
    """A level, played in a child process.

    Args:
        level: of DeepMind Lab.
        settings: the engine's own, all of them strings.
        renderer: ``"software"`` or ``"hardware"``.
        fresh: open a new engine for each episode.

    Raises:
        ImportError: if ``deepmind_lab`` is not installed, or cannot be loaded.
        RuntimeError: what the engine says when it cannot open the level.
        ChildProcessError: here and in all methods, if the engine ended its process; the next reset starts another.
    """

    def __init__(self, level: str, settings: dict[str, str], renderer: str, fresh: bool) -> None:
        build()
        self._settings, self._fresh = (level, settings, renderer), fresh
        self._process: _Process | None = None
        self._start()

    def reset(self, seed: int) -> np.ndarray:
        """Start an episode; returns its first frame (84, 84, 3) uint8."""
        if self._process is None or (self._fresh and self._episodes == ENGINES):
            self._start()
        self._episodes += 1
        return self._ask("reset", seed)

    def step(self, command: np.ndarray, frames: int) -> tuple[float, np.ndarray | None]:
        """Hold seven numbers for some frames; returns the reward and the frame, or None when the episode is over."""
        return self._ask("step", command, frames)

    def close(self) -> None:
        """End the process; closing twice is fine."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def _start(self) -> None:
        self.close()
        self._process, self._episodes = _Process(), 0
        self._ask("open", *self._settings, self._fresh)

    def _ask(self, *request: Any) -> Any:
        try:
            answer = self._process.ask(request)
        except EOFError:
            code = self._process.stop()
            self._process = None
            raise ChildProcessError(
                f"DeepMind Lab's engine ended with exit code {code} at {request[0]}, its messages are above; "
                "reset() starts another"
            ) from None
        except BaseException:  # an interrupt, say: the answer is still to come, and must not be taken for the next one
            self.close()
            raise
        if isinstance(answer, Exception):
            raise answer
        return answer


class _Process:
    """A child that answers; it ends with its parent, whatever ends that."""

    def __init__(self) -> None:
        folder = scratch.make("lab")
        self._connection, theirs = Pipe()
        with theirs:
            arguments = [sys.executable, "-c", _SERVE, json.dumps(sys.path), str(theirs.fileno()), folder]
            # explore levels print their maze
            process = subprocess.Popen(
                arguments, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        self._owner = os.getpid()
        self.stop = weakref.finalize(self, _stop, self._connection, process, folder, self._owner)

    def __reduce__(self) -> str:
        raise TypeError("a level that is being played cannot be copied; make another")

    def ask(self, request: Sequence[Any]) -> Any:
        if os.getpid() != self._owner:
            raise RuntimeError("this level belongs to the process that made it; make another in a fork")
        try:
            self._connection.send(request)
            return self._connection.recv()
        except OSError as error:  # it ended while it was asked, or its end was closed
            raise EOFError from error


def _stop(connection: Connection, process: subprocess.Popen, folder: str, owner: int) -> int | None:
    """End a child; returns its exit code."""
    if os.getpid() != owner:  # a fork of the process whose engine it is
        return None
    connection.close()
    try:
        code = process.wait(timeout=5)
    except subprocess.TimeoutExpired:  # in the middle of a long step
        process.kill()
        code = process.wait()
    shutil.rmtree(folder, ignore_errors=True)
    return code


def serve(arguments: list[str]) -> None:
    """Answer a parent's requests until it goes; the program of the child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Control-C goes to all processes of a terminal; the parent decides
    connection, level = Connection(int(arguments[2])), _Level(arguments[3])
    while True:
        try:
            name, *values = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            answer = getattr(level, name)(*values)
        except Exception as error:
            answer = error
        connection.send(answer)


class _Level:
    """What a child does when it is asked."""

    def __init__(self, folder: str) -> None:
        self._folder, self._lab, self._used = folder, None, False

    def open(self, level: str, settings: dict[str, str], renderer: str, fresh: bool) -> None:
        import deepmind_lab

        self._make = lambda: deepmind_lab.Lab(
            level, [PICTURE], config=settings, renderer=renderer, temp_folder=self._folder
        )
        self._fresh = fresh
        self._lab = self._make()

    def reset(self, seed: int) -> np.ndarray:
        if self._used and self._fresh:
            self._lab.close()
            self._lab = self._make()
        self._used = True
        # A level may read the episode's number, which counts up by itself: held at 0, the seed alone decides.
        self._lab.reset(episode=0, seed=seed)
        return self._lab.observations()[PICTURE]

    def step(self, command: np.ndarray, frames: int) -> tuple[float, np.ndarray | None]:
        reward = self._lab.step(command, num_steps=frames)
        return reward, self._lab.observations()[PICTURE] if self._lab.is_running() else None


def build() -> str:
    """Name the installed ``deepmind_lab``: its version, which builds share, and a digest of its libraries.

    Raises:
        ImportError: if it is not installed; the message says how to build it.
    """
    try:
        found = importlib.util.find_spec("deepmind_lab")  # without loading it
    except ValueError:  # it stands in sys.modules as None
        found = None
    if found is None or found.origin is None:
        raise ImportError(_MISSING)
    try:
        number = metadata.version("deepmind_lab")
    except metadata.PackageNotFoundError:
        number = "of unknown version"
    origin = Path(found.origin)
    files = (sorted(origin.parent.rglob("*.so")) if found.submodule_search_locations else []) or [origin]
    total = sha256()
    for file in files:
        total.update(file.read_bytes())
    return f"deepmind_lab {number}, build {total.hexdigest()[:12]}"
