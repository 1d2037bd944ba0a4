"""What every request goes through, and the page and the films that are served."""

from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tornado import web

from worldmodel.player import access
from worldmodel.player.factory import SessionFactory
from worldmodel.player.film import CONTENT_TYPES

PAGE = Path(__file__).parent / "page"
FILE_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass
class Shared:
    """What all handlers share.

    Attributes:
        max_dreams: number of places; 0 once the server closes.
        defaults: seed and temperature that the page begins with.
        executor: one thread that loads, dreams and encodes.
        playing: handlers that have a session.
        films: saved films by their random names: kind and bytes.
    """

    factory: SessionFactory
    token: str
    host: str
    max_dreams: int
    defaults: dict[str, Any]
    executor: Executor
    films: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    playing: set[Any] = field(default_factory=set)


class CheckedHandler(web.RequestHandler):
    """Refuses requests for another host, from another page, or without the token."""

    needs_token = True

    def initialize(self, shared: Shared) -> None:
        """Take what all handlers share."""
        self.shared = shared

    def set_default_headers(self) -> None:
        """Allow the page nothing but this server."""
        for name, value in SECURITY_HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        """Check the request.

        Raises:
            HTTPError: 403 if it is refused.
        """
        headers = self.request.headers
        reason = access.refusal(headers.get("Host", ""), headers.get("Origin"), self.shared.host)
        if not reason and self.needs_token and not access.same_token(self.get_argument("token", ""), self.shared.token):
            reason = "expected the token of the address that play printed; open that address, up to its end"
        if reason:
            raise web.HTTPError(403, reason)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with one line of text."""
        error = kwargs.get("exc_info", (None, None))[1]
        message = error.log_message if isinstance(error, web.HTTPError) else None
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"error: {(message or self._reason).replace('%%', '%')}\n")  # HTTPError doubles them for logging


class UnknownHandler(CheckedHandler):
    """Answers 404 to every other path."""

    def prepare(self) -> None:
        """Check the request, and refuse it anyway."""
        super().prepare()
        raise web.HTTPError(404, "there is no such page")


class PageHandler(CheckedHandler):
    """The page and its two files, which hold nothing secret; only the page needs the token."""

    @property
    def needs_token(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether this is the page itself."""
        return self.request.path == "/"

    def get(self, name: str = "index.html") -> None:
        """Send a file of the page."""
        self.set_header("Content-Type", f"{FILE_TYPES[Path(name).suffix]}; charset=utf-8")
        self.finish((PAGE / name).read_bytes())


class FilmHandler(CheckedHandler):
    """Films that were saved, from memory."""

    def get(self, name: str) -> None:
        """Send a film.

        Raises:
            HTTPError: 404 if there is none, or no more.
        """
        film = self.shared.films.get(name)
        if film is None:
            raise web.HTTPError(404, "there is no such film; save it again")
        kind, data = film
        self.set_header("Content-Type", CONTENT_TYPES[kind])
        self.set_header("Content-Disposition", f'inline; filename="{file_name(kind)}"')
        self.finish(data)


def file_name(kind: str) -> str:
    """Return the name under which a browser saves a film."""
    return "dream-episode.zip" if kind == "episode" else f"dream.{kind}"
