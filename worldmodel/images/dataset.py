"""Image data sets in any supported layout: their training and held-out images, and random batches."""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.episodes.segments import split_held_out
from worldmodel.episodes.store import EpisodeStore
from worldmodel.images import array_files, folders
from worldmodel.images.sources import LAYOUTS, ArrayImages, FrameImages, ImageSource, ImageSubset, ScaledImages
from worldmodel.splits import batch_indices, evenly_spaced, is_held_out

CIFAR10_FOLDER = "cifar-10-batches-py"  # the folder in CIFAR-10's archive
VARIANCE_IMAGES = 512

# training images, held-out images (None if the data set defines no such part), classes, facts
Splits = tuple[ImageSource, ImageSource | None, tuple[str, ...], dict[str, Any]]


@dataclass(frozen=True)
class ImageDataset:
    """An image data set in two parts.

    Attributes:
        train: images to train on.
        held_out: images to evaluate on.
        classes: names of labels 0, 1, …; empty if there are no classes.
        shape: (H, W, 3) of each image.
        facts: schemas of the stores, if the images are frames of episodes.
    """

    train: ImageSource
    held_out: ImageSource
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    facts: dict[str, Any] = field(default_factory=dict)


def open_images(source: str | Path, size: int = 0) -> ImageDataset:
    """Open the images at ``source``, a file or folder in any layout that LAYOUTS names.

    The held-out part is the data set's own test or val part if it has one, else every tenth image in the order of file
    names, or for stores the episodes of :func:`worldmodel.episodes.segments.split_held_out`. Gray images become RGB.
    Each store in a folder of stores is a class, as is each folder in a folder of class folders.

    Args:
        size: side to which the largest centered square of each image is scaled, antialiased; 0 leaves the images as
            they are, which must then be of one size.

    Raises:
        FileNotFoundError: if the path does not exist.
        ValueError: if the layout is unknown, or a file is damaged or invalid; the message names the file.
    """
    source = Path(source).absolute()
    if size < 0:
        raise ValueError(f"--size must be 0 or more, got {size}")
    if not source.exists():
        raise FileNotFoundError(f"there is nothing at {source}; nothing is downloaded: {LAYOUTS}")
    source = source / CIFAR10_FOLDER if (source / CIFAR10_FOLDER).is_dir() else source
    files, stores = array_files.find_splits(source), _find_stores(source)
    if files[0]:
        train, held_out, classes, facts = _open_arrays(*files)
    elif stores:
        train, held_out, classes, facts = _open_stores(source, stores)
    else:
        train, held_out, classes, facts = *folders.open_folders(*folders.find_splits(source), size), {}
    if held_out is None:
        train, held_out = _hold_out(train, source)
    train, held_out = _scale(train, size), _scale(held_out, size)
    shapes = [part.read(np.arange(1)).shape[1:] for part in (train, held_out)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{source} has held-out images of {shapes[1]} and others of {shapes[0]}; give a --size")
    return ImageDataset(train, held_out, classes, shapes[0], facts)


def open_store_or_images(store: str, images: str, size: int = 0) -> ImageDataset:
    """Open the images of a program's --store or --images argument.

    Raises:
        ValueError: unless exactly one of them is given.
    """
    if bool(store) == bool(images):
        raise ValueError(f"give either --store or --images, got {store!r} and {images!r}")
    if store:
        EpisodeStore(store)  # raises an error if it is not a store
    return open_images(store or images, size)


def read_evenly(images: ImageSource, count: int) -> Tensor:
    """Read at most ``count`` evenly spaced images, (count, H, W, 3) uint8."""
    return torch.from_numpy(images.read(evenly_spaced(len(images), count)))


def measure_variance(images: ImageSource) -> float:
    """Return the variance of pixels in [0, 1], over VARIANCE_IMAGES evenly spaced images or all if there are fewer."""
    return float((read_evenly(images, VARIANCE_IMAGES).numpy() / 255).var())


def dataset_facts(dataset: ImageDataset) -> dict[str, Any]:
    """Return what a run's config.yaml records about its data set."""
    return {
        "shape": dataset.shape,
        "classes": dataset.classes,
        "num_train": len(dataset.train),
        "num_held_out": len(dataset.held_out),
        **dataset.facts,
    }


class ImageBatches:
    """Random batches: ``batches(step)`` is (B, H, W, 3) uint8 and depends on the seed and the step alone.

    ``batches(step, rank, world_size)`` is the part (B / world_size, …) of it for one of several workers. With
    ``mirror``, half of the images, at random, are flipped left to right.
    """

    def __init__(self, images: ImageSource, batch_size: int, seed: int, mirror: bool = False) -> None:
        self.images, self.batch_size, self.seed, self.mirror = images, batch_size, seed, mirror

    def __call__(self, step: int, rank: int = 0, world_size: int = 1) -> Tensor:
        batch = torch.from_numpy(self.images.read(self.sample_indices(step, rank, world_size)))
        if not self.mirror:
            return batch
        flipped = np.random.default_rng([self.seed, 1, step]).random(self.batch_size) < 0.5
        mine = torch.from_numpy(np.split(flipped, world_size)[rank])
        return torch.where(mine[:, None, None, None], batch.flip(2), batch)

    def sample_indices(self, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Return the indices of the images in such a batch, (B / world_size,)."""
        return batch_indices(len(self.images), self.batch_size, self.seed, step, rank, world_size)


def _open_arrays(train_paths: list[Path], held_out_paths: list[Path]) -> Splits:
    train, held_out = ArrayImages(train_paths), ArrayImages(held_out_paths) if held_out_paths else None
    classes = train.classes
    for path, part in ((train_paths[0], train), *([(held_out_paths[0], held_out)] if held_out else [])):
        if bool(part.classes) != bool(classes) or part.labels.max() >= max(1, len(classes)):
            raise ValueError(
                f"{path} has labels up to {part.labels.max()} of {len(part.classes)} classes, and "
                f"{train_paths[0].name} has {len(classes)}"
            )
    return train, held_out, classes, {}


def _open_stores(source: Path, stores: list[EpisodeStore]) -> Splits:
    first = stores[0].schema.observation_shape
    for store in stores:
        shape, dtype = store.schema.observation_shape, store.schema.observation_dtype
        if dtype != "uint8" or shape[2:] != (3,):
            raise ValueError(f"{store.path} must hold frames (H, W, 3) uint8, it holds {dtype} {shape}")
        if shape != first:
            raise ValueError(f"{store.path} holds frames {shape} and {stores[0].path.name} {first}; they must agree")
    parts = [split_held_out(store) for store in stores]
    train, held_out = (FrameImages([(s, p[i]) for s, p in zip(stores, parts, strict=True)]) for i in (0, 1))
    if stores[0].path == source:
        return train, held_out, (), asdict(stores[0].schema)
    facts = {store.path.name: asdict(store.schema) for store in stores}
    return train, held_out, tuple(facts), {"stores": facts}


def _find_stores(source: Path) -> list[EpisodeStore]:
    """Return the store in a folder, or the stores in its subfolders."""
    if (source / "store.json").is_file():
        return [EpisodeStore(source)]
    return [EpisodeStore(path.parent) for path in sorted(source.glob("*/store.json"))]


def _hold_out(images: ImageSource, source: Path) -> tuple[ImageSource, ImageSource]:
    if len(images) < 2:
        raise ValueError(f"{source} must hold two images or more, one to hold out, it holds {len(images)}")
    held_out = is_held_out(range(len(images)))
    if unseen := sorted(set(images.labels[held_out].tolist()) - set(images.labels[~held_out].tolist())):
        text = f"note: {source} has no image of class {unseen[0]} to train on, as every tenth is held out; shuffle them"
        print(text, file=sys.stderr)
    return ImageSubset(images, np.flatnonzero(~held_out)), ImageSubset(images, np.flatnonzero(held_out))


def _scale(images: ImageSource, size: int) -> ImageSource:
    own = images.read(np.arange(1)).shape[1:3]
    return ScaledImages(images, size) if size and own != (size, size) else images
