"""Time of sampling audio with a WaveNet."""

import statistics

import torch
from torch import Tensor, nn

from worldmodel.benchmarks.limits import count_flops
from worldmodel.benchmarks.peers import sample_without_cache
from worldmodel.benchmarks.settings import Settings
from worldmodel.benchmarks.timing import Contestant, Row, Section, race
from worldmodel.experiments.speech.model import MIN_CONDITION_HOP, MU_LAW_LEVELS
from worldmodel.models.autoregressive.sampling import sample_categorical
from worldmodel.models.autoregressive.wavenet import WaveNet

NET_SIZE = (64, 128, 16, 8)  # channels, skip channels, layers and dilation cycle
SAMPLES, BATCH_SIZES, RATES_KHZ = 4000, (1, 16), (8, 16)
NUM_PASSES = 2  # timed full passes, one per sample; all cost the same


@torch.no_grad()
def wavenet(settings: Settings) -> Section:
    """Time sampling audio with cached activations and with a full pass per sample.

    The weights are random, which does not change the time.
    """
    rows, remarks = [], []
    channels, skip, layers, cycle = NET_SIZE
    torch.manual_seed(0)
    network = WaveNet(nn.Embedding(MU_LAW_LEVELS, skip), channels, channels, layers, cycle).to(settings.world.device)
    for batch in BATCH_SIZES:
        found, equal = _race_batch(settings, network, batch)
        rows += found
        remarks.append(f"batch {batch}: {equal:,} of {batch * SAMPLES:,} samples equal")
    remarks.append(
        f"{channels} channels, {layers} layers, {skip} skip channels; a full pass covers the receptive field of "
        f"{network.receptive_field} samples"
    )
    return Section(rows, remarks)


def _race_batch(settings: Settings, network: WaveNet, batch: int) -> tuple[list[Row], int]:
    """Time one batch size; also return how many samples are equal with and without the cache."""
    random, device = torch.Generator().manual_seed(0), settings.world.device
    shape = (batch, SAMPLES // MIN_CONDITION_HOP, network.condition.in_features)
    condition = torch.randn(shape, generator=random).to(device)
    uniforms = torch.rand(batch, SAMPLES, generator=random).to(device)
    # One parallel pass predicts each sample from those before it, as a pass per sample would if it sampled the same.
    samples = network.sample(condition, uniforms)
    equal = int((sample_categorical(network(samples, condition), uniforms, 1.0) == samples).sum())
    window = -(-network.receptive_field // MIN_CONDITION_HOP)  # conditions in the receptive field

    def with_cache() -> Tensor:
        return network.sample(condition, uniforms)

    def by_full_passes() -> Tensor:
        part = uniforms[:, :1].expand(-1, window * MIN_CONDITION_HOP)
        return sample_without_cache(network, condition[:, :1].expand(-1, window, -1), part, positions=NUM_PASSES)

    each = count_flops(lambda: network(samples, condition)) / samples.numel()
    full, name = each * window * MIN_CONDITION_HOP, f"batch {batch}"
    contestants = [
        Contestant(f"{name}: cached", with_cache, samples.numel(), "sample", each),
        Contestant(f"{name}: a full pass per sample", by_full_passes, batch * NUM_PASSES, "sample", full),
    ]
    rows = race(contestants, settings.rounds, settings.stopwatch)
    for row in rows:
        speed = 1e-3 / statistics.median(row.seconds)  # thousands of samples per second
        factors = " and ".join(f"{speed / rate:.2g} at {rate} kHz" for rate in RATES_KHZ)
        row.remark = f"{'total ' * (batch > 1)}speed relative to real time: {factors}"
    return rows, equal
