"""Settings of the training loop."""

from dataclasses import dataclass
from typing import Literal

from worldmodel.checks import check_ranges
from worldmodel.models.config import Precision

# Settings that may differ between runs of one experiment
RUN_SETTINGS = ("seed", "allow_changes", "device", "threads", "data_workers", "log_every", "evaluate_every")


@dataclass(frozen=True)
class TrainConfig:
    """Optimizer, learning rate schedule, logging and device of a training run.

    Attributes:
        steps: total number of training steps.
        optimizer: adamw, or muon for the weight matrices and kernels of hidden layers and AdamW for the rest.
        learning_rate: peak learning rate, between a linear warm-up and a linear decay to zero.
        warmup_steps: number of steps of linear warm-up.
        decay_fraction: fraction of the steps, at the end, over which the learning rate decays, in [0, 1].
        weight_decay: decoupled weight decay of weight matrices and kernels.
        grad_clip: maximum gradient norm.
        ema_decay: decay, in [0, 1], of the weight average that is saved as model.safetensors; 0 disables averaging.
        log_every: number of steps between log entries.
        evaluate_every: number of steps between evaluations, each of which also saves a checkpoint.
        seed: random seed of the initial weights, the batches and all sampling.
        allow_changes: allow an existing run to continue with another store, batch size or other data setting, or seed.
        device: training device: cpu, cuda, or auto for cuda if available.
        threads: number of CPU threads of torch; 0 for torch's default.
        data_workers: number of processes that load batches ahead, for a GPU that would wait for them; 0 for none.
        precision: number format of activations; auto for bfloat16 on hardware that has it (CUDA, AVX512-BF16, AMX).
    """

    steps: int = 10_000
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 4e-4
    warmup_steps: int = 200
    decay_fraction: float = 0.5
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    ema_decay: float = 0.998
    log_every: int = 50
    evaluate_every: int = 1000
    seed: int = 0
    allow_changes: bool = False
    device: str = "auto"
    threads: int = 0
    data_workers: int = 0
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        counts, weights = (
            ("steps", "log_every", "evaluate_every"),
            ("warmup_steps", "weight_decay", "threads", "data_workers", "seed"),
        )
        check_ranges(
            "train",
            self,
            counts,
            weights,
            positive=("learning_rate", "grad_clip"),
            fractions=("decay_fraction", "ema_decay"),
        )

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        decay = (self.steps - step) / max(1, self.decay_fraction * self.steps)
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps), decay)
