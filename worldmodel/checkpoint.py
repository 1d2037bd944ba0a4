"""Run folders: everything needed to use a model, or to resume its training.

::

    config.yaml              format, kind and configuration of the model, training settings, data
    model.safetensors        weights
    train.safetensors        weights, optimizer state and step to resume from
    train.lock               held by the process that trains the model
    metrics.jsonl            one line per measurement
    pictures/ tensorboard/   images and curves of the training
    vqvae/                   in a prior's or an agent's run, a copy of the VQ-VAE whose codes it predicts or observes
    checkpoint/              in an agent's run, RLlib's checkpoint, instead of train.safetensors

No file is a pickle, and each is replaced atomically, so a process killed at any moment leaves a run that loads. The
exception is an agent's checkpoint/, which RLlib pickles: resume only agents that you trust. Using an agent does not
read it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml
from torch import nn

from worldmodel import config, files
from worldmodel.files import write_atomically
from worldmodel.models.precision import check_device
from worldmodel.renamed import FORMAT, upgrade_config
from worldmodel.run_kind import RunKind
from worldmodel.tensor_io import check_shapes, digest, load_weights, read_step, read_tensors, write_tensors

if TYPE_CHECKING:
    from worldmodel.models.dynamics import Dynamics
    from worldmodel.models.spatial_prior import SpatialPrior
    from worldmodel.models.vqvae import VQVAE

KINDS = {  # kind of a run: its RunKind, imported when needed; an agent's run has none
    "vqvae": "worldmodel.models.config:VQVAE_RUN",
    "dynamics": "worldmodel.models.config:DYNAMICS_RUN",
    "spatial_prior": "worldmodel.models.config:SPATIAL_PRIOR_RUN",
    "autoencoder": "worldmodel.experiments.likelihood.config:AUTOENCODER_RUN",
    "global_codes": "worldmodel.experiments.global_codes.config:GLOBAL_CODES_RUN",
    "speech": "worldmodel.experiments.speech.config:SPEECH_RUN",
    "speech_prior": "worldmodel.experiments.speech.config:SPEECH_PRIOR_RUN",
    "translation": "worldmodel.experiments.translation.config:TRANSLATION_RUN",
    "translation_teacher": "worldmodel.experiments.translation.config:TEACHER_RUN",
}
# keys of config.yaml's data section, for all kinds of runs, as in RunKind
PATHS = ("store", "images", "vqvae", "init")
CHOICES = ("store", "images", "size", "batch_size", "seq_length", "mirror", "env", "env_kwargs")
FILE_FACTS = ("shape", "num_train", "num_held_out")  # choices of image files, which are split anew if there are others
TYPES = {
    **dict.fromkeys(("store", "images", "vqvae", "environment", "env"), str),
    **dict.fromkeys(("action_names", "classes"), list),
    **dict.fromkeys(("kwargs", "env_kwargs", "provenance"), dict),
    **dict.fromkeys(("size", "batch_size", "seq_length", "history"), int),
}
MAX_CODES = 1 << 16  # of a codebook, as codes are stored in uint16
COMPUTE_KEYS = ("device", "threads", "precision")  # arguments of an environment that do not change what it is


def export(run: Path, out: Path, half: str | None = None, **more: Any) -> None:
    """Export a model's configuration and weights into a folder to share, without the paths of this machine.

    Args:
        half: prefix of the weights to write in float16, such as "" for all; they are converted to float32 on loading.
        more: further entries of config.yaml.

    Raises:
        ValueError: if a weight is too large for float16.
    """
    values = read_config(run)
    paths = PATHS + run_kind(values["kind"]).paths
    values["data"] = {name: value for name, value in values["data"].items() if name not in paths}
    tensors = read_tensors(run / "model.safetensors")
    if half is not None:
        rounded = [name for name in tensors if name.startswith(half) and tensors[name].is_floating_point()]
        tensors |= {name: tensors[name].half() for name in rounded}
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError(f"{run} has weights that float16 cannot hold; export it in float32")
    out.mkdir(exist_ok=True)
    values = {**more, **values, **more}  # in front, and in place of older ones
    (out / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")
    write_tensors(out / "model.safetensors", tensors)


def begin_run(
    run: Path,
    kind: str,
    model: Any,
    train: Any,
    data: dict[str, Any],
    vqvae: Path | None = None,
    held: bool = False,
    **more: Any,
) -> None:
    """Create a run's folder and config.yaml, or prepare an existing run to be resumed.

    Args:
        vqvae: run folder of the VQ-VAE whose codes the model is trained on; it is copied into the run.
        held: whether the caller holds the run's lock.
        more: further entries of config.yaml.

    Raises:
        ValueError: if there is a run with a model of another kind or size, or for the codes of another VQ-VAE, that is
            damaged or being trained by another process, or that :func:`check_choices` refuses; nothing is changed then.
    """
    files.check_folder(run)
    if (run / "store.json").exists() and not is_begun(run):
        raise ValueError(f"{run} is a store of episodes; use another --run")
    check_choices(run, kind, train, data)
    if getattr(train, "device", "auto") != "auto":
        check_device(train.device)
    if data.get("batch_size", 1) < 1:
        raise ValueError(f"--batch_size must be 1 or more, got {data['batch_size']}")
    begun = is_begun(run)
    if "init" in data and not data["init"] and begun:
        data = {**data, "init": read_config(run)["data"].get("init", "")}  # where its weights came from
    paths = PATHS + run_kind(kind).paths
    data = {name: absolute(value) if name in paths else value for name, value in data.items()}
    text = config.dump(format=FORMAT, kind=kind, **more, model=model, train=train, data=data)
    copied = begun and (run / "vqvae" / "model.safetensors").exists()
    if begun:
        there, asked = read_config(run), yaml.safe_load(text)
        if there["kind"] == kind:  # fields added after the run was begun have their defaults
            known = config.build(type(model), there["model"], run / "config.yaml")
            there["model"] = yaml.safe_load(config.dump(model=known))["model"]
        for name, old in {"kind": there["kind"], **there["model"]}.items():
            new = {"kind": kind, **asked["model"]}.get(name)
            if new != old:
                raise ValueError(f"{run} was begun with {name} {old}, got {new}; use another --run, or the old setting")
        evaluated = {row["step"] for row in read_metrics(run) if row["part"] == "held_out"}
        if (run / "train.safetensors").exists():
            read_step(run / "train.safetensors")
        elif kind != "agent" and (run / "model.safetensors").exists() and len(evaluated) != 1:  # 1: killed in saving
            raise ValueError(
                f"{run} has weights but no train.safetensors to resume from; use another --run, or they would be lost"
            )
        if vqvae and copied and digest(run / "vqvae") != digest(vqvae):
            raise ValueError(f"{run} predicts the codes of another VQ-VAE than {vqvae}; use another --run")
    run.mkdir(parents=True, exist_ok=True)
    with nullcontext() if held else locked(run):
        files.remove_stale_temporaries(run)
        if vqvae and not copied:
            (run / "vqvae").mkdir(exist_ok=True)
            for name in ("config.yaml", "model.safetensors"):
                write_atomically(run / "vqvae" / name, (vqvae / name).read_bytes())
        write_atomically(run / "config.yaml", text.encode())


def is_begun(run: Path) -> bool:
    """Return whether a run has weights; one that failed before it had may be started again with other settings."""
    weights = ("model.safetensors", "train.safetensors", "checkpoint")
    return (run / "config.yaml").exists() and any((run / name).exists() for name in weights)


def check_choices(run: Path, kind: str, train: Any, data: dict[str, Any]) -> None:
    """Check that a run that :func:`is_begun` has that kind, and the same optimizer, data, batch size and seed.

    Programs call it before any long preparation of the training.

    Args:
        train: settings with ``seed``, and with ``allow_changes``, which disables the comparison of data and seed.
        data: data section, whose choices are compared where the run has them.

    Raises:
        ValueError: naming the first difference.
    """
    if not (run / "config.yaml").exists():
        return
    there = read_config(run)
    if not is_begun(run):
        return
    if there["kind"] != kind:
        raise ValueError(f"{run} was begun with kind {there['kind']}, got {kind}; use another --run")
    known, optimizer = there.get("train", {}), getattr(train, "optimizer", "adamw")
    if known.get("optimizer", "adamw") != optimizer:
        begun = known.get("optimizer", "adamw")
        raise ValueError(
            f"{run} was begun with --train.optimizer {begun}, got {optimizer}; go on with {begun}, or use another --run"
        )
    begun = {**there["data"], "train.seed": known.get("seed", train.seed)}
    compared = CHOICES + run_kind(kind).choices
    compared += () if {"environment", "stores"} & data.keys() else FILE_FACTS  # stores may grow
    choices = {name: value for name, value in data.items() if name in compared or (name == "init" and value)}
    for name, asked in {**choices, "train.seed": train.seed}.items():
        old = begun.get(name, asked)
        if not train.allow_changes and _plain(old) != _plain(asked):
            raise ValueError(
                f"{run} was begun with {name} {old}, got {asked}; use the old value, another --run, or "
                "--train.allow_changes true to continue anyway"
            )


def _plain(choice: Any) -> Any:
    """Return a value in the form that is compared: absolute paths, lists, and no :data:`COMPUTE_KEYS`."""
    if isinstance(choice, dict):
        return {name: _plain(value) for name, value in choice.items() if name not in COMPUTE_KEYS}
    if isinstance(choice, tuple):
        return list(choice)
    return absolute(choice) if isinstance(choice, str) else choice


def absolute(path: str) -> str:
    """Return an existing path as an absolute one, and anything else, such as a shipped model's name, unchanged."""
    return str(Path(path).absolute()) if path and Path(path).exists() else path


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run's lock until the block or the process ends.

    Raises:
        ValueError: if another process is training this run.
    """
    try:
        with files.locked(run / "train.lock", wait=False):
            yield
    except BlockingIOError:
        raise ValueError(f"another process is training {run}; wait for it, stop it, or use another --run") from None


def measured_value(run: Path, name: str) -> float:
    """Return a field of a run's model that was measured on its first data, or 0 if it is not begun."""
    value = read_config(run)["model"].get(name, 0.0) if is_begun(run) else 0.0
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{run / 'config.yaml'}: model.{name} must be float, got {value!r:.80}")
    return value


def read_config(run: Path) -> dict[str, Any]:
    """Return a run's config.yaml, upgraded to the names of today's format.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, or of a later format.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{run} holds no config.yaml; train a model there, or give another folder")
    values = config.read_yaml(path)
    if isinstance(values, dict) and values.get("format", 1) not in (1, FORMAT):
        raise ValueError(
            f"{path} has format {values['format']!r:.80}, this version reads 1 and {FORMAT}; upgrade worldmodel"
        )
    values = upgrade_config(values)
    for name, kind in (("kind", str), ("model", dict), ("data", dict)):
        if not isinstance(values, dict) or name not in values:
            raise ValueError(f"{path} lacks {name!r}; restore it, or train again")
        _check_type(path, name, values[name], kind)
    if "train" in values:
        _check_type(path, "train", values["train"], dict)
    for name, kind in {**TYPES, **run_kind(values["kind"]).types}.items():
        if name in values["data"]:
            _check_type(path, f"data.{name}", values["data"][name], kind)
    return {**values, "data": _Data(path, values["data"])}


class _Data(dict):
    """The data section of a config.yaml. A missing key is an error that names the file."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"{self.path} lacks data.{name}; restore it, or train again")


def _check_type(path: Path, name: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{path}: {name} must be {kind.__name__}, got {value!r:.80}; restore it, or train again")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the measurements of a run as rows with step, part (train or held_out) and metrics.

    An incomplete last line is left out.

    Raises:
        ValueError: naming the damaged line.
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


def load_model(run: Path, kind: str) -> nn.Module:
    """The model of a run of that kind, one of :data:`KINDS`, in evaluation mode on the CPU.

    Raises:
        FileNotFoundError: if there is no such run.
        ValueError: if it is of another kind, or damaged.
    """
    values = read_config(run)
    if values["kind"] != kind:
        raise ValueError(f"{run} must be the run of a {kind}, it is that of a {values['kind']}")
    known = run_kind(kind)
    sizes, make = config.build(known.config, values["model"], run / "config.yaml"), _imported(known.build)
    check_shapes(run / "model.safetensors", make, sizes)
    network = make(sizes)
    load_weights(run / "model.safetensors", network)
    return network.eval()


def load_vqvae(run: Path) -> "VQVAE":
    """The VQ-VAE of a run, or the discrete autoencoder of a likelihood run, which has the same methods."""
    network = load_model(run, "autoencoder" if read_config(run)["kind"] == "autoencoder" else "vqvae")
    if not hasattr(network, "quantizer"):
        raise ValueError(f"{run} must be the run of a vqvae, it is that of an autoencoder without codes")
    return cast("VQVAE", network)


def load_tokenizer(run: Path) -> "VQVAE":
    """The VQ-VAE of a run, as :func:`load_vqvae`, whose codes a prior can model.

    Raises:
        ValueError: if it has several codes at each position, or more codes than uint16 can number.
    """
    network = load_vqvae(run)
    if (size := network.quantizer.config.codebook_size) > MAX_CODES:
        raise ValueError(f"{run} has {size} codes; priors and world models need a VQ-VAE with {MAX_CODES} at most")
    if getattr(network, "codes_per_position", 1) > 1:
        raise ValueError(
            f"{run} has {network.codes_per_position} codes at each position; priors and world models need a VQ-VAE "
            "with model.codes_per_position 1"
        )
    return network


def load_dynamics(run: Path) -> "Dynamics":
    """The dynamics model of a run."""
    return cast("Dynamics", load_model(run, "dynamics"))


def load_spatial_prior(run: Path) -> "SpatialPrior":
    """The spatial prior of a run."""
    return cast("SpatialPrior", load_model(run, "spatial_prior"))


def run_kind(kind: str) -> RunKind:
    """Return what a kind of run declares: nothing for an agent, or for kinds that this version does not know."""
    return _imported(KINDS[kind]) if kind in KINDS else RunKind(object, "")


def _imported(name: str) -> Any:
    module, _, attributes = name.partition(":")
    found: Any = import_module(module)
    for attribute in attributes.split("."):
        found = getattr(found, attribute)
    return found
