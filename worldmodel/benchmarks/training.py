"""Time of training steps, measured in the training loop itself."""

import copy
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worldmodel.benchmarks.limits import count_flops
from worldmodel.benchmarks.settings import Settings
from worldmodel.benchmarks.timing import Row, Section, add_ratios
from worldmodel.models.config import Precision
from worldmodel.models.dynamics import Batch
from worldmodel.models.precision import has_native_bfloat16
from worldmodel.train_config import TrainConfig
from worldmodel.training import fit, to_device

NUM_SEGMENTS, SEGMENT_LENGTH = 2, 10  # per batch of the dynamics model, as in worldmodel.train
NUM_FRAMES = 32  # per batch of the VQ-VAE


def training(settings: Settings) -> Section:
    """Time training copies of the dynamics model and the VQ-VAE, in float32 and, if the hardware has it, in bfloat16.

    The codes are random, which does not change the time. Reading a store is a separate section.
    """
    world, config = settings.world, settings.world.dynamics.config
    random, steps = torch.Generator().manual_seed(0), (NUM_SEGMENTS, SEGMENT_LENGTH - 1)
    codes = torch.randint(config.codebook_size, (NUM_SEGMENTS, SEGMENT_LENGTH, *config.grid), generator=random)
    actions = torch.randint(len(world.action_names), steps, generator=random)
    valid = (torch.ones(codes.shape[:2], dtype=torch.bool), torch.ones(steps, dtype=torch.bool))
    segments = Batch(codes, actions, torch.zeros(steps), torch.zeros(steps), *valid)
    frames = world.clip()[0][0].repeat(NUM_FRAMES, 1, 1, 1)[:NUM_FRAMES]
    predicted = codes[:, 1:].numel()
    precisions: list[Precision] = ["float32", "bfloat16"] if has_native_bfloat16(world.device) else ["float32"]
    rows = []
    for name, network, batch, count, unit in (
        ("dynamics", world.dynamics, segments, predicted, "code"),
        ("VQ-VAE", world.vqvae, frames, NUM_FRAMES, "frame"),
    ):
        work = (settings, network, batch, count, unit)
        rows += add_ratios([_time_training(f"{name}, {precision}", precision, *work) for precision in precisions])
    frames = predicted // config.grid[0] // config.grid[1]
    return Section(rows, [f"a training step of the dynamics model predicts {predicted:,} codes, {frames} frames"])


def _time_training(
    name: str, precision: Precision, settings: Settings, network: nn.Module, batch: Any, count: int, unit: str
) -> Row:
    """Time whole steps of :func:`worldmodel.training.fit`, from batch to batch; the first step warms up."""
    device, watch, ticks = settings.world.device, settings.stopwatch, []

    def next_batch(*_: int) -> Any:
        ticks.append(watch.read())
        return batch

    def evaluate(network: nn.Module, step: int) -> dict[str, float]:  # called after the last step
        ticks.append(watch.read())
        return {}

    steps = settings.rounds + 1
    config = TrainConfig(steps=steps, log_every=steps, evaluate_every=steps, device=device.type, precision=precision)
    learner, moved = copy.deepcopy(network).train(), to_device(batch, device)
    flops = count_flops(lambda: learner(moved, torch.Generator(device).manual_seed(0))[0].backward()) / count
    with tempfile.TemporaryDirectory() as folder:
        fit(learner, next_batch, evaluate, config, Path(folder))
    cpu, wall = ([(b - a) / count for a, b in pairwise(times)][1:] for times in zip(*ticks, strict=True))
    return Row(name, unit, cpu, wall, device.type == "cuda", flops=flops, precision=precision)
