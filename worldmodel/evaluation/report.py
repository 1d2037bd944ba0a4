"""The evaluation as one HTML file that needs no other."""

import base64
import json
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import jinja2
import numpy as np

from worldmodel import media
from worldmodel.files import write_atomically


@dataclass
class Report:
    """What was measured so far; a part of the page appears if its scores are there.

    Attributes:
        title: of the page.
        scores: numbers, by part.
        plots: SVG elements.
        pictures: (H, W, 3) uint8.
    """

    title: str
    scores: dict[str, Any]
    plots: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write scores.json, index.html and the pictures."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "scores.json", (json.dumps(self.scores, indent=2, allow_nan=False) + "\n").encode())
        for name, picture in self.pictures.items():
            media.write(folder / f"{name}.png", picture[None], scale=1)
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
        environment.filters["inline"] = inline
        template = environment.from_string(resources.files(__package__).joinpath("page.html").read_text("utf-8"))
        parts = {"title": self.title, "scores": self.scores, "plots": self.plots, "pictures": self.pictures}
        write_atomically(folder / "index.html", template.render(**parts).encode())


def inline(picture: np.ndarray) -> str:
    """A picture (H, W, 3) uint8 as a data URL."""
    return "data:image/png;base64," + base64.b64encode(iio.imwrite("<bytes>", picture, extension=".png")).decode()
