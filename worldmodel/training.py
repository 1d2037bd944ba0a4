"""The training loop, for every model of the package."""

import copy
import ctypes
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from worldmodel import checkpoint, distributed
from worldmodel.checks import check
from worldmodel.files import write_atomically
from worldmodel.models.precision import Precision, pick
from worldmodel.muon import Muon, hidden_weights

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to learn.

    Attributes:
        steps: batches in all.
        optimizer: adamw, or muon, which takes the weight matrices and kernels of hidden layers; AdamW has the rest.
        learning_rate: of the optimizer, after a linear warm-up and before a linear decay to zero.
        warmup: steps of the warm-up.
        decay: share of the steps, at the end, over which the rate falls.
        weight_decay: decoupled, on weight matrices and kernels only.
        clip: largest gradient norm.
        average: decay of the moving average of the weights, which is what model.safetensors holds; 0 keeps none.
        log_every: steps between two lines of metrics.
        evaluate_every: steps between two evaluations; each also saves.
        seed: of the first weights, the batches and all sampling.
        allow_changes: let an existing run go on with another store, batch or seed than it was begun with.
        device: cuda, cpu, or auto for the first that is there.
        threads: of torch on the CPU; 0 leaves torch's own choice.
        precision: of activations; auto is bfloat16 wherever the hardware multiplies it: CUDA, AVX512-BF16, AMX.
    """

    steps: int = 10_000
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 4e-4
    warmup: int = 200
    decay: float = 0.5
    weight_decay: float = 0.0
    clip: float = 1.0
    average: float = 0.998
    log_every: int = 50
    evaluate_every: int = 1000
    seed: int = 0
    allow_changes: bool = False
    device: str = "auto"
    threads: int = 0
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        counts, weights = ("steps", "log_every", "evaluate_every"), ("warmup", "weight_decay", "threads", "seed")
        check("train", self, counts, weights, positive=("learning_rate", "clip"), shares=("decay", "average"))

    def rate(self, step: int) -> float:
        """The learning rate of step number ``step``."""
        falling = (self.steps - step) / max(1, self.decay * self.steps)
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup), falling)


Batches = Callable[[int, int, int], Any]
Evaluation = Callable[[nn.Module, int], dict[str, float]]


def fit(model: nn.Module, batches: Batches, evaluate: Evaluation, config: TrainConfig, run: Path) -> nn.Module:
    """Train ``model`` on ``batches(step, rank, workers)`` and return a copy with the average of its last weights.

    ``model(batch, generator)`` gives a loss and its metrics. The run continues from ``train.safetensors`` if there is
    one; on the CPU a run that was stopped and resumed ends with the same weights as one that was not.

    With ``torch.distributed`` started, this is one of several workers: each learns from its part of every batch, and
    all take the step of their mean gradient. That is the step of a single process, but for rounding and for what the
    model draws. The first worker alone writes to the run, and the number of workers may be another when it goes on.

    Raises:
        FloatingPointError: if the loss or a weight stops being a number; the last save is kept.
        ValueError: if another process is training this run.
    """
    rank, number = distributed.place()
    with checkpoint.locked(run) if rank == 0 else nullcontext():
        return _fit(model, batches, evaluate, config, run, rank, number)


def _fit(
    model: nn.Module, batches: Batches, evaluate: Evaluation, config: TrainConfig, run: Path, rank: int, number: int
) -> nn.Module:
    device = pick_device(config)
    _keep_freed_memory()
    model = model.to(device)
    averaged = copy.deepcopy(model).eval()
    precision = pick(config.precision, device)
    optimizers = _optimizers(model, config, precision)
    first = _resume(run, model, averaged, optimizers)
    forward: nn.Module = model
    if number > 1:
        forward = DistributedDataParallel(model, find_unused_parameters=True)  # as a prior of single frames has
    forward = torch.compile(forward) if device.type == "cuda" else forward
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16)
    generator = torch.Generator(device)
    log = Log(run, first) if rank == 0 else None
    steps = range(first, config.steps)
    with tqdm(steps, initial=first, total=config.steps, unit="step", smoothing=0.05, disable=number > 1) as bar:
        for step in bar:
            generator.manual_seed(config.seed * 1_000_003 + step + (rank << 48))  # chance of its own for each worker
            batch = _move(batches(step, rank, number), device)
            for group in (group for optimizer in optimizers.values() for group in optimizer.param_groups):
                group["lr"] = config.rate(step)

            model.train()
            with autocast:
                loss, metrics = forward(batch, generator)
            model.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            if not torch.isfinite(norm):
                raise FloatingPointError(f"the gradient of step {step} is {norm}: lower train.learning_rate")
            for optimizer in optimizers.values():
                optimizer.step()
            _average(averaged, model, min(config.average, (step + 1) / (step + 10)))

            done = step + 1
            if done % config.log_every == 0:
                values = {"loss": loss.detach(), "gradient_norm": norm, **metrics}
                means = {name: float(distributed.mean(value)) for name, value in values.items() if value.ndim == 0}
                if log:
                    log.write(done, "train", **means)
                bar.set_postfix(loss=f"{means['loss']:.4f}")
            if log and (done % config.evaluate_every == 0 or done == config.steps):
                log.write(done, "held_out", **evaluate(averaged, done))
                _save(run, model, averaged, optimizers, done)
    if log:
        log.writer.close()
        print(f"{run}: {max(first, config.steps)} steps; held out: {log.last_held_out()}")
    return averaged


def pick_device(config: TrainConfig) -> torch.device:
    """The device to train on; also sets torch's threads, if the configuration asks for a number."""
    if config.threads:
        torch.set_num_threads(config.threads)
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return checkpoint.check_device(automatic if config.device == "auto" else config.device)


def _keep_freed_memory() -> None:
    """Let the next step have what this one frees; glibc gives it back to the kernel, which clears it again."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "mallopt"):  # glibc's, not musl's
        library.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


class Log:
    """Numbers as JSON lines and for TensorBoard; a resumed run drops the lines that it will write again."""

    def __init__(self, run: Path, first: int) -> None:
        self.path = path = run / "metrics.jsonl"
        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=first)
        kept = [row for row in checkpoint.read_metrics(run) if row["step"] <= first]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def last_held_out(self) -> str:
        """The last evaluation in words."""
        rows = checkpoint.read_metrics(self.path.parent)
        last = next((row for row in reversed(rows) if row["part"] == "held_out"), {})
        return ", ".join(f"{name} {value:.4g}" for name, value in last.items() if name not in ("step", "part"))

    def write(self, step: int, part: str, **values: float) -> None:
        row = {"step": step, "part": part, **{name: round(value, 6) for name, value in values.items()}}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in values.items():
            self.writer.add_scalar(f"{part}/{name}", value, step)


def _optimizers(model: nn.Module, config: TrainConfig, precision: torch.dtype) -> dict[str, torch.optim.Optimizer]:
    """The optimizers that share a model's parameters, by the names that train.safetensors has for their states."""
    hidden = hidden_weights(model) if config.optimizer == "muon" else []
    taken = {id(weight) for weight in hidden}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    groups = [
        {"params": [parameter for parameter in rest if parameter.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in rest if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "optimizer": torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
    }
    if hidden:
        rate, decay = config.learning_rate, config.weight_decay
        optimizers["muon"] = Muon(hidden, rate, weight_decay=decay, dtype=precision)
    return optimizers


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the model's; buffers are copied, they are averages already."""
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)
    for mine, theirs in zip(averaged.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)


def _save(
    run: Path, model: nn.Module, averaged: nn.Module, optimizers: dict[str, torch.optim.Optimizer], step: int
) -> None:
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise FloatingPointError(f"weights are no numbers after step {step}: lower train.learning_rate")
    parts = {
        "model": model.state_dict(),
        "averaged": averaged.state_dict(),
        **{name: checkpoint.pack_optimizer(optimizer) for name, optimizer in optimizers.items()},
    }
    tensors = {f"{part}.{name}": tensor for part, values in parts.items() for name, tensor in values.items()}
    checkpoint.save_weights(run / "model.safetensors", averaged)  # first, so that a resumed run never lacks it
    checkpoint.write_tensors(run / "train.safetensors", tensors, metadata={"step": str(step)})


def _resume(run: Path, model: nn.Module, averaged: nn.Module, optimizers: dict[str, torch.optim.Optimizer]) -> int:
    """Load the last save, if any, and return the step to go on with.

    Raises:
        ValueError: if the run was begun with another optimizer.
    """
    path = run / "train.safetensors"
    if not path.exists():
        return 0
    tensors = checkpoint.read_tensors(path)
    begun, asked = ("muon" if there else "adamw" for there in (_part(tensors, "muon"), "muon" in optimizers))
    if begun != asked:
        raise ValueError(
            f"{run} was begun with --train.optimizer {begun}, got {asked}; go on with {begun}, or use another --run"
        )
    try:
        model.load_state_dict(_part(tensors, "model"))
        averaged.load_state_dict(_part(tensors, "averaged"))
        for name, optimizer in optimizers.items():
            checkpoint.unpack_optimizer(optimizer, _part(tensors, name))
        return checkpoint.read_step(path)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} does not fit the model that is trained here: {error}") from error


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of a train.safetensors that belong to one part of it, by their names within it."""
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def _move(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return type(batch)(*(_move(item, device) for item in batch))
