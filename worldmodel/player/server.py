"""The server of the page; everything slow happens in one other thread."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import torch
from tornado import httpserver, netutil, web

from worldmodel.player import access
from worldmodel.player.factory import SessionFactory
from worldmodel.player.handlers import FilmHandler, PageHandler, Shared, UnknownHandler
from worldmodel.player.protocol import MAX_MESSAGE_BYTES
from worldmodel.player.session_handler import SessionHandler

PAGE_FILES = ("play.js", "play.css", "play.svg")
PING_SECONDS = 60  # after which a client that vanished is noticed


class PlayServer:
    """Serves the page on one address; needs a running event loop.

    Args:
        port: port to listen on, or 0 for a free one.
        max_dreams: number of sessions at once.
        seed: seed of the first start of a page.
        temperature: temperature of the first start of a page.

    Raises:
        ValueError: if it cannot listen there.

    Attributes:
        port: port that it listens on.
        address: address to open, with the token.
    """

    def __init__(
        self,
        factory: SessionFactory,
        host: str = "127.0.0.1",
        port: int = 0,
        max_dreams: int = 4,
        seed: int = 0,
        temperature: float = 1.0,
    ) -> None:
        executor = ThreadPoolExecutor(1, "play", initializer=lambda: torch.set_num_threads(1))
        defaults = {"seed": seed, "temperature": temperature}
        places = min(max_dreams, factory.max_sessions)
        self.shared = Shared(factory, access.new_token(), host, places, defaults, executor)
        try:
            self._sockets = netutil.bind_sockets(port, host or None)
        except OSError as error:
            remedy = "give another --port, or 0 for a free one, and a --host of this machine"
            raise ValueError(f"cannot listen on {host} port {port}: {error}; {remedy}") from error
        self._server = httpserver.HTTPServer(make_app(self.shared), max_body_size=MAX_MESSAGE_BYTES)
        self._server.add_sockets(self._sockets)
        self.port: int = self._sockets[0].getsockname()[1]
        shown = "127.0.0.1" if host in ("", "0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{self.port}/?token={self.shared.token}"

    async def close(self) -> None:
        """Stop listening, and free all sessions."""
        self._server.stop()
        self.shared.max_dreams = 0  # a connection that is still open cannot become a player any more
        for handler in list(self.shared.playing):
            handler.close()
            handler.on_close()
        await asyncio.get_running_loop().run_in_executor(self.shared.executor, lambda: None)  # after those before
        self.shared.executor.shutdown()


def make_app(shared: Shared) -> web.Application:
    """Return the pages and the WebSocket."""
    handlers = [
        (r"/", PageHandler),
        (rf"/({'|'.join(PAGE_FILES)})", PageHandler),
        (r"/play", SessionHandler),
        (r"/films/([\w-]{16,})", FilmHandler),
    ]
    return web.Application(
        [(pattern, handler, {"shared": shared}) for pattern, handler in handlers],
        default_handler_class=UnknownHandler,
        default_handler_args={"shared": shared},
        websocket_max_message_size=MAX_MESSAGE_BYTES,
        websocket_ping_interval=PING_SECONDS,
        log_function=lambda handler: None,
    )
