"""Pictures in arrays and in episode stores, some of them, and scaled ones; those in folders are in folders.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from worldmodel.episodes.store import Entry, EpisodeStore
from worldmodel.images import array_files

LAYOUTS = (
    "put there CIFAR-10's own files (data_batch_1 to data_batch_5, test_batch, batches.meta, or .npz of those names "
    "with images and labels), one such .npz, SVHN's train_32x32.mat and test_32x32.mat, a folder of pictures or of "
    "class folders of pictures, maybe in train and val, a store of episodes, or a folder of stores"
)


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
    """The pictures of files of arrays (:mod:`worldmodel.images.array_files`), in memory.

    Pickled, for another process, they are the names of the files.

    Raises:
        ValueError: naming the file that is not what it should be.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.images, labels = array_files.read(self.paths)
        self.labels = np.zeros(len(self.images), np.int64) if labels is None else labels
        self.classes = array_files.classes(self.paths[0], labels)

    def __reduce__(self) -> tuple:
        return ArrayPictures, (self.paths,)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The pictures of these numbers, (n, H, W, 3) uint8."""
        return self.images[indices]


class FramePictures:
    """The frames of some episodes; those of each store are a class.

    Args:
        parts: stores, and which of their episodes.
    """

    def __init__(self, parts: Sequence[tuple[EpisodeStore, list[Entry]]]) -> None:
        self.parts = parts
        self._episodes = [(store, entry) for store, entries in parts for entry in entries]
        self._classes = np.repeat(np.arange(len(parts)), [len(entries) for _, entries in parts])
        self._ends = np.cumsum([entry.observations for _, entry in self._episodes])

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64, the number of the store that each frame is in."""
        return np.repeat(self._classes, np.diff(self._ends, prepend=0))

    def __len__(self) -> int:
        return int(self._ends[-1])

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
        self.pictures, self.size = pictures, size

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64, those of the other pictures."""
        return self.pictures.labels

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The pictures of these numbers, (n, size, size, 3) uint8."""
        return np.stack([np.asarray(square(Image.fromarray(one), self.size)) for one in self.pictures.read(indices)])


def square(picture: Image.Image, size: int) -> Image.Image:
    """The largest square in the middle of a picture, scaled to size×size with an antialiasing filter."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
