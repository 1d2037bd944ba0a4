"""Tensors in safetensors files: written atomically, with a checksum that is verified on reading. No pickle."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from worldmodel.files import write_atomically

S = TypeVar("S")  # a model's configuration
M = TypeVar("M", bound=nn.Module)


def save_weights(path: Path, model: nn.Module) -> None:
    """Write a model's parameters and buffers."""
    write_tensors(path, model.state_dict())


def load_weights(path: Path, model: nn.Module) -> None:
    """Load weights written by :func:`save_weights` into a model of the same sizes.

    Raises:
        ValueError: if the file is damaged or made for a model of other sizes.
    """
    try:
        model.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the model that config.yaml beside it describes: {error}") from error


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically, with a checksum of their names and bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    facts = json.dumps({**(metadata or {}), "sha256": _checksum(tensors)})
    write_atomically(
        path, save(tensors, {"worldmodel": facts})
    )  # one key, since safetensors writes several in random order


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is damaged.
    """
    return _read_verified(path)[0]


def _read_verified(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a file and their checksum; raises as :func:`read_tensors` does."""
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no {path.name}; train a model there, or give another folder")
    try:
        tensors = load(path.read_bytes())
        facts = _metadata(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or train again") from error
    checksum = _checksum(tensors)
    if facts.get("sha256", checksum) != checksum:
        raise ValueError(f"{path} is damaged (checksum mismatch); restore it, or train again")
    return tensors, checksum


def read_step(path: Path) -> int:
    """Return the training step at which a train.safetensors was saved.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        return int(_metadata(path)["step"])
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or train again") from error


def digest(run: Path) -> str:
    """Return the first twelve hexadecimal digits of the sha256 of a run's weights."""
    return _read_verified(run / "model.safetensors")[1][:12]


def _checksum(tensors: dict[str, Tensor]) -> str:
    """Return the sha256 of the names and bytes of tensors."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    return json.loads(metadata.get("worldmodel", "{}"))


def check_shapes(path: Path, make: Callable[[S], M], sizes: S) -> None:
    """Compare the shapes of a model with those in the header of its weights, before allocating memory for it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no {path.name}; train a model there, or give another folder")
    try:
        with safe_open(path, framework="pt") as file:
            there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or train again") from error
    wrong = f"{path} does not fit the model that config.yaml beside it describes"
    try:
        with torch.device("meta"):
            expected = {name: tuple(tensor.shape) for name, tensor in make(sizes).state_dict().items()}
    except RuntimeError as error:  # sizes that overflow
        raise ValueError(f"{wrong}: {error}") from error
    for name in sorted(there.keys() | expected.keys()):
        if there.get(name) != expected.get(name):
            has, needs = there.get(name, "not there"), expected.get(name, "nothing of that name")
            raise ValueError(f"{wrong}: {name} is {has}, expected {needs}")


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load tensors from :func:`pack_optimizer` into an optimizer of the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
