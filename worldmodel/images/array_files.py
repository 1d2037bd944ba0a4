"""Files that hold many small images as one array: CIFAR-10's pickles, .npz, and SVHN's .mat."""

import io
import pickle
import pickletools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from worldmodel.files import check_archive

SPLIT_PATTERNS = (  # training files, held-out files
    ("data_batch_[0-9]", "test_batch"),
    ("data_batch_[0-9].npz", "test_batch.npz"),
    ("train_32x32.mat", "test_32x32.mat"),
)
MAX_CLASSES = 1 << 16
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def find_splits(source: Path) -> tuple[list[Path], list[Path]]:
    """Return the training files and the held-out files of a data set; both are empty if a folder has none.

    A single file is a data set without a held-out part. SVHN's extra_32x32.mat is not used.
    """
    if source.is_file():
        return [source], []
    for train, held_out in SPLIT_PATTERNS:
        if found := sorted(source.glob(train)):
            return found, sorted(source.glob(held_out))
    return [], []


def class_names(path: Path, labels: np.ndarray | None) -> tuple[str, ...]:
    """Return the class names of the data set of this file: their numbers if unknown, () without labels."""
    if labels is None:
        return ()
    meta = path.with_name("batches.meta")
    count = len(CIFAR10_CLASSES)
    if path.suffix == "" and meta.is_file():
        names = _unpickle(meta).get("label_names")
        if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{meta} must hold label_names, a list of {count} names, got {names!r:.80}")
        return tuple(names)
    if path.name.startswith(("data_batch", "test_batch")):
        return CIFAR10_CLASSES
    digits = 10 if path.suffix == ".mat" else 0  # a part of SVHN may lack some of its ten classes
    return tuple(map(str, range(max(digits, int(labels.max()) + 1))))


def load_arrays(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray | None]:
    """Load several files as images (N, H, W, 3) uint8 and their labels (N,) int64, or None if they have none.

    Raises:
        ValueError: if a file is damaged or does not hold images; the message names the file.
    """
    parts = [_load_file(path) for path in paths]
    first = parts[0]
    for path, (images, labels) in zip(paths, parts, strict=True):
        if images.shape[1:] != first[0].shape[1:] or (labels is None) != (first[1] is None):
            raise ValueError(
                f"{path} holds {_describe(images, labels)} and {paths[0].name} {_describe(*first)}; "
                "the files of a set must agree"
            )
    images = np.concatenate([images for images, _ in parts])
    labels = [part for _, part in parts if part is not None]
    return images, np.concatenate(labels) if labels else None


def _describe(images: np.ndarray, labels: np.ndarray | None) -> str:
    return f"{images.shape[2]}×{images.shape[1]} images {'without' if labels is None else 'with'} labels"


def _load_file(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    load = {"": _load_cifar10, ".npz": _load_npz, ".mat": _load_svhn}.get(path.suffix)
    if load is None:
        raise ValueError(f"{path} must be a .npz or .mat file, one of CIFAR-10's, or a folder; unpack archives first")
    images, labels = load(path)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,), (4,)):
        raise ValueError(f"{path} must hold images (N, H, W, 3) uint8, got {images.dtype} {images.shape}")
    if 0 in images.shape:
        raise ValueError(f"{path} holds no images: their shape is {images.shape}")
    images = images.reshape(*images.shape[:3], -1)
    images = images.repeat(3, 3) if images.shape[3] == 1 else images[..., :3]
    if labels is None:
        return images, None
    labels = np.asarray(labels).reshape(-1)
    if len(labels) != len(images) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{path} must hold a class of 0 or more for each of its {len(images)} images, "
            f"got {labels.dtype} {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= MAX_CLASSES:
        raise ValueError(f"{path} must hold classes from 0 to {MAX_CLASSES - 1}, got {labels.min()} to {labels.max()}")
    return images, labels.astype(np.int64)


def _load_cifar10(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Load a CIFAR-10 file, whose rows are 32×32 red values, then green, then blue."""
    values = _unpickle(path)
    rows, labels = values.get("data"), values.get("labels")
    if not isinstance(rows, _Stub) or not isinstance(labels, list):
        raise ValueError(f"{path} must hold an array called data and a list called labels, as CIFAR-10's files do")
    rows = rows.to_array(path)
    if rows.shape[1:] != (3072,):
        raise ValueError(f"{path} must hold data (N, 3072) uint8, a 32×32 image per row, got {rows.shape}")
    for label in labels:
        if not isinstance(label, int) or not 0 <= label < len(CIFAR10_CLASSES):
            raise ValueError(f"{path} must hold labels from 0 to {len(CIFAR10_CLASSES) - 1}, got {label!r:.80}")
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), np.array(labels, np.int64)


def _load_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        check_archive(path)
        with np.load(path, allow_pickle=False) as data:
            if "images" not in data:
                raise ValueError(f"it holds {', '.join(data) or 'nothing'}, expected images and optionally labels")
            return data["images"], data.get("labels")
    except Exception as error:  # damage can make numpy raise anything
        raise ValueError(f"{path} cannot be read: {error}") from error


def _load_svhn(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Load an SVHN file: X (H, W, 3, N) and y (N, 1), in which the digit 0 has the label 10."""
    from scipy.io import loadmat

    try:
        data = loadmat(path, variable_names=("X", "y"))
        if missing := {"X", "y"} - data.keys():
            raise ValueError(f"it lacks {missing}; it must hold X (H, W, 3, N) and y (N, 1), as SVHN's files do")
        images, labels = np.ascontiguousarray(np.moveaxis(data["X"], -1, 0)), data["y"].astype(np.int64)
    except Exception as error:  # damage can make SciPy raise anything
        raise ValueError(f"{path} cannot be read as an SVHN file of MATLAB version 5: {error}") from error
    return images, np.where(labels == 10, 0, labels)


class _Stub:
    """Stands in for any NumPy object that a pickle names and keeps its arguments; no NumPy code runs."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def to_array(self, path: Path) -> np.ndarray:
        """Return the uint8 array that the pickle describes.

        Raises:
            ValueError: if it is not a uint8 array, or damaged.
        """
        try:
            if hasattr(self, "state"):  # pickle protocols 0 to 4
                _, shape, kind, in_columns, raw = self.state
            else:  # protocol 5
                raw, kind, shape, order = self.args
                in_columns = order == "F"
            if kind.args[0] not in ("u1", "|u1"):
                raise ValueError(f"its type is {kind.args[0]}, expected u1")
            raw = raw.encode("latin1") if isinstance(raw, str) else raw  # as Python 2 wrote it
            return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if in_columns else "C")
        except (ValueError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{path} must hold data (N, 3072) uint8: {error}") from error


def _latin1_encode(text: str, encoding: str) -> bytes:
    """Replace ``_codecs.encode``, which Python 3 uses to store bytes in Python 2's protocol."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes written as {encoding}")
    return text.encode("latin1")


ALLOWED = {("_codecs", "encode"): _latin1_encode, ("numpy", "ndarray"): _Stub, ("numpy", "dtype"): _Stub}
for _module in ("numpy.core", "numpy._core"):  # before NumPy 2, and since
    ALLOWED |= {(f"{_module}.multiarray", "_reconstruct"): _Stub, (f"{_module}.numeric", "_frombuffer"): _Stub}


class _Unpickler(pickle._Unpickler):  # the version written in Python, whose opcodes can be intercepted
    """Unpickler of plain values and arrays that refuses every function but those in ALLOWED.

    By reusing one container again and again, a few bytes can also build tuples of tuples that exceed any memory, so
    only strings, numbers and array stubs may be used twice.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def _reuse(self, code: bytes) -> None:
        pickle._Unpickler.dispatch[code[0]](self)  # pyright: ignore[reportArgumentType] # the stub says Unpickler
        if isinstance(self.stack[-1], tuple | list | dict | set | frozenset):
            raise pickle.UnpicklingError(f"it has the same {type(self.stack[-1]).__name__} in two places")

    for _code in (pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.DUP):
        dispatch[_code[0]] = lambda self, code=_code: self._reuse(code)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of CIFAR-10 needs")
        return ALLOWED[module, name]


def _unpickle(path: Path) -> dict[str, Any]:
    """Return the dictionary in a CIFAR-10 pickle.

    Raises:
        ValueError: if it is damaged, or asks for anything other than an array.
    """
    data = path.read_bytes()
    try:
        for opcode, argument, _ in pickletools.genops(data):  # parses without executing
            if "PUT" in opcode.name and argument is not None and int(argument) > len(data):
                raise pickle.UnpicklingError(f"it asks for a list of {argument} values")  # and would allocate it
        values = _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # damage can make a pickle raise anything
        raise ValueError(f"{path} cannot be read as a file of CIFAR-10: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a dictionary, as CIFAR-10's files do, got {type(values).__name__}")
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in values.items()}
