"""What it costs to draw the samples of a sound with a WaveNet."""

import statistics

import torch
from torch import Tensor, nn

from worldmodel.benchmarks.limits import flops_of
from worldmodel.benchmarks.peers import sample_by_full_passes
from worldmodel.benchmarks.settings import Settings
from worldmodel.benchmarks.timing import Contestant, Row, Section, race
from worldmodel.experiments.speech.model import LEVELS, TOLD_EVERY
from worldmodel.models.autoregressive.sampling import draw
from worldmodel.models.autoregressive.wavenet import WaveNet

SIZES = (64, 128, 16, 8)  # channels, skip channels, layers and the cycle of their distances
LENGTH, BATCHES, RATES = 4000, (1, 16), (8, 16)  # samples, sounds at a time, kHz
PASSES = 2  # timed full passes; each draws a sample, and all cost the same


@torch.no_grad()
def wavenet(settings: Settings) -> Section:
    """Draw sounds with what was worked out before kept, and with a full pass for each sample.

    The weights are random: what they are costs nothing.
    """
    rows, remarks = [], []
    channels, skip, layers, cycle = SIZES
    torch.manual_seed(0)
    net = WaveNet(nn.Embedding(LEVELS, skip), channels, channels, layers, cycle).to(settings.world.device)
    for batch in BATCHES:
        found, equal = _batch(settings, net, batch)
        rows += found
        remarks.append(f"batch {batch}: {equal:,} of {batch * LENGTH:,} samples equal")
    remarks.append(
        f"{channels} channels, {layers} layers, {skip} skip channels; a sample depends on {net.receptive_field} before "
        "it, which is what a full pass is over"
    )
    return Section(rows, remarks)


def _batch(settings: Settings, net: WaveNet, batch: int) -> tuple[list[Row], int]:
    """The times of so many sounds, and how many samples a full pass draws as they were drawn with what was kept."""
    random, device = torch.Generator().manual_seed(0), settings.world.device
    condition = torch.randn(batch, LENGTH // TOLD_EVERY, net.condition.in_features, generator=random).to(device)
    uniforms = torch.rand(batch, LENGTH, generator=random).to(device)
    # Each position of this pass is told the samples before it: what a pass for each sample would have been told, so
    # long as it drew the same ones.
    samples = net.sample(condition, uniforms)
    equal = int((draw(net(samples, condition), uniforms, 1.0) == samples).sum())
    reach = -(-net.receptive_field // TOLD_EVERY)  # conditions

    def keeping() -> Tensor:
        return net.sample(condition, uniforms)

    def by_full_passes() -> Tensor:
        window = uniforms[:, :1].expand(-1, reach * TOLD_EVERY)
        return sample_by_full_passes(net, condition[:, :1].expand(-1, reach, -1), window, positions=PASSES)

    each = flops_of(lambda: net(samples, condition)) / samples.numel()
    window = each * reach * TOLD_EVERY
    contestants = [
        Contestant(f"batch {batch}: what was seen is kept", keeping, samples.numel(), "sample", each),
        Contestant(f"batch {batch}: a full pass for each sample", by_full_passes, batch * PASSES, "sample", window),
    ]
    rows = race(contestants, settings.rounds, settings.watch)
    for row in rows:
        speed = 1e-3 / statistics.median(row.seconds)  # thousands of samples a second
        factors = " and ".join(f"{speed / rate:.2g} at {rate} kHz" for rate in RATES)
        row.remark = f"{'together, ' * (batch > 1)}times as fast as it sounds: {factors}"
    return rows, equal
