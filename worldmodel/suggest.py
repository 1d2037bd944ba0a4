"""What to say when somebody asks for a name that does not exist."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """An error message: the name, those that exist, and the nearest of them if one is near."""
    known = list(known)
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r}: expected one of {', '.join(known)}{hint}"
