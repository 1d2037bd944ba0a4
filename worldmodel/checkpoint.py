"""A run folder: all that is needed to use, or to go on training, a model.

::

    config.yaml              kind and sizes of the model, how it was trained, on what data
    model.safetensors        its weights
    train.safetensors        weights, optimizer and step to resume from
    train.lock               held by the process that trains it
    metrics.jsonl            one line each time something was measured
    pictures/ tensorboard/   what it looked like on the way
    vqvae/                   in a prior's run: the model whose codes it predicts; in an agent's: through which it sees
    checkpoint/              in an agent's run, instead of train.safetensors: RLlib's own, to resume from

No file is a pickle, and each is replaced in one step, so a process killed at any moment leaves a run that loads. The
exception is an agent's checkpoint/, which is replaced in one step, but pickled: go on with agents of your own alone.
Using an agent does not read it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from worldmodel import config, files
from worldmodel.experiments.global_codes.model import GlobalCodes, GlobalCodesConfig
from worldmodel.experiments.likelihood.architecture import Autoencoder, AutoencoderConfig
from worldmodel.experiments.likelihood.autoencoders import DiscreteAutoencoder, autoencoder
from worldmodel.experiments.speech.model import SpeechConfig, SpeechVQVAE
from worldmodel.files import write_atomically
from worldmodel.models.dynamics import Dynamics, DynamicsConfig
from worldmodel.models.spatial_prior import SpatialPrior, SpatialPriorConfig
from worldmodel.models.vqvae import VQVAE, VQVAEConfig
from worldmodel.suggest import unknown

PATHS = ("store", "images", "speech", "vqvae", "voices", "init")  # what a configuration says of this machine
PRETRAINED = Path(__file__).parent / "pretrained"
CHOICES = ("store", "images", "size", "speech", "batch", "length", "mirror", "flip", "samples", "env", "env_kwargs")
TOLD = {  # types of what a configuration says of the data
    **dict.fromkeys(("store", "images", "speech", "vqvae", "environment", "env"), str),
    **dict.fromkeys(("action_names", "classes", "speakers"), list),
    **dict.fromkeys(("kwargs", "env_kwargs"), dict),
    **dict.fromkeys(("size", "batch", "length", "history"), int),
}
ANYHOW = ("device", "threads", "precision")  # of an environment: how it is computed, not what it is
S, M = TypeVar("S"), TypeVar("M", bound=nn.Module)  # settings of a model, and the model


def check_device(name: str | torch.device) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: if there is no such device here.
    """
    try:
        if torch.zeros((), device=name).is_meta:
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"there is no device {str(name)!r} here ({error}); use --device cpu") from error
    return torch.device(name)


def names(shipped: Path) -> list[str]:
    """The models that come with the package in a folder."""
    return sorted(path.parent.name for path in shipped.glob("*/config.yaml"))


def find(what: str, name: str | Path, shipped: Path) -> Path:
    """The folder of a model that is shipped, or of a run.

    Raises:
        FileNotFoundError: if there is none; the message lists the names and the nearest one.
    """
    for folder in (shipped / str(name), Path(name)):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(unknown(what, str(name), ["the folder of a run", *names(shipped)]))


def ship(run: Path, out: Path, half: bool = False, **more: Any) -> None:
    """Copy a model's configuration and weights into a folder to be passed on, without the paths of this machine.

    Args:
        half: write weights in float16, half as large; they are read as the float32 that the model has.
        more: anything else that config.yaml should say.

    Raises:
        ValueError: if a weight is too large for float16.
    """
    values = read_config(run)
    values["data"] = {name: value for name, value in values["data"].items() if name not in PATHS}
    tensors = read_tensors(run / "model.safetensors")
    if half:
        tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError(f"{run} has weights that float16 cannot hold; ship it in float32")
    out.mkdir(exist_ok=True)
    (out / "config.yaml").write_text(yaml.safe_dump({**more, **values}, sort_keys=False), "utf-8")
    write_tensors(out / "model.safetensors", tensors)


def save_weights(path: Path, model: nn.Module) -> None:
    """Write a model's parameters and buffers."""
    write_tensors(path, model.state_dict())


def load_weights(path: Path, model: nn.Module) -> None:
    """Read what :func:`save_weights` wrote into a model of the same sizes.

    Raises:
        ValueError: if the file is damaged or made for a model of other sizes.
    """
    try:
        model.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the model that config.yaml beside it describes: {error}") from error


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically, with a checksum of what they hold."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    facts = json.dumps({**(metadata or {}), "sha256": _checksum(tensors)})
    write_atomically(path, save(tensors, {"worldmodel": facts}))  # one key: several come in a random order


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no {path.name}; train a model there, or give another folder")
    try:
        tensors = load(path.read_bytes())
        facts = _facts(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or train again") from error
    if facts.get("sha256", _checksum(tensors)) != _checksum(tensors):
        raise ValueError(f"{path} is damaged (its checksum is another); restore it, or train again")
    return tensors


def read_step(path: Path) -> int:
    """The training step at which a train.safetensors was saved.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        return int(_facts(path)["step"])
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or train again") from error


def begin(run: Path, kind: str, model: Any, train: Any, data: dict[str, Any], held: bool = False, **more: Any) -> None:
    """Make a run's folder and its config.yaml, or get an existing run ready to go on.

    Args:
        held: whether the caller holds the run's lock.
        more: anything else that config.yaml should say.

    Raises:
        ValueError: if the run is there with a model of another kind or size, damaged, or being trained by another
            process, or as :func:`check_choices` does; nothing is changed then.
    """
    check_choices(run, kind, train, data)
    if getattr(train, "device", "auto") != "auto":
        check_device(train.device)
    if data.get("batch", 1) < 1:
        raise ValueError(f"--batch must be 1 or more, got {data['batch']}")
    data = {name: _absolute(value) if name in PATHS else value for name, value in data.items()}
    text = config.dump(kind=kind, **more, model=model, train=train, data=data)
    if (run / "config.yaml").exists():
        there, asked = read_config(run), yaml.safe_load(text)
        if there["kind"] == kind:  # settings that are younger than the run have their defaults there
            known = config.build(type(model), there["model"], run / "config.yaml")
            there["model"] = yaml.safe_load(config.dump(model=known))["model"]
        for name, old in {"kind": there["kind"], **there["model"]}.items():
            new = {"kind": kind, **asked["model"]}.get(name)
            if new != old:
                raise ValueError(f"{run} was begun with {name} {old}, got {new}; use another --run, or the old setting")
        read_metrics(run)
        if (run / "train.safetensors").exists():
            read_step(run / "train.safetensors")
        with nullcontext() if held else locked(run):
            pass
    run.mkdir(parents=True, exist_ok=True)
    files.sweep(run)
    write_atomically(run / "config.yaml", text.encode())


def check_choices(run: Path, kind: str, train: Any, data: dict[str, Any]) -> None:
    """See that a run that is there is of that kind, and was begun with the same optimizer, data, batch and seed.

    A program that works before it trains says so first.

    Args:
        train: has ``seed``, and ``allow_changes``, which lets anything pass.
        data: of which :data:`CHOICES` are compared, those that the run knows.

    Raises:
        ValueError: naming the first that differs.
    """
    if not (run / "config.yaml").exists():
        return
    there = read_config(run)
    if there["kind"] != kind:
        raise ValueError(f"{run} was begun with kind {there['kind']}, got {kind}; use another --run")
    known, optimizer = there.get("train", {}), getattr(train, "optimizer", "adamw")
    if known.get("optimizer", "adamw") != optimizer:
        begun = known.get("optimizer", "adamw")
        raise ValueError(
            f"{run} was begun with --train.optimizer {begun}, got {optimizer}; go on with {begun}, or use another --run"
        )
    begun = {**there["data"], "train.seed": known.get("seed", train.seed)}
    choices = {name: value for name, value in data.items() if name in CHOICES or (name == "init" and value)}
    for name, asked in {**choices, "train.seed": train.seed}.items():
        old = begun.get(name, asked)
        if not train.allow_changes and _plain(old) != _plain(asked):
            raise ValueError(
                f"{run} was begun with {name} {old}, got {asked}; give that again, use another --run, or go on with "
                "what changed: --train.allow_changes true"
            )


def _plain(choice: Any) -> Any:
    """A choice as it is compared: paths from the root, environments without how they are computed."""
    if isinstance(choice, dict):
        return {name: _plain(value) for name, value in choice.items() if name not in ANYHOW}
    return _absolute(choice) if isinstance(choice, str) else choice


def _absolute(path: str) -> str:
    """A path as it is found from any folder; what is no path here, such as a shipped model's name, stays."""
    return str(Path(path).absolute()) if path and Path(path).exists() else path


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run's lock until the block, or the process, ends, however it ends.

    Raises:
        ValueError: if another process is training this run.
    """
    try:
        with files.locked(run / "train.lock", wait=False):
            yield
    except BlockingIOError:
        raise ValueError(f"another process is training {run}; wait for it, stop it, or use another --run") from None


def adopt(run: Path, vqvae: Path) -> None:
    """Put a copy of a VQ-VAE's run into a prior's run, as ``vqvae``; nothing happens if it is there already.

    Raises:
        ValueError: if the prior was begun on the codes of another one.
    """
    target = run / "vqvae"
    if (target / "model.safetensors").exists():
        if digest(target) != digest(vqvae):
            raise ValueError(f"{run} predicts the codes of another VQ-VAE than {vqvae}; use another --run")
        return
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.yaml", "model.safetensors"):
        write_atomically(target / name, (vqvae / name).read_bytes())


def remembered(run: Path, name: str) -> float:
    """A measured setting of a run's model, which stays what it was when the data grow; 0 if there is no such run."""
    value = read_config(run)["model"].get(name, 0.0) if (run / "config.yaml").exists() else 0.0
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{run / 'config.yaml'}: model.{name} must be float, got {value!r:.80}")
    return value


def read_config(run: Path) -> dict[str, Any]:
    """The config.yaml of a run.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{run} holds no config.yaml; train a model there, or give another folder")
    values = config.read_yaml(path)
    for name, kind in (("kind", str), ("model", dict), ("data", dict)):
        if not isinstance(values, dict) or name not in values:
            raise ValueError(f"{path} lacks {name!r}; restore it, or train again")
        _check_type(path, name, values[name], kind)
    if "train" in values:
        _check_type(path, "train", values["train"], dict)
    for name, kind in TOLD.items():
        if name in values["data"]:
            _check_type(path, f"data.{name}", values["data"][name], kind)
    return {**values, "data": _Told(path, values["data"])}


class _Told(dict):
    """What a configuration says of the data; what it does not say is an error that names the file."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"{self.path} lacks data.{name}; restore it, or train again")


def _check_type(path: Path, name: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{path}: {name} must be {kind.__name__}, got {value!r:.80}; restore it, or train again")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """What a run measured so far, a row each time: step, part (train or held_out) and numbers.

    A last line that is torn is left out.

    Raises:
        ValueError: naming the line that is damaged.
    """
    path, rows = run / "metrics.jsonl", []
    lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not (isinstance(row, dict) and isinstance(row.get("step"), int) and isinstance(row.get("part"), str)):
                raise ValueError("step or part is missing")
            rows.append(row)
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise ValueError(f"{path} is damaged in line {number}: {error}; remove that line") from error
    return rows


def load_vqvae(run: Path) -> VQVAE | DiscreteAutoencoder:
    """The VQ-VAE of a run, in evaluation mode on the CPU; also one that says how likely pictures are."""
    if read_config(run)["kind"] == "autoencoder" and isinstance(network := load_autoencoder(run), DiscreteAutoencoder):
        return network
    return _load(run, "vqvae", VQVAEConfig, VQVAE.from_config)


def load_autoencoder(run: Path) -> Autoencoder:
    """The autoencoder of a run of the likelihood experiment, in evaluation mode on the CPU."""
    return _load(run, "autoencoder", AutoencoderConfig, autoencoder)


def load_dynamics(run: Path) -> Dynamics:
    """The dynamics prior of a run, in evaluation mode on the CPU."""
    return _load(run, "prior", DynamicsConfig, Dynamics)


def load_spatial(run: Path) -> SpatialPrior:
    """The spatial prior of a run, in evaluation mode on the CPU."""
    return _load(run, "pixelcnn", SpatialPriorConfig, SpatialPrior)


def load_speech(run: Path) -> SpeechVQVAE:
    """The VQ-VAE of speech of a run, in evaluation mode on the CPU."""
    return _load(run, "speech", SpeechConfig, SpeechVQVAE)


def load_speech_prior(run: Path) -> SpatialPrior:
    """The prior over the codes of speech of a run, in evaluation mode on the CPU."""
    return _load(run, "speech_prior", SpatialPriorConfig, SpatialPrior)


def load_global_codes(run: Path) -> GlobalCodes:
    """The second VQ-VAE of a run, in evaluation mode on the CPU."""
    return _load(run, "global_codes", GlobalCodesConfig, GlobalCodes)


def digest(run: Path) -> str:
    """Twelve hexadecimal digits that name the weights of a run: the beginning of their sha256."""
    return _checksum(read_tensors(run / "model.safetensors"))[:12]


def _checksum(tensors: dict[str, Tensor]) -> str:
    """The sha256 of the names and bytes of tensors."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def _facts(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    return json.loads(metadata.get("worldmodel", "{}"))


def _load(run: Path, kind: str, settings: type[S], make: Callable[[S], M]) -> M:
    values = read_config(run)
    if values["kind"] != kind:
        raise ValueError(f"{run} must be the run of a {kind}, it is that of a {values['kind']}")
    sizes = config.build(settings, values["model"], run / "config.yaml")
    _check_sizes(run / "model.safetensors", make, sizes)
    network = make(sizes)
    load_weights(run / "model.safetensors", network)
    return network.eval()


def _check_sizes(path: Path, make: Callable[[S], M], sizes: S) -> None:
    """Compare what a model would hold with the header of its weights, before any memory is taken for it."""
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
    except RuntimeError as error:  # too large even to count
        raise ValueError(f"{wrong}: {error}") from error
    for name in sorted(there.keys() | expected.keys()):
        if there.get(name) != expected.get(name):
            has, needs = there.get(name, "not there"), expected.get(name, "nothing of that name")
            raise ValueError(f"{wrong}: {name} is {has}, expected {needs}")


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put what :func:`pack_optimizer` made into an optimizer of the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
