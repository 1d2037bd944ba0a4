"""Hooks of the documentation site: turn the roles of docstrings, such as :class:`Step`, into plain code."""

import re
from typing import Any

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):<code>~?([^<]+)</code>")


def on_page_content(html: str, **_: Any) -> str:
    """Return a page's HTML without the names of roles."""
    return ROLE.sub(r"<code>\1</code>", html)
