"""Messages between the page and the server: JSON there, JSON and pictures back."""

import base64
import binascii
import io
import json
import struct
from typing import Any

import numpy as np
from PIL import Image

from worldmodel.player.sessions import Start
from worldmodel.player.view import View

MAX_MESSAGE_BYTES = 1 << 23  # a PNG of MAX_PICTURE_SIDE in base64 is smaller
MAX_PICTURE_SIDE = 1024  # pixels


def pack(header: dict[str, Any], *pictures: np.ndarray) -> bytes:
    """Return the length of the header as four bytes (big endian), the header as JSON, and the pictures as PNG.

    Args:
        header: plain values; ``pictures``, the sizes of the PNG files in bytes, is added.
        pictures: frames (H, W, 3) uint8.
    """
    files = [_png(picture) for picture in pictures]
    text = json.dumps({**header, "pictures": [len(file) for file in files]}).encode()
    return b"".join([struct.pack(">I", len(text)), text, *files])


def unpack(message: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return the header and the pictures of a packed message."""
    (length,), rest = struct.unpack(">I", message[:4]), message[4:]
    header, rest = json.loads(rest[:length]), rest[length:]
    pictures = []
    for size in header["pictures"]:
        pictures.append(np.array(Image.open(io.BytesIO(rest[:size]))))
        rest = rest[size:]
    return header, pictures


def pack_view(view: View, **header: Any) -> bytes:
    """Return a view as a message, with the real frame as its second picture if there is one."""
    numbers = {name: value for name, value in view._asdict().items() if name not in ("frame", "truth")}
    pictures = [view.frame] if view.truth is None else [view.frame, view.truth]
    return pack({"status": 200, **numbers, **header}, *pictures)


def parse(message: str | bytes) -> dict[str, Any]:
    """Return a request of the page.

    Raises:
        ValueError: if it is not a JSON object.
    """
    try:
        request = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a message must be a JSON object, got {message[:80]!r}") from error
    if not isinstance(request, dict):
        raise ValueError(f"a message must be a JSON object, got {message[:80]!r}")
    return request


def parse_start(request: dict[str, Any]) -> Start:
    """Return how the page wants to start.

    Raises:
        ValueError: if a setting is out of range, or the picture is no PNG.
    """
    picture = request.get("picture")
    return Start(
        seed=request.get("seed", 0),
        temperature=request.get("temperature", 1.0),
        clip=request.get("clip"),
        picture=None if picture is None else _read_picture(picture),
    )


def _read_picture(text: Any) -> np.ndarray:
    """Return a PNG in base64 as (H, W, 3) uint8."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as image:
            if max(image.size) > MAX_PICTURE_SIDE:  # known before it is decoded
                raise ValueError(f"{image.size[0]}×{image.size[1]} pixels are too many")
            return np.array(image.convert("RGB"))
    except (ValueError, TypeError, OSError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
        raise ValueError(
            f"the picture must be a PNG in base64, of {MAX_PICTURE_SIDE} pixels or less: {error}"
        ) from error


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1)
    return file.getvalue()
