"""Error messages that suggest the nearest existing name."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return an error message with the unknown name, the known names, and the closest match if there is one."""
    known = list(known)
    close = get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {name!r}: expected one of {', '.join(known)}{hint}"
