"""Training loop for all models of the package."""

import copy
import ctypes
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from worldmodel import checkpoint, distributed, tensor_io
from worldmodel.files import write_atomically
from worldmodel.models.precision import check_device, resolve_precision
from worldmodel.muon import Muon, hidden_weights
from worldmodel.train_config import TrainConfig

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h

M = TypeVar("M", bound=nn.Module)
BatchFunction = Callable[[int, int, int], Any]  # (step, rank, world_size) -> batch
EvaluateFunction = Callable[[M, int], dict[str, float]]  # (averaged model, step) -> held-out metrics


def fit(model: M, batches: BatchFunction, evaluate: EvaluateFunction[M], config: TrainConfig, run: Path) -> M:
    """Train ``model`` on ``batches(step, rank, world_size)`` and return a copy with its averaged weights.

    ``model(batch, generator)`` returns a loss and metrics. The run resumes from ``train.safetensors`` if it exists;
    on the CPU a resumed run ends with exactly the weights of an uninterrupted one.

    If ``torch.distributed`` is initialized, this is one of several workers: each computes the gradient of its part of
    the batch, and the gradients are averaged. Apart from rounding and the model's random numbers, the result is that of
    a single process. Only rank 0 writes to the run; a run can be resumed with a different number of workers.

    Raises:
        FloatingPointError: if the loss or a weight is not finite; the last checkpoint is kept.
        ValueError: if another process is training this run.
    """
    rank, _ = distributed.rank_and_world_size()
    with checkpoint.locked(run) if rank == 0 else nullcontext():
        return _fit(model, batches, evaluate, config, run)


def _fit(model: M, batches: BatchFunction, evaluate: EvaluateFunction[M], config: TrainConfig, run: Path) -> M:
    rank, world_size = distributed.rank_and_world_size()
    device = pick_device(config)
    _keep_freed_memory()
    model = model.to(device)
    averaged = copy.deepcopy(model).eval()
    precision = resolve_precision(config.precision, device)
    optimizers = _optimizers(model, config, precision)
    first = _resume(run, model, averaged, optimizers)
    forward: Callable[..., Any] = model
    if world_size > 1:
        forward = DistributedDataParallel(model, find_unused_parameters=True)  # as in a prior of single frames
    forward = torch.compile(forward) if device.type == "cuda" else forward
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16)
    generator = torch.Generator(device)
    log = MetricsLog(run, first) if rank == 0 else None
    loader = _load_ahead(StepBatches(batches, rank, world_size), range(first, config.steps), config.data_workers)
    with tqdm(loader, initial=first, total=config.steps, unit="step", smoothing=0.05, disable=world_size > 1) as bar:
        for step, batch in enumerate(bar, first):
            generator.manual_seed(config.seed * 1_000_003 + step + (rank << 48))  # different on each worker
            batch = to_device(batch, device)
            for group in (group for optimizer in optimizers.values() for group in optimizer.param_groups):
                group["lr"] = config.learning_rate_at(step)

            model.train()
            with autocast:
                loss, metrics = forward(batch, generator)
            model.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            if not torch.isfinite(norm):
                raise FloatingPointError(f"the gradient of step {step} is {norm}: lower train.learning_rate")
            for optimizer in optimizers.values():
                optimizer.step()
            _update_average(averaged, model, min(config.ema_decay, (step + 1) / (step + 10)))

            done = step + 1
            if done % config.log_every == 0:
                values = {"loss": loss.detach(), "gradient_norm": norm, **metrics}
                means = {
                    name: float(distributed.all_reduce_mean(value)) for name, value in values.items() if value.ndim == 0
                }
                if log:
                    log.write(done, "train", **means)
                bar.set_postfix(loss=f"{means['loss']:.4f}")
            if log and (done % config.evaluate_every == 0 or done == config.steps):
                log.write(done, "held_out", **evaluate(averaged, done))
                _save(run, model, averaged, optimizers, done)
    if log:
        log.writer.close()
        print(f"{run}: {max(first, config.steps)} steps; held out: {log.describe_last_held_out()}")
    return averaged


class StepBatches(Dataset):
    """The batches of one of several workers, by the number of the training step."""

    def __init__(self, batches: BatchFunction, rank: int, world_size: int) -> None:
        self.batches, self.rank, self.world_size = batches, rank, world_size

    def __getitem__(self, step: int) -> Any:
        return self.batches(step, self.rank, self.world_size)


def _load_ahead(batches: StepBatches, steps: range, num_processes: int) -> DataLoader:
    """Yield the batches of these steps in order, loaded ahead by a number of processes, or by none when needed."""
    own_generator = torch.Generator()  # or it would draw its seed from torch's global generator
    return DataLoader(batches, None, sampler=steps, num_workers=num_processes, generator=own_generator)


def pick_device(config: TrainConfig) -> torch.device:
    """Return the training device; also set the number of torch threads if configured."""
    if config.threads:
        torch.set_num_threads(config.threads)
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return check_device(automatic if config.device == "auto" else config.device)


def _keep_freed_memory() -> None:
    """Keep freed memory in the process: glibc would return it to the kernel, which would clear it again."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library and hasattr(library, "mallopt"):  # glibc only
        library.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


class MetricsLog:
    """Metrics as JSON lines and for TensorBoard; a resumed run drops the lines after its checkpoint."""

    def __init__(self, run: Path, first_step: int) -> None:
        self.path = path = run / "metrics.jsonl"
        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=first_step)
        kept = [row for row in checkpoint.read_metrics(run) if row["step"] <= first_step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def describe_last_held_out(self) -> str:
        """Return the last evaluation as text."""
        rows = checkpoint.read_metrics(self.path.parent)
        last = next((row for row in reversed(rows) if row["part"] == "held_out"), {})
        return ", ".join(f"{name} {value:.4g}" for name, value in last.items() if name not in ("step", "part"))

    def write(self, step: int, part: str, **values: float) -> None:
        """Log values of one part: train or held_out."""
        row = {"step": step, "part": part, **{name: round(value, 6) for name, value in values.items()}}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in values.items():
            self.writer.add_scalar(f"{part}/{name}", value, step)


def _optimizers(model: nn.Module, config: TrainConfig, precision: torch.dtype) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizers of a model's parameters by their names in train.safetensors."""
    hidden = hidden_weights(model) if config.optimizer == "muon" else []
    hidden_ids = {id(weight) for weight in hidden}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in hidden_ids]
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
def _update_average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged weights toward the model's; copy buffers, which are averages already."""
    lerp = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]  # not documented, but torch.optim uses it
    lerp(list(averaged.parameters()), list(model.parameters()), 1 - decay)
    for target, source in zip(averaged.buffers(), model.buffers(), strict=True):
        target.copy_(source)


def _save(
    run: Path, model: nn.Module, averaged: nn.Module, optimizers: dict[str, torch.optim.Optimizer], step: int
) -> None:
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise FloatingPointError(f"weights are not finite after step {step}: lower train.learning_rate")
    parts = {
        "model": model.state_dict(),
        "averaged": averaged.state_dict(),
        **{name: tensor_io.pack_optimizer(optimizer) for name, optimizer in optimizers.items()},
    }
    tensors = {f"{part}.{name}": tensor for part, values in parts.items() for name, tensor in values.items()}
    tensor_io.save_weights(run / "model.safetensors", averaged)  # first, so that every resumable run has it
    tensor_io.write_tensors(run / "train.safetensors", tensors, metadata={"step": str(step)})


def _resume(run: Path, model: nn.Module, averaged: nn.Module, optimizers: dict[str, torch.optim.Optimizer]) -> int:
    """Load the last checkpoint, if any, and return the next step.

    Raises:
        ValueError: if the run was started with another optimizer.
    """
    path = run / "train.safetensors"
    if not path.exists():
        return 0
    tensors = tensor_io.read_tensors(path)
    saved, given = ("muon" if muon else "adamw" for muon in (_with_prefix(tensors, "muon"), "muon" in optimizers))
    if saved != given:
        raise ValueError(
            f"{run} was started with --train.optimizer {saved}, got {given}; continue with {saved} or use another --run"
        )
    try:
        model.load_state_dict(_with_prefix(tensors, "model"))
        averaged.load_state_dict(_with_prefix(tensors, "averaged"))
        for name, optimizer in optimizers.items():
            tensor_io.unpack_optimizer(optimizer, _with_prefix(tensors, name))
        return tensor_io.read_step(path)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} does not fit the model being trained: {error}") from error


def _with_prefix(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors named ``<name>.*``, without that prefix."""
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def to_device(batch: Any, device: torch.device) -> Any:
    """Return a batch, a tensor or nested tuples of tensors, on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return type(batch)(*(to_device(item, device) for item in batch))
