"""A set of pictures, whatever it lies in: what is learnt from, what is held out, and batches of it."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.episodes.segments import HELD_OUT_EVERY, draw, split
from worldmodel.episodes.store import EpisodeStore
from worldmodel.images import array_files, folders
from worldmodel.images.pictures import (
    LAYOUTS,
    ArrayPictures,
    FramePictures,
    Pictures,
    ScaledPictures,
    SomePictures,
)

UNPACKED = "cifar-10-batches-py"  # the folder in CIFAR-10's archive

Parts = tuple[Pictures, Pictures | None, tuple[str, ...], dict[str, Any]]  # None where nothing is set apart for tests


@dataclass(frozen=True)
class Images:
    """A set of pictures in two parts.

    Attributes:
        learnt: what to learn from.
        held_out: what to measure on.
        classes: what labels 0, 1, … are called; empty where there are none.
        shape: (H, W, 3) of a picture.
        facts: what else is known of them: the schemas of the stores that frames come from.
    """

    learnt: Pictures
    held_out: Pictures
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    facts: dict[str, Any] = field(default_factory=dict)


def open_images(source: str | Path, size: int = 0) -> Images:
    """The pictures at ``source``, a file or folder of any of the kinds that LAYOUTS names.

    A set with a test part of its own, test or val, holds that out; of others it is every tenth picture in the order
    of their names, and of a store the episodes of :func:`worldmodel.episodes.segments.split`. Pictures of greys become
    RGB. A folder of stores has a class for each, and one of class folders for each of those.

    Args:
        size: cut out the largest square in the middle of each picture and scale it to size×size, antialiased; 0
            leaves them as they are, which must then be of one size.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is of no such kind, or a file of it is not what it should be; the message names the file.
    """
    source = Path(source).absolute()
    if size < 0:
        raise ValueError(f"--size must be 0 or more, got {size}")
    if not source.exists():
        raise FileNotFoundError(f"there is nothing at {source}; nothing is downloaded: {LAYOUTS}")
    source = source / UNPACKED if (source / UNPACKED).is_dir() else source
    files, stores = array_files.find(source), _stores(source)
    if files[0]:
        learnt, held_out, classes, facts = _of_arrays(*files)
    elif stores:
        learnt, held_out, classes, facts = _of_stores(source, stores)
    else:
        learnt, held_out, classes, facts = *folders.open_folders(*folders.find(source), size), {}
    if held_out is None:
        learnt, held_out = _parted(learnt, source)
    learnt, held_out = (_scaled(part, size) for part in (learnt, held_out))
    shapes = [part.read(np.arange(1)).shape[1:] for part in (learnt, held_out)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{source} holds out pictures of {shapes[1]} and has others of {shapes[0]}; give a --size")
    return Images(learnt, held_out, classes, shapes[0], facts)


def given(store: str, images: str, size: int = 0) -> Images:
    """The pictures that a program's --store or --images names.

    Raises:
        ValueError: unless it is one of them.
    """
    if bool(store) == bool(images):
        raise ValueError(f"give either --store or --images, got {store!r} and {images!r}")
    if store:
        EpisodeStore(store)  # which says what is wrong with it
    return open_images(store or images, size)


def describe(pictures: Images) -> dict[str, Any]:
    """What a run's config.yaml says of the pictures it learnt from."""
    return {
        "shape": pictures.shape,
        "classes": pictures.classes,
        "learnt": len(pictures.learnt),
        "held_out": len(pictures.held_out),
        **pictures.facts,
    }


class PictureBatches:
    """Random pictures: ``batches(n)`` is a batch of (B, H, W, 3) uint8, the same for the same seed and n.

    ``batches(n, rank, workers)`` is the part (B / workers, …) of it that worker number ``rank`` learns from. With
    ``mirror``, half of them, chosen by chance, are flipped left to right.
    """

    def __init__(self, pictures: Pictures, size: int, seed: int, mirror: bool = False) -> None:
        self.pictures, self.size, self.seed, self.mirror = pictures, size, seed, mirror

    def __call__(self, number: int, rank: int = 0, workers: int = 1) -> Tensor:
        batch = torch.from_numpy(self.pictures.read(self.draw(number, rank, workers)))
        if not self.mirror:
            return batch
        flipped = np.random.default_rng([self.seed, 1, number]).random(self.size) < 0.5
        mine = torch.from_numpy(np.split(flipped, workers)[rank])
        return torch.where(mine[:, None, None, None], batch.flip(2), batch)

    def draw(self, number: int, rank: int = 0, workers: int = 1) -> np.ndarray:
        """The numbers of the pictures in such a batch, (B / workers,)."""
        return draw(len(self.pictures), self.size, self.seed, number, rank, workers)


def _of_arrays(learnt: list[Path], held_out: list[Path]) -> Parts:
    pictures, tests = ArrayPictures(learnt), ArrayPictures(held_out) if held_out else None
    classes = pictures.classes
    for path, part in ((learnt[0], pictures), *([(held_out[0], tests)] if tests else [])):
        if bool(part.classes) != bool(classes) or part.labels.max() >= max(1, len(classes)):
            raise ValueError(
                f"{path} has labels up to {part.labels.max()} of {len(part.classes)} classes, and "
                f"{learnt[0].name} has {len(classes)}"
            )
    return pictures, tests, classes, {}


def _of_stores(source: Path, stores: list[EpisodeStore]) -> Parts:
    first = stores[0].schema.observation_shape
    for store in stores:
        shape, dtype = store.schema.observation_shape, store.schema.observation_dtype
        if dtype != "uint8" or shape[2:] != (3,):
            raise ValueError(f"{store.path} must hold frames (H, W, 3) uint8, it holds {dtype} {shape}")
        if shape != first:
            raise ValueError(f"{store.path} holds frames {shape} and {stores[0].path.name} {first}; they must agree")
    parts = [split(store) for store in stores]
    learnt, held_out = (FramePictures([(s, p[i]) for s, p in zip(stores, parts, strict=True)]) for i in (0, 1))
    if stores[0].path == source:
        return learnt, held_out, (), asdict(stores[0].schema)
    facts = {store.path.name: asdict(store.schema) for store in stores}
    return learnt, held_out, tuple(facts), {"stores": facts}


def _stores(source: Path) -> list[EpisodeStore]:
    """The store in a folder, or those in the folders of it."""
    if (source / "store.json").is_file():
        return [EpisodeStore(source)]
    return [EpisodeStore(path.parent) for path in sorted(source.glob("*/store.json"))]


def _parted(pictures: Pictures, source: Path) -> tuple[Pictures, Pictures]:
    """Every tenth picture is held out, or the last if there are fewer."""
    if len(pictures) < 2:
        raise ValueError(f"{source} must hold two pictures or more, one to hold out, it holds {len(pictures)}")
    numbers = np.arange(len(pictures))
    held_out = numbers % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    held_out[-1] |= not held_out.any()
    return SomePictures(pictures, numbers[~held_out]), SomePictures(pictures, numbers[held_out])


def _scaled(pictures: Pictures, size: int) -> Pictures:
    there = pictures.read(np.arange(1)).shape[1:3]
    return ScaledPictures(pictures, size) if size and there != (size, size) else pictures
