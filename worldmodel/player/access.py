"""Who may talk to the server: the Host, the Origin and the token of every request are checked.

A page of another site can reach a server on this machine: a browser opens WebSockets to any host, and a name that its
owner points at 127.0.0.1 (DNS rebinding) passes for this machine. Both send a Host or an Origin that gives them away.
"""

import contextlib
import ipaddress
import secrets
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server on a host."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def new_token() -> str:
    """Return a random token for an address."""
    return secrets.token_urlsafe(16)


def refusal(host_header: str, origin: str | None, served_host: str) -> str:
    """Return why a request is refused, or an empty string if it is not.

    Args:
        host_header: Host of the request.
        origin: Origin of the request, if it has one.
        served_host: host that the server was started on. If it stands for all addresses of this machine, every
            numeric address is accepted: those cannot be rebound.
    """
    name, served_host = _host_name(host_header), served_host.lower()  # browsers write names in lower case
    if not (is_loopback(name) or name == served_host or (_is_wildcard(served_host) and _is_address(name))):
        return f"expected the host {served_host}, got {host_header!r:.80}; open the address that play printed"
    if origin is not None and _host_of(origin) != host_header:
        return f"expected a page of {host_header}, got one of {origin!r:.80}"
    return ""


def same_token(given: str, expected: str) -> bool:
    """Compare two tokens in constant time."""
    return secrets.compare_digest(given.encode(), expected.encode())


def _host_of(origin: str) -> str:
    """Return the host and port of an origin, empty if it has none."""
    with contextlib.suppress(ValueError):
        return urlsplit(origin).netloc
    return ""


def _host_name(host_header: str) -> str:
    with contextlib.suppress(ValueError):
        return urlsplit(f"//{host_header}").hostname or ""
    return ""


def _is_address(name: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(name))
    return False


def _is_wildcard(host: str) -> bool:
    return host in ("0.0.0.0", "::", "")
