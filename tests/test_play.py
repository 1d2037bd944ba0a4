"""The program ``worldmodel.play``: what it prints and refuses, and how it ends."""

import asyncio
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tornado.websocket import websocket_connect

from tests.player.serving import STRIPES
from worldmodel.episodes.store import EpisodeStore
from worldmodel.play import play

PROGRAM = ("-m", "worldmodel.play")
STOPPED_WHILE_IT_ANSWERS = """
import os, signal
from worldmodel import cli
from worldmodel.play import play
from worldmodel.player.session_handler import SessionHandler

send, answers = SessionHandler._send, []

async def send_and_stop(self, message):
    await send(self, message)
    answers.append(message)
    for name in os.environ["SIGNALS"].split() if len(answers) == 2 else ():
        os.kill(os.getpid(), signal.Signals[name])

SessionHandler._send = send_and_stop
cli.run(play)
"""


def default_signals() -> None:
    """Undo what the tests may run with: Control-C is ignored in the background, and SIGHUP under nohup."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def running(*arguments: str, program: tuple[str, ...] = PROGRAM) -> Iterator[tuple[subprocess.Popen, str]]:
    """The program in a process of its own, and the address that it prints."""
    command = [sys.executable, *program, "--open_browser", "false", *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_signals,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+/\?token=\S+", line)
        assert found, line + (process.communicate(timeout=60)[1] if process.poll() else "")
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "code", "answering"),
    [("SIGINT", 130, False), ("SIGTERM", 143, False), ("SIGTERM SIGINT", 143, True), ("SIGHUP", 129, True)],
)
def test_an_episode_is_kept_when_the_program_is_stopped_while_it_is_played(
    tmp_path, monkeypatch, signals, code, answering
):
    monkeypatch.setenv("SIGNALS", signals)
    program = ("-c", STOPPED_WHILE_IT_ANSWERS) if answering else PROGRAM
    with running("--env", STRIPES, "--store", str(tmp_path / "store"), program=program) as (process, address):
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert answer.status == 200

        async def play() -> None:
            socket = await websocket_connect(address.replace("http", "ws").replace("/?", "/play?"))
            for message in ('{"do": "start"}', '{"do": "step", "action": "right"}'):
                await socket.write_message(message)
                assert await socket.read_message()
            if not answering:
                process.send_signal(signal.Signals[signals])
            assert await asyncio.to_thread(process.wait, 60) == code

        asyncio.run(play())
    (entry,) = EpisodeStore(tmp_path / "store").entries
    assert (entry.steps, entry.truncated) == (1, True)


@pytest.mark.slow
def test_another_host_is_warned_about(world_run):
    with running("--world", str(world_run), "--host", "0.0.0.0") as (process, address):
        assert address.startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        assert "warning: --host 0.0.0.0 lets other machines play" in process.communicate(timeout=60)[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed must be a whole number"),
        ({"temperature": -1.0}, "temperature must be a number of 0 or more"),
        ({"port": 70000}, r"--port must be in \[0, 65535\] and --max_dreams 1 or more, got 70000 and 4"),
        ({"max_dreams": 0}, "--max_dreams 1 or more, got 0 and 0"),
        ({"beside": True, "store": "x"}, "--beside starts from the real environment"),
        ({"env": "No-v0"}, "cannot make --env No-v0"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_served(settings, message):
    with pytest.raises(ValueError, match=message):
        play(open_browser=False, **settings)


def test_an_agent_that_does_not_exist_is_named_also_with_a_world():
    with pytest.raises(FileNotFoundError, match=r"unknown agent 'take-covr': .*did you mean 'take-cover'"):
        play("doom-take-cover", agent="take-covr", open_browser=False)
