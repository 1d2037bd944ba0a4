"""Files that hold many small pictures as one array: CIFAR-10's pickles, .npz, and SVHN's .mat."""

import io
import pickle
import pickletools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.files import check_archive

SETS = (  # what is learnt from, and what is held out
    ("data_batch_[0-9]", "test_batch"),
    ("data_batch_[0-9].npz", "test_batch.npz"),
    ("train_32x32.mat", "test_32x32.mat"),
)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def find(source: Path) -> tuple[list[Path], list[Path]]:
    """The files of a set to learn from and those to hold out; both empty if a folder has none.

    A file is a set that holds out none. SVHN's extra_32x32.mat is left alone.
    """
    if source.is_file():
        return [source], []
    for learnt, held_out in SETS:
        if found := sorted(source.glob(learnt)):
            return found, sorted(source.glob(held_out))
    return [], []


def classes(path: Path, labels: np.ndarray | None) -> tuple[str, ...]:
    """What the classes of the set with this file are called; their numbers if that is not known, () if it has none."""
    if labels is None:
        return ()
    meta = path.with_name("batches.meta")
    if path.suffix == "" and meta.is_file():
        names = _unpickled(meta).get("label_names")
        if not isinstance(names, list) or len(names) != len(CIFAR10) or not all(isinstance(n, str) for n in names):
            raise ValueError(f"{meta} must hold label_names, a list of {len(CIFAR10)} names, got {names!r:.80}")
        return tuple(names)
    if path.name.startswith(("data_batch", "test_batch")):
        return CIFAR10
    digits = 10 if path.suffix == ".mat" else 0  # SVHN's, of which a part may lack one
    return tuple(map(str, range(max(digits, int(labels.max()) + 1))))


def read(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray | None]:
    """The pictures of several files together, (N, H, W, 3) uint8, and their labels (N,) int64, if they have any.

    Raises:
        ValueError: naming the file that is damaged or does not hold what it should.
    """
    parts = [_read(path) for path in paths]
    for path, (images, labels) in zip(paths, parts, strict=True):
        first = parts[0]
        if images.shape[1:] != first[0].shape[1:] or (labels is None) != (first[1] is None):
            raise ValueError(
                f"{path} holds {_described(images, labels)} and {paths[0].name} {_described(*first)}; "
                "the files of a set must agree"
            )
    together = np.concatenate([images for images, _ in parts])
    return together, None if parts[0][1] is None else np.concatenate([labels for _, labels in parts])


def _described(images: np.ndarray, labels: np.ndarray | None) -> str:
    return f"{images.shape[2]}×{images.shape[1]} pictures {'without' if labels is None else 'with'} labels"


def _read(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """One file."""
    reader = {"": _read_cifar, ".npz": _read_npz, ".mat": _read_mat}.get(path.suffix)
    if reader is None:
        raise ValueError(f"{path} must be a .npz or .mat file, one of CIFAR-10's, or a folder; unpack archives first")
    images, labels = reader(path)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,), (4,)):
        raise ValueError(f"{path} must hold images (N, H, W, 3) uint8, got {images.dtype} {images.shape}")
    if 0 in images.shape:
        raise ValueError(f"{path} holds no pictures: its images are {images.shape}")
    images = images.reshape(*images.shape[:3], -1)
    images = images.repeat(3, 3) if images.shape[3] == 1 else images[..., :3]
    if labels is None:
        return images, None
    labels = np.asarray(labels).reshape(-1)
    if len(labels) != len(images) or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError(
            f"{path} must hold a class of 0 or more for each of its {len(images)} pictures, "
            f"got {labels.dtype} {labels.shape} from {labels.min(initial=0)} on"
        )
    return images, labels.astype(np.int64)


def _read_cifar(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10's own layout: a row is 32×32 red values, then green, then blue."""
    values = _unpickled(path)
    rows, labels = values.get("data"), values.get("labels")
    if not isinstance(rows, _Array) or not isinstance(labels, list):
        raise ValueError(f"{path} must hold an array called data and a list called labels, as CIFAR-10's files do")
    rows = rows.bytes(path)
    if rows.shape[1:] != (3072,):
        raise ValueError(f"{path} must hold data (N, 3072) uint8, a 32×32 picture a row, got {rows.shape}")
    for label in labels:
        if not isinstance(label, int) or not 0 <= label < len(CIFAR10):
            raise ValueError(f"{path} must hold labels from 0 to {len(CIFAR10) - 1}, got {label!r:.80}")
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), np.array(labels, np.int64)


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        check_archive(path)
        with np.load(path, allow_pickle=False) as data:
            if "images" not in data:
                raise ValueError(f"it holds {', '.join(data) or 'nothing'}, expected images and maybe labels")
            return data["images"], data.get("labels")
    except Exception as error:  # whatever damage makes it raise
        raise ValueError(f"{path} cannot be read: {error}") from error


def _read_mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """SVHN's layout: X (H, W, 3, N) and y (N, 1), in which the digit 0 has the label 10."""
    from scipy.io import loadmat

    try:
        data = loadmat(path, variable_names=("X", "y"))
        if missing := {"X", "y"} - data.keys():
            raise ValueError(f"it lacks {missing}, and must hold X (H, W, 3, N) and y (N, 1) as SVHN's files do")
        images, labels = np.ascontiguousarray(np.moveaxis(data["X"], -1, 0)), data["y"].astype(np.int64)
    except Exception as error:  # whatever damage makes it raise
        raise ValueError(f"{path} cannot be read as one of SVHN's, of MATLAB's version 5: {error}") from error
    return images, np.where(labels == 10, 0, labels)


class _Array:
    """Stands for whatever of numpy's a pickle names, and keeps what it was to be made of: nothing of numpy's runs."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def bytes(self, path: Path) -> np.ndarray:
        """The array, if it is one of bytes.

        Raises:
            ValueError: if it is none, or damaged.
        """
        try:
            if hasattr(self, "state"):  # pickle protocols 0 to 4
                _, shape, kind, in_columns, raw = self.state
            else:  # protocol 5
                raw, kind, shape, order = self.parts
                in_columns = order == "F"
            if kind.parts[0] not in ("u1", "|u1"):
                raise ValueError(f"its type is {kind.parts[0]}, expected u1")
            raw = raw.encode("latin1") if isinstance(raw, str) else raw  # as Python 2 wrote it
            return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if in_columns else "C")
        except (ValueError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{path} must hold data (N, 3072) uint8: {error}") from error


def _encode(text: str, encoding: str) -> bytes:
    """What Python 3 calls to write bytes in Python 2's protocol."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes written as {encoding}")
    return text.encode("latin1")


NEEDED = {("_codecs", "encode"): _encode, ("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Array}
for _module in ("numpy.core", "numpy._core"):  # before and since numpy 2
    NEEDED |= {(f"{_module}.multiarray", "_reconstruct"): _Array, (f"{_module}.numeric", "_frombuffer"): _Array}


class _Unpickler(pickle._Unpickler):  # the one that is written in Python, whose steps can be looked at
    """Reads plain values and arrays. A pickle can name any function of any module to be called: these alone are.

    A few bytes can also make tuples of tuples that are larger than any memory, by taking one again and again: here only
    texts, numbers and what stands for arrays are taken twice.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def _take_again(self, code: bytes) -> None:
        pickle._Unpickler.dispatch[code[0]](self)
        if isinstance(self.stack[-1], tuple | list | dict | set | frozenset):
            raise pickle.UnpicklingError(f"it has the same {type(self.stack[-1]).__name__} in two places")

    for _code in (pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.DUP):
        dispatch[_code[0]] = lambda self, code=_code: self._take_again(code)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NEEDED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of CIFAR-10 needs")
        return NEEDED[module, name]


def _unpickled(path: Path) -> dict[str, Any]:
    """The dictionary in a pickle of CIFAR-10's.

    Raises:
        ValueError: if it is damaged, or asks for anything else than an array.
    """
    data = path.read_bytes()
    try:
        for opcode, argument, _ in pickletools.genops(data):  # read, not done
            if "PUT" in opcode.name and argument is not None and int(argument) > len(data):
                raise pickle.UnpicklingError(f"it asks for a list of {argument} values")  # and would get the memory
        values = _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # damage can make a pickle raise anything
        raise ValueError(f"{path} cannot be read as a file of CIFAR-10: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a dictionary, as CIFAR-10's files do, got {type(values).__name__}")
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in values.items()}
