"""The evaluation as one HTML file that needs no other."""

import base64
from importlib import resources
from pathlib import Path

import imageio.v3 as iio
import jinja2
import numpy as np

from worldmodel.data.store import write_atomically


def write(path: Path, **parts: object) -> None:
    """Fill ``page.html`` beside this file with the parts of an evaluation and write it to ``path``."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["inline"] = inline
    template = environment.from_string(resources.files(__package__).joinpath("page.html").read_text())
    write_atomically(path, template.render(**parts).encode())


def inline(picture: np.ndarray) -> str:
    """A picture (H, W, 3) uint8 as a data URL."""
    return "data:image/png;base64," + base64.b64encode(iio.imwrite("<bytes>", picture, extension=".png")).decode()
