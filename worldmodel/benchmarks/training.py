"""What training costs: the package's own loop, timed from batch to batch."""

import copy
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worldmodel.benchmarks.limits import flops_of
from worldmodel.benchmarks.settings import Settings, clip
from worldmodel.benchmarks.timing import Row, Section, beside_first
from worldmodel.models.dynamics import Batch
from worldmodel.models.precision import multiplies_bfloat16
from worldmodel.training import TrainConfig, fit

STRETCHES, LENGTH = 2, 10  # of a prior's batch, as worldmodel.train has it
FRAMES = 32  # of a VQ-VAE's


def training(settings: Settings) -> Section:
    """Train copies of the world's prior and VQ-VAE, in float32 and in bfloat16 where the hardware multiplies it.

    The codes are random: what they are costs nothing. Reading a store is a section of its own.
    """
    world, config = settings.world, settings.world.dynamics.config
    random, steps = torch.Generator().manual_seed(0), (STRETCHES, LENGTH - 1)
    codes = torch.randint(config.codes, (STRETCHES, LENGTH, *config.grid), generator=random)
    actions = torch.randint(len(world.action_names), steps, generator=random)
    frames_valid, steps_valid = torch.ones(STRETCHES, LENGTH, dtype=torch.bool), torch.ones(steps, dtype=torch.bool)
    stretches = Batch(codes, actions, torch.zeros(steps), torch.zeros(steps), frames_valid, steps_valid)
    frames = clip(world)[0].repeat(FRAMES, 1, 1, 1)[:FRAMES]
    predicted = codes[:, 1:].numel()
    precisions = ["float32", "bfloat16"] if multiplies_bfloat16(world.device) else ["float32"]
    rows = []
    for name, network, batch, count, unit in (
        ("prior", world.dynamics, stretches, predicted, "code"),
        ("VQ-VAE", world.vqvae, frames, FRAMES, "frame"),
    ):
        work = (network, batch, count, unit)
        rows += beside_first([_train(f"{name}, {precision}", *work, precision, settings) for precision in precisions])
    remark = f"a step of the prior predicts {predicted:,} codes, {predicted // config.grid[0] // config.grid[1]} frames"
    return Section(rows, [remark])


def _train(name: str, network: nn.Module, batch: Any, count: int, unit: str, precision: str, settings: Settings) -> Row:
    """Time whole steps of :func:`worldmodel.training.fit`, from one batch to the next; the first warms up."""
    device, watch, ticks = settings.world.device, settings.watch, []

    def next_batch(*_: int) -> Any:
        ticks.append(watch.read())
        return batch

    def evaluate(network: nn.Module, step: int) -> dict[str, float]:  # after the last step
        ticks.append(watch.read())
        return {}

    steps = settings.rounds + 1
    config = TrainConfig(steps=steps, log_every=steps, evaluate_every=steps, device=device.type, precision=precision)
    learner = copy.deepcopy(network).train()
    flops = flops_of(lambda: learner(batch, torch.Generator(device).manual_seed(0))[0].backward()) / count
    with tempfile.TemporaryDirectory() as folder:
        fit(learner, next_batch, evaluate, config, Path(folder))
    cpu, wall = ([(b - a) / count for a, b in pairwise(times)][1:] for times in zip(*ticks, strict=True))
    return Row(name, unit, cpu, wall, device.type == "cuda", flops=flops, precision=precision)
