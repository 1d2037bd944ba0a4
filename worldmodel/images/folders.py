"""Folders of image files, which are read on demand."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from worldmodel.images.sources import LAYOUTS, center_crop

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
COLOR_MODES = ("RGB", "RGBA", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr")  # Pillow's modes of eight bits or fewer


class FileImages:
    """Images in files of their own. Gray images and palettes become RGB; transparency is ignored.

    Args:
        folder: folder of the files.
        names: file names in the folder.
        labels: (N,) int64.
        size: side to which the center of each image is scaled; 0 leaves the images as they are, which must be of one
            size.

    Raises:
        ValueError: if ``size`` is 0 and a file has another size than the first; the message names the file.
    """

    def __init__(self, folder: Path, names: Sequence[str], labels: np.ndarray, size: int = 0) -> None:
        self.folder, self.names, self.labels, self.size = folder, names, labels, size
        first = None
        for name in () if size else names:
            with _open_image(folder / name) as image:
                first = first or image.size
                if image.size != first:
                    sizes = f"it has {_describe_size(image.size)} and {names[0]} {_describe_size(first)}"
                    raise ValueError(f"{sizes}; give a --size")

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at these indices, (n, H, W, 3) uint8; raises as :func:`load_image` does."""
        return np.stack([load_image(self.folder / self.names[int(index)], self.size) for index in indices])


def find_splits(source: Path) -> tuple[Path, Path | None]:
    """Return the training folder, ``source`` or its ``train``, and the held-out folder, or None.

    The latter is the first of ``val``, ``valid``, ``validation`` and ``test`` beside ``train``.
    """
    if not (source / "train").is_dir():
        return source, None
    others = (source / name for name in ("val", "valid", "validation", "test"))
    return source / "train", next((folder for folder in others if folder.is_dir()), None)


def open_folders(
    train: Path, held_out: Path | None, size: int
) -> tuple[FileImages, FileImages | None, tuple[str, ...]]:
    """Return the images of one or two folders, and their classes, which are the names of the subfolders.

    Raises:
        ValueError: if a folder holds no images, or the folders have different classes.
    """
    names, classes = _list_images(train)
    images = FileImages(train, names, _class_labels(names, classes), size)
    if held_out is None:
        return images, None, classes
    names, found = _list_images(held_out)
    if extra := sorted(set(found) - set(classes)):
        raise ValueError(f"{held_out} has classes that {train} does not have: {', '.join(extra)}")
    if classes and not found:
        raise ValueError(f"{held_out} must have class folders, as {train} has; sort its images into class folders")
    return images, FileImages(held_out, names, _class_labels(names, classes), size), classes


def _list_images(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    """Return the sorted names of all images under a folder, and its class folders."""
    names = []
    for path, subfolders, files in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        prefix = "" if path == os.fspath(folder) else os.path.relpath(path, folder) + os.sep
        kept = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")]
        names += [prefix + name for name in kept]
    if not names:
        raise ValueError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}); {LAYOUTS}")
    names.sort()
    classes = sorted({name.split(os.sep)[0] for name in names if os.sep in name})
    if classes and any(os.sep not in name for name in names):
        raise ValueError(f"{folder} holds both images and folders of images ({classes[0]}); move one of them away")
    return names, tuple(classes)


def _class_labels(names: list[str], classes: tuple[str, ...]) -> np.ndarray:
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([numbers[name.split(os.sep)[0]] if classes else 0 for name in names], np.int64)


def load_image(path: Path, size: int = 0) -> np.ndarray:
    """Load an image file as (H, W, 3) uint8, or with a size its center as (size, size, 3).

    Raises:
        ValueError: if the file is damaged or not an image of eight bits per channel; the message names the file.
    """
    with _open_image(path) as image:
        if size:
            image.draft("RGB", (2 * size, 2 * size))  # a JPEG is decoded at a fraction of its size
        if image.mode not in COLOR_MODES:
            raise ValueError(f"its mode is {image.mode}, expected one of {', '.join(COLOR_MODES)}")
        rgb = (image.convert("RGBA") if image.mode in ("P", "PA") else image).convert("RGB")
        return np.asarray(center_crop(rgb, size) if size else rgb)


@contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # damage can make Pillow raise anything
        raise ValueError(f"cannot use the image {path}: {error}") from error


def _describe_size(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]} pixels"
