"""The report of an evaluation: scores.json, PNG images, and a self-contained HTML page."""

import base64
import json
import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import jinja2
import numpy as np

from worldmodel import media
from worldmodel.evaluation.table import to_label
from worldmodel.files import write_atomically


@dataclass
class Report:
    """What has been measured so far; each section appears on the page once its scores are there.

    Attributes:
        title: title of the page.
        scores: numbers, by section.
        plots: SVG elements, by name.
        images: (H, W, 3) uint8, by name.
    """

    title: str
    scores: dict[str, Any]
    plots: dict[str, str] = field(default_factory=dict)
    images: dict[str, np.ndarray] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write scores.json, index.html and the images."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "scores.json", (json.dumps(self.scores, indent=2, allow_nan=False) + "\n").encode())
        for name, image in self.images.items():
            file_name = re.sub(r"[^\w-]", "_", name)  # the name of an action may hold a slash
            media.write(folder / f"{file_name}.png", image[None], scale=1)
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
        environment.filters |= {"data_url": to_data_url, "label": to_label}
        page = resources.files("worldmodel.evaluation") / "page.html"
        template = environment.from_string(page.read_text("utf-8"))
        parts = {"title": self.title, "scores": self.scores, "plots": self.plots, "images": self.images}
        write_atomically(folder / "index.html", template.render(**parts).encode())


def to_data_url(image: np.ndarray) -> str:
    """Return an image (H, W, 3) uint8 as a PNG data URL."""
    return "data:image/png;base64," + base64.b64encode(iio.imwrite("<bytes>", image, extension=".png")).decode()
