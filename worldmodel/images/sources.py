"""Images in arrays and in episode stores, subsets of images, and scaled images; for folders see folders.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from worldmodel.episodes.store import Entry, EpisodeStore
from worldmodel.images import array_files
from worldmodel.splits import locate

LAYOUTS = (
    "put there CIFAR-10's own files (data_batch_1 to data_batch_5, test_batch, batches.meta, or .npz of those names "
    "with images and labels), one such .npz, SVHN's train_32x32.mat and test_32x32.mat, a folder of images or of "
    "class folders of images, optionally in train and val, a store of episodes, or a folder of stores"
)


class ImageSource(Protocol):
    """Images of one shape, indexed from 0."""

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 class of each image; 0 where there are no classes."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at these indices, (n, H, W, 3) uint8."""
        ...


class ArrayImages:
    """Images from array files (:mod:`worldmodel.images.array_files`), held in memory.

    Pickled, for another process, they are only the names of the files.

    Raises:
        ValueError: if a file is damaged or not of a known kind; the message names the file.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.images, labels = array_files.load_arrays(self.paths)
        self.labels = np.zeros(len(self.images), np.int64) if labels is None else labels
        self.classes = array_files.class_names(self.paths[0], labels)

    def __reduce__(self) -> tuple:
        return ArrayImages, (self.paths,)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at these indices, (n, H, W, 3) uint8."""
        return self.images[indices]


class FrameImages:
    """The frames of some episodes; the frames of each store form a class.

    Args:
        parts: stores, each with the episodes of it to use.
    """

    def __init__(self, parts: Sequence[tuple[EpisodeStore, list[Entry]]]) -> None:
        self.parts = parts
        self._episodes = [(store, entry) for store, entries in parts for entry in entries]
        self._lengths = np.array([entry.observations for _, entry in self._episodes])
        counts = [sum(entry.observations for entry in entries) for _, entries in parts]
        self.labels = np.repeat(np.arange(len(parts)), counts)  # (N,) int64, the store that each frame is in

    def __len__(self) -> int:
        return int(self._lengths.sum())

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the frames at these indices, (n, *shape)."""
        frames = []
        for episode, start in zip(*locate(self._lengths, indices), strict=True):
            store, entry = self._episodes[episode]
            frames.append(store.observations(entry.number, int(start), 1)[0])
        return np.stack(frames)


class ImageSubset:
    """The images at some indices of another source."""

    def __init__(self, images: ImageSource, indices: np.ndarray) -> None:
        self.images, self.indices, self.labels = images, indices, images.labels[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at these indices, (n, H, W, 3) uint8."""
        return self.images.read(self.indices[indices])


class ScaledImages:
    """The images of another source, center-cropped and scaled to (size, size, 3)."""

    def __init__(self, images: ImageSource, size: int) -> None:
        self.images, self.size = images, size

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 labels of the other source."""
        return self.images.labels

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at these indices, (n, size, size, 3) uint8."""
        images = map(Image.fromarray, self.images.read(indices))
        return np.stack([np.asarray(center_crop(image, self.size)) for image in images])


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Return the largest centered square of an image, scaled to size×size with an antialiasing filter."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
