"""Folders of picture files, read when they are asked for."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from worldmodel.images.pictures import LAYOUTS, square

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
COLOURS = ("RGB", "RGBA", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr")  # Pillow's modes of eight bits or fewer


class FilePictures:
    """A picture in each file. Greys and palettes become RGB; transparency is left out.

    Args:
        folder: where they are.
        names: of the files, in it.
        labels: (N,) int64.
        size: cut out the middle and scale it to this side; 0 leaves them, and they must be of one size.

    Raises:
        ValueError: naming a file of another size than the first, where they are to be left.
    """

    def __init__(self, folder: Path, names: Sequence[str], labels: np.ndarray, size: int = 0) -> None:
        self.folder, self.names, self.labels, self.size = folder, names, labels, size
        first = None
        for name in () if size else names:
            with _opened(folder / name) as picture:
                first = first or picture.size
                if picture.size != first:
                    raise ValueError(f"it has {_pixels(picture.size)} and {names[0]} {_pixels(first)}; give a --size")

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The pictures of these numbers, (n, H, W, 3) uint8; raises as :func:`load` does."""
        return np.stack([load(self.folder / self.names[index], self.size) for index in indices])


def find(source: Path) -> tuple[Path, Path | None]:
    """The folder to learn from, source or its ``train``, and the one to hold out if there is one.

    That is the first of ``val``, ``valid``, ``validation`` and ``test`` beside ``train``.
    """
    if not (source / "train").is_dir():
        return source, None
    beside = (source / name for name in ("val", "valid", "validation", "test"))
    return source / "train", next((folder for folder in beside if folder.is_dir()), None)


def open_folders(
    learnt: Path, held_out: Path | None, size: int
) -> tuple[FilePictures, FilePictures | None, tuple[str, ...]]:
    """The pictures of two folders, or of one, and their classes: the names of the folders in them.

    Raises:
        ValueError: if one holds no pictures, or they have other classes.
    """
    names, classes = _listed(learnt)
    pictures = FilePictures(learnt, names, _labels(names, classes), size)
    if held_out is None:
        return pictures, None, classes
    names, found = _listed(held_out)
    if more := sorted(set(found) - set(classes)):
        raise ValueError(f"{held_out} has classes that {learnt} has not: {', '.join(more)}")
    if classes and not found:
        raise ValueError(f"{held_out} must have class folders, as {learnt} has; sort its pictures into some")
    return pictures, FilePictures(held_out, names, _labels(names, classes), size), classes


def _listed(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    """The names of all pictures in a folder, in order, and of the class folders that they are in."""
    names = []
    for place, inner, files in os.walk(folder, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        inside = "" if place == os.fspath(folder) else os.path.relpath(place, folder) + os.sep
        kept = [name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
        names += [inside + name for name in kept]
    if not names:
        raise ValueError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}); {LAYOUTS}")
    names.sort()
    classes = sorted({name.split(os.sep)[0] for name in names if os.sep in name})
    if classes and any(os.sep not in name for name in names):
        raise ValueError(f"{folder} holds pictures beside folders of pictures ({classes[0]}); move either away")
    return names, tuple(classes)


def _labels(names: list[str], classes: tuple[str, ...]) -> np.ndarray:
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([numbers[name.split(os.sep)[0]] if classes else 0 for name in names], np.int64)


def load(path: Path, size: int = 0) -> np.ndarray:
    """One picture file as (H, W, 3) uint8; with a size, its middle as (size, size, 3).

    Raises:
        ValueError: naming the file, if it is no picture of eight bits a channel, or damaged.
    """
    with _opened(path) as picture:
        if size:
            picture.draft("RGB", (2 * size, 2 * size))  # a JPEG is read at a fraction of its size
        if picture.mode not in COLOURS:
            raise ValueError(f"its mode is {picture.mode}, expected one of {', '.join(COLOURS)}")
        rgb = (picture.convert("RGBA") if picture.mode in ("P", "PA") else picture).convert("RGB")
        return np.asarray(square(rgb, size) if size else rgb)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as picture:
            yield picture
    except Exception as error:  # damage can make Pillow raise anything
        raise ValueError(f"cannot use the picture {path}: {error}") from error


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]} pixels"
