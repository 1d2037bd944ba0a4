"""A server in a thread, its client, and an environment of the size of the tests' tiny world."""

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gymnasium as gym
import numpy as np
from safetensors.numpy import load_file, save_file
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from worldmodel.player.factory import SessionFactory
from worldmodel.player.protocol import unpack
from worldmodel.player.server import PlayServer

gym.register("Stripes-v0", entry_point="tests.player.serving:StripesWorld")
STRIPES = "tests.player.serving:Stripes-v0"


class StripesWorld(gym.Env):
    """The stripes of the tiny world as an environment, for ``length`` steps; it is rewarded to shift right."""

    metadata = {"render_modes": []}
    action_names = ("left", "stay", "right")

    def __init__(self, length: int = 30, frame_size: int = 24) -> None:
        self.length, self.frame_size = length, frame_size
        self.observation_space = gym.spaces.Box(0, 255, (48, 48, 3), np.uint8)
        self.action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.length
        self.picture = self.np_random.integers(0, 256, (1, 6, 3), np.uint8).repeat(8, 1).repeat(48, 0)
        return self.picture, {}

    def step(self, action):
        self.left -= 1
        self.picture = np.roll(self.picture, 8 * (action - 1), 1)
        return self.picture, float(action == 2), self.left == 0, False, {}


class Pusher:
    """An agent that shifts left and right in turn, and keeps what it saw."""

    action_names = ("left", "stay", "right")

    def start(self, seed: int) -> None:
        self.seen: list[np.ndarray] = []

    def act(self, frame: np.ndarray) -> int:
        self.seen.append(frame)
        return 2 * (len(self.seen) % 2)


def world_with_ends(run: Path, target: Path, logit: float) -> Path:
    """Copy a world, and shift the logit of its terminations."""
    shutil.copytree(run, target)
    weights = load_file(target / "model.safetensors")
    weights["outcome.2.bias"][1] += logit
    save_file(weights, target / "model.safetensors")
    return target


@contextmanager
def serving(factory: SessionFactory, **settings) -> Iterator[PlayServer]:
    """Serve in a thread of its own, as the program does in its only one."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def open_server() -> PlayServer:
        return PlayServer(factory, **settings)

    try:
        server = asyncio.run_coroutine_threadsafe(open_server(), loop).result(60)
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.close(), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


class Client:
    """What the page does, in Python."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self.socket = socket

    @classmethod
    async def connect(cls, server: PlayServer, token: str | None = None, **headers: str) -> "Client":
        token = server.shared.token if token is None else token
        address = f"ws://127.0.0.1:{server.port}/play?token={token}"
        return cls(await websocket_connect(HTTPRequest(address, headers=headers)))

    async def ask(self, **request) -> tuple[dict, list[np.ndarray]]:
        await self.socket.write_message(json.dumps(request))
        return await self.receive()

    async def receive(self) -> tuple[dict, list[np.ndarray]]:
        message = await asyncio.wait_for(self.socket.read_message(), 60)
        assert isinstance(message, bytes), "the connection was closed"
        return unpack(message)
