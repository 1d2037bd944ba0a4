"""A set of pictures, whatever it lies in: what is learnt from, what is held out, and batches of it."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.data import arrays
from worldmodel.data.pictures import ArrayPictures, FilePictures, FramePictures, Pictures, ScaledPictures, SomePictures
from worldmodel.data.store import EpisodeStore
from worldmodel.data.windows import HELD_OUT_EVERY, draw, split

LAYOUTS = (
    "put there CIFAR-10's own files (data_batch_1 to data_batch_5, test_batch, batches.meta, or .npz of those names "
    "with images and labels), one such .npz, SVHN's train_32x32.mat and test_32x32.mat, a folder of pictures or of "
    "class folders of pictures, maybe in train and val, a store of episodes, or a folder of stores"
)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
UNPACKED = "cifar-10-batches-py"  # the folder in CIFAR-10's archive


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
    of their names, and of a store the episodes of :func:`worldmodel.data.windows.split`. Pictures of greys become
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
    files = arrays.find(source)
    if files[0]:
        learnt, held_out, classes, facts = *_of_arrays(*files), {}
    elif stores := _stores(source):
        learnt, held_out, classes, facts = _of_stores(source, stores)
    else:
        learnt, held_out, classes, facts = *_of_files(source, size), {}
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

    ``batches(n, rank, workers)`` is the part (B / workers, …) of it that worker number ``rank`` learns from.
    """

    def __init__(self, pictures: Pictures, size: int, seed: int) -> None:
        self.pictures, self.size, self.seed = pictures, size, seed

    def __call__(self, number: int, rank: int = 0, workers: int = 1) -> Tensor:
        return torch.from_numpy(self.pictures.read(self.draw(number, rank, workers)))

    def draw(self, number: int, rank: int = 0, workers: int = 1) -> np.ndarray:
        """The numbers of the pictures in such a batch, (B / workers,)."""
        return draw(len(self.pictures), self.size, self.seed, number, rank, workers)


def _of_arrays(learnt: list[Path], held_out: list[Path]) -> tuple[Pictures, Pictures, tuple[str, ...]]:
    pictures = ArrayPictures(learnt)
    if not held_out:
        return *_parted(pictures, learnt[0]), pictures.classes
    tests = ArrayPictures(held_out)
    if int(tests.labels.max()) >= max(1, len(pictures.classes)):
        raise ValueError(f"{held_out[0]} has the class {tests.labels.max()}, which {learnt[0].name} has not")
    return pictures, tests, pictures.classes


def _of_stores(source: Path, stores: list[EpisodeStore]) -> tuple[Pictures, Pictures, tuple[str, ...], dict[str, Any]]:
    for store in stores:
        schema = store.schema
        if schema.observation_dtype != "uint8" or schema.observation_shape[2:] != (3,):
            raise ValueError(
                f"{store.path} must hold frames (H, W, 3) uint8, it holds {schema.observation_dtype} "
                f"{schema.observation_shape}"
            )
        if schema.observation_shape != stores[0].schema.observation_shape:
            raise ValueError(
                f"{store.path} holds frames {schema.observation_shape} and {stores[0].path.name} "
                f"{stores[0].schema.observation_shape}; the stores of a folder must agree"
            )
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


def _of_files(source: Path, size: int) -> tuple[Pictures, Pictures, tuple[str, ...]]:
    own = next((name for name in ("val", "test") if (source / name).is_dir()), "")
    if own and (source / "train").is_dir():
        names, classes = _listed(source / "train")
        tests, found = _listed(source / own)
        if unknown := set(found) - set(classes):
            raise ValueError(
                f"{source / own} has classes that {source / 'train'} has not: {', '.join(sorted(unknown))}"
            )
        if classes and not found:
            raise ValueError(
                f"{source / own} has no class folders as {source / 'train'} has; sort its pictures into some"
            )
        return (
            _files(source / "train", names, classes, size),
            _files(source / own, tests, classes, size),
            classes,
        )
    names, classes = _listed(source)
    return *_parted(_files(source, names, classes, size), source), classes


def _listed(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    """The names of all pictures in a folder, in order, and of the class folders that they are in."""
    names = []
    for place, inner, files in os.walk(folder, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        at = os.path.relpath(place, folder)
        kept = [name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
        names += [os.path.normpath(os.path.join(at, name)) for name in kept]
    if not names:
        raise ValueError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}); {LAYOUTS}")
    names.sort()
    classes = sorted({name.split(os.sep)[0] for name in names if os.sep in name})
    if classes and any(os.sep not in name for name in names):
        raise ValueError(f"{folder} holds pictures beside folders of pictures ({classes[0]}); move either away")
    return names, tuple(classes)


def _files(folder: Path, names: Sequence[str], classes: tuple[str, ...], size: int) -> FilePictures:
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[name.split(os.sep)[0]] if classes else 0 for name in names], np.int64)
    return FilePictures(folder, names, labels, size)


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
