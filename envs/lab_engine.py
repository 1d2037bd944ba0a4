"""DeepMind Lab's engine in a child process, where it can be reopened for every episode.

An engine that plays several episodes carries state over: its clock phase, the last action, the start height. Opening
one leaks file descriptors, and at their limit it ends its process; so a child process opens a limited number of
engines and is then replaced.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from hashlib import sha256
from importlib import metadata
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from envs import scratch

MAX_ENGINES_PER_PROCESS = 50  # each leaks six file descriptors, of usually 1,024 per process, and 3 MiB
RGB_OBSERVATION = "RGB_INTERLEAVED"

_SERVE = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from envs.lab_engine import serve; serve(sys.argv)"
_MISSING = (
    "envs:Lab-v0 needs the module deepmind_lab, which is not on PyPI: build its wheel with bazel from the DeepMind Lab "
    "repository (https://github.com/google-deepmind/lab, docs/users/build.md) and pip install it; envs:Doom-v0 works "
    "without it"
)


class Engine:
    """A level of DeepMind Lab, played in a child process.

    Args:
        level: name of the level.
        settings: settings of the engine, all strings.
        renderer: ``"software"`` or ``"hardware"``.
        fresh: whether to open a new engine for each episode.

    Raises:
        ImportError: if ``deepmind_lab`` is not installed, or cannot be loaded.
        RuntimeError: the engine's own, if it cannot open the level.
        ChildProcessError: from any method, if the engine ended its process; the next reset starts another.
    """

    def __init__(self, level: str, settings: dict[str, str], renderer: str, fresh: bool) -> None:
        engine_build()
        self._settings, self._fresh = (level, settings, renderer), fresh
        self._process: _Process | None = None
        self._start()

    def reset(self, seed: int) -> np.ndarray:
        """Start an episode; returns its first frame (84, 84, 3) uint8."""
        if self._process is None or (self._fresh and self._episodes == MAX_ENGINES_PER_PROCESS):
            self._start()
        self._episodes += 1
        return self._ask("reset", seed)

    def step(self, action: np.ndarray, frames: int) -> tuple[float, np.ndarray | None]:
        """Hold an engine action (7,) for some frames; returns the reward, and the frame or None after the end."""
        return self._ask("step", action, frames)

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
        assert self._process is not None  # LabEnv asks only after a reset
        try:
            answer = self._process.ask(request)
        except EOFError:
            code = self._process.stop()
            self._process = None
            raise ChildProcessError(
                f"DeepMind Lab's engine ended with exit code {code} at {request[0]}; its messages are above, and "
                "reset() starts another"
            ) from None
        except BaseException:  # such as an interrupt: a late answer must not be taken for the next one
            self.close()
            raise
        if isinstance(answer, Exception):
            raise answer
        return answer


class _Process:
    """A child process that answers requests; it ends with its parent, however that ends."""

    def __init__(self) -> None:
        folder = scratch.make_folder("lab")
        self._connection, child_end = Pipe()
        with child_end:
            arguments = [sys.executable, "-c", _SERVE, json.dumps(sys.path), str(child_end.fileno()), folder]
            # stdout is discarded: explore levels print their maze
            process = subprocess.Popen(
                arguments, pass_fds=[child_end.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        self._owner = os.getpid()
        self.stop = weakref.finalize(self, _stop, self._connection.close, process, folder, self._owner)

    def __reduce__(self) -> str:
        raise TypeError("a level that is being played cannot be copied; make another")

    def ask(self, request: Sequence[Any]) -> Any:
        if os.getpid() != self._owner:
            raise RuntimeError("this level belongs to the process that made it; make another in a fork")
        try:
            self._connection.send(request)
            return self._connection.recv()
        except OSError as error:  # the child ended, or its end was closed
            raise EOFError from error


def _stop(disconnect: Callable[[], None], process: subprocess.Popen, folder: str, owner: int) -> int | None:
    """End a child process and return its exit code."""
    if os.getpid() != owner:  # in a fork, the engine still belongs to the parent
        return None
    disconnect()
    try:
        code = process.wait(timeout=5)
    except subprocess.TimeoutExpired:  # in the middle of a long step
        process.kill()
        code = process.wait()
    shutil.rmtree(folder, ignore_errors=True)
    return code


def serve(arguments: list[str]) -> None:
    """Answer the parent's requests until it ends; the program of the child process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Control-C reaches the child, too; the parent decides
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
    """The engine in the child process; its public methods are the requests that it answers."""

    def __init__(self, folder: str) -> None:
        self._folder, self._used = folder, False

    def open(self, level: str, settings: dict[str, str], renderer: str, fresh: bool) -> None:
        import deepmind_lab  # pyright: ignore[reportMissingImports]

        self._make = lambda: deepmind_lab.Lab(
            level, [RGB_OBSERVATION], config=settings, renderer=renderer, temp_folder=self._folder
        )
        self._fresh = fresh
        self._lab = self._make()

    def reset(self, seed: int) -> np.ndarray:
        if self._used and self._fresh:
            self._lab.close()
            self._lab = self._make()
        self._used = True
        # Levels may read the episode number, which would count up; at 0, the seed alone determines the episode.
        self._lab.reset(episode=0, seed=seed)
        return self._lab.observations()[RGB_OBSERVATION]

    def step(self, action: np.ndarray, frames: int) -> tuple[float, np.ndarray | None]:
        reward = self._lab.step(action, num_steps=frames)
        return reward, self._lab.observations()[RGB_OBSERVATION] if self._lab.is_running() else None


def engine_build() -> str:
    """Return the version of the installed ``deepmind_lab`` and, as builds share it, a digest of its libraries.

    Raises:
        ImportError: if it is not installed; the message says how to build it.
    """
    try:
        spec = importlib.util.find_spec("deepmind_lab")  # without loading it
    except ValueError:  # sys.modules has it as None
        spec = None
    if spec is None or spec.origin is None:
        raise ImportError(_MISSING)
    try:
        version = metadata.version("deepmind_lab")
    except metadata.PackageNotFoundError:
        version = "of unknown version"
    origin = Path(spec.origin)
    files = (sorted(origin.parent.rglob("*.so")) if spec.submodule_search_locations else []) or [origin]
    digest = sha256()
    for file in files:
        digest.update(file.read_bytes())
    return f"deepmind_lab {version}, build {digest.hexdigest()[:12]}"
