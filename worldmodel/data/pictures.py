"""Pictures wherever they lie: in arrays, in files of their own, in episode stores; read when they are asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from worldmodel.data import arrays
from worldmodel.data.store import Entry, EpisodeStore

COLOURS = ("RGB", "RGBA", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr")  # Pillow's modes of eight bits or fewer


class Pictures(Protocol):
    """Pictures of one shape, numbered from 0.

    Attributes:
        labels: (N,) int64, the class of each; 0 where there are no classes.
    """

    labels: np.ndarray

    def __len__(self) -> int:
        """How many there are."""

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The pictures of these numbers, (n, H, W, 3) uint8."""


class ArrayPictures:
    """The pictures of files of arrays (:mod:`worldmodel.data.arrays`), in memory.

    Pickled, for another process, they are the names of the files.

    Raises:
        ValueError: naming the file that is not what it should be.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.images, labels = arrays.read(self.paths)
        self.labels = np.zeros(len(self.images), np.int64) if labels is None else labels
        self.classes = arrays.classes(self.paths[0], labels)

    def __reduce__(self) -> tuple:
        return ArrayPictures, (self.paths,)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The pictures of these numbers, (n, H, W, 3) uint8."""
        return self.images[indices]


class FilePictures:
    """A picture file each, by Pillow's rules. Greyscale and palettes become RGB, transparency is left out.

    Args:
        folder: where they are.
        names: of the files, in it.
        labels: (N,) int64.
        size: cut out the middle and scale it to this side; 0 leaves them, and they must be of one size.
    """

    def __init__(self, folder: Path, names: Sequence[str], labels: np.ndarray, size: int = 0) -> None:
        self.folder, self.names, self.labels, self.size = folder, names, labels, size

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The pictures of these numbers, (n, H, W, 3) uint8.

        Raises:
            ValueError: naming a file that is no picture, or is of another size than the rest.
        """
        found = [load(self.folder / self.names[index], self.size) for index in indices]
        for index, picture in zip(indices, found, strict=True):
            if picture.shape != found[0].shape:
                raise ValueError(
                    f"{self.folder / self.names[index]} is {picture.shape[1]}×{picture.shape[0]} and "
                    f"{self.names[indices[0]]} {found[0].shape[1]}×{found[0].shape[0]}; give them one --size"
                )
        return np.stack(found)


class FramePictures:
    """The frames of some episodes; those of each store are a class.

    Args:
        parts: stores, and which of their episodes.
    """

    def __init__(self, parts: Sequence[tuple[EpisodeStore, list[Entry]]]) -> None:
        self._episodes = [(store, entry) for store, entries in parts for entry in entries]
        lengths = [entry.observations for _, entry in self._episodes]
        self._ends = np.cumsum(lengths)
        self.labels = np.repeat(np.repeat(np.arange(len(parts)), [len(entries) for _, entries in parts]), lengths)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The frames of these numbers, (n, *shape)."""
        frames = []
        for position in indices:
            which = int(np.searchsorted(self._ends, position, side="right"))
            store, entry = self._episodes[which]
            start = int(position - self._ends[which] + entry.observations)
            frames.append(store.observations(entry.number, start, 1)[0])
        return np.stack(frames)


class SomePictures:
    """The pictures of certain numbers among others."""

    def __init__(self, pictures: Pictures, chosen: np.ndarray) -> None:
        self.pictures, self.chosen, self.labels = pictures, chosen, pictures.labels[chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The pictures of these numbers, (n, H, W, 3) uint8."""
        return self.pictures.read(self.chosen[indices])


class ScaledPictures:
    """The middle of other pictures, scaled to (size, size, 3)."""

    def __init__(self, pictures: Pictures, size: int) -> None:
        self.pictures, self.size, self.labels = pictures, size, pictures.labels

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The pictures of these numbers, (n, size, size, 3) uint8."""
        return np.stack([np.asarray(square(Image.fromarray(one), self.size)) for one in self.pictures.read(indices)])


def load(path: Path, size: int = 0) -> np.ndarray:
    """One picture file as (H, W, 3) uint8, upright; with a size, its middle as (size, size, 3).

    Raises:
        ValueError: naming the file, if it is no picture of eight bits a channel, or damaged.
    """
    try:
        with Image.open(path) as picture:
            if size:
                picture.draft("RGB", (2 * size, 2 * size))  # a JPEG is read at a fraction of its size
            if picture.mode not in COLOURS:
                raise ValueError(f"its mode is {picture.mode}, expected one of {', '.join(COLOURS)}")
            upright = ImageOps.exif_transpose(picture)
            rgb = (upright.convert("RGBA") if upright.mode in ("P", "PA") else upright).convert("RGB")
            return np.asarray(square(rgb, size) if size else rgb)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # as Pillow raises them
        raise ValueError(f"{path} cannot be read as a picture: {error}; repair or remove it") from error


def square(picture: Image.Image, size: int) -> Image.Image:
    """The largest square in the middle of a picture, scaled to size×size with an antialiasing filter."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
