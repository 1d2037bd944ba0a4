"""One WebSocket is one session: the page asks for a start, a step or a film, and gets one message for each."""

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from typing import Any

from tornado import websocket

from worldmodel.player.handlers import CheckedHandler, Shared, file_name
from worldmodel.player.protocol import pack, pack_view, parse, parse_start
from worldmodel.player.sessions import Session
from worldmodel.player.view import View
from worldmodel.suggest import unknown_name

MAX_FILMS = 3  # that a session keeps to be fetched
TRY_AGAIN_LATER = 1013  # code of a closed WebSocket


class SessionHandler(CheckedHandler, websocket.WebSocketHandler):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A player: the page asks for a start, a step or a film, and gets one message for each."""

    def initialize(self, shared: Shared) -> None:
        """Start without a session."""
        super().initialize(shared)
        self._session: Session | None = None
        self._world, self._started, self._closed = "", False, False
        self._films: list[str] = []

    def check_origin(self, origin: str) -> bool:
        """Accept: the request was checked before."""
        return True

    def get_compression_options(self) -> None:
        """Switch compression off: PNG files don't become smaller."""
        return None

    async def open(self, *args: str, **kwargs: str) -> None:
        """Take a place, or say that there is none."""
        if len(self.shared.playing) >= self.shared.max_dreams:
            error = (
                f"all places are taken, {self.shared.max_dreams} at once: close another page, or raise --max_dreams "
                "(a store is recorded by one player)"
            )
            await self._send(pack({"status": 503, "error": error}))
            self.close(TRY_AGAIN_LATER, "all places are taken")
            return
        self.shared.playing.add(self)

    async def on_message(self, message: str | bytes) -> None:
        """Answer a request; a wrong one gets status 400, and the session goes on."""
        if self not in self.shared.playing:
            return
        try:
            await self._send(await self._in_thread(lambda: self._answer(message)))
        except (RuntimeError, asyncio.CancelledError):  # the program ends: no thread is left, or no time
            self.close()

    def on_close(self) -> None:
        """Give the place back, and free the session once the step that it is in is over."""
        if self in self.shared.playing:
            self.shared.playing.remove(self)
            self._closed = True
            self.shared.executor.submit(self._free)

    def _answer(self, message: str | bytes) -> bytes:
        """Answer a request, in the other thread."""
        if self._closed:
            return b""
        try:
            request = parse(message)
            kinds = {"start": self._start, "step": self._step, "film": self._save_film}
            if (kind := str(request.get("do"))) not in kinds:
                raise ValueError(unknown_name("request", f"{kind:.80}", kinds))
            answer = kinds[kind](request)
            if isinstance(answer, View):
                header = {"session": self._describe()} if kind == "start" else {}
                return pack_view(answer, note=self._session.note if self._session else "", **header)
            return pack(answer)
        except Exception as error:
            known = isinstance(error, ValueError | OSError | ImportError)
            if not known:
                print(f"error: {type(error).__name__}: {error}", flush=True)
            return pack(
                {"status": 400 if known else 500, "error": " ".join(str(error).split()) or type(error).__name__}
            )

    def _start(self, request: dict[str, Any]) -> View:
        start = parse_start({**self.shared.defaults, **request})
        world = str(request.get("world") or next(iter(self.shared.factory.worlds)))
        if self._session is None or world != self._world:
            opened = self.shared.factory.open(world)
            self._close_session()
            self._session, self._world, self._started = opened, world, False
        view = self._session.start(start)
        self._started = True
        return view

    def _step(self, request: dict[str, Any]) -> View:
        return self._started_session("step").step(str(request.get("action", "")))

    def _save_film(self, request: dict[str, Any]) -> dict[str, Any]:
        kind, name = str(request.get("kind", "gif")), secrets.token_urlsafe(16)
        data = self._started_session("film").film.save(kind)
        self._films.append(name)
        self.shared.films[name] = kind, data
        if len(self._films) > MAX_FILMS:
            self.shared.films.pop(self._films.pop(0), None)
        return {"status": 200, "film": f"films/{name}", "file": file_name(kind), "bytes": len(data)}

    def _started_session(self, request: str) -> Session:
        if self._session is None or not self._started:
            raise ValueError(f"the first message must be a start, got a {request}")
        return self._session

    def _describe(self) -> dict[str, Any]:
        """Return what the page must know about the session."""
        session, factory = self._session, self.shared.factory
        assert session is not None
        return {
            "mode": factory.mode,
            "world": self._world,
            "worlds": factory.worlds,
            "actions": session.action_names,
            "rate": session.rate,
            "clips": session.clips,
            "takes_pictures": session.takes_pictures,
            "agent": session.agent,
            **self.shared.defaults,
        }

    def _free(self) -> None:
        """Free the session and its films, in the other thread, which therefore comes after any step."""
        for name in self._films:
            self.shared.films.pop(name, None)
        try:
            self._close_session()
        except (ValueError, OSError) as error:  # such as a full disk
            print(f"error: the last episode could not be kept: {error}", flush=True)

    def _close_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    async def _in_thread(self, function: Callable[[], bytes]) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self.shared.executor, function)

    async def _send(self, message: bytes) -> None:
        """Send a message, unless the client has vanished."""
        with contextlib.suppress(websocket.WebSocketClosedError):
            await self.write_message(message, binary=True)
