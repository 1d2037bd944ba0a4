"""Time of sampling the codes of an image with a gated PixelCNN."""

from functools import partial

import torch
from torch import Tensor, nn

from worldmodel.benchmarks.limits import count_flops
from worldmodel.benchmarks.peers import sample_without_cache
from worldmodel.benchmarks.settings import Settings
from worldmodel.benchmarks.timing import Contestant, Row, Section, race
from worldmodel.models.autoregressive.pixelcnn import PixelCNN
from worldmodel.models.autoregressive.sampling import sample_categorical
from worldmodel.models.autoregressive.wavefront import WavefrontNet

GRID, CODEBOOK_SIZE, CODE_DIM = (32, 32), 512, 64
NET_SIZES, BATCH_SIZES = ((64, 10), (128, 12)), (1, 16)  # channels and layers
NUM_PASSES = 2  # timed full passes, one per code; all cost the same


@torch.no_grad()
def pixelcnn(settings: Settings) -> Section:
    """Time sampling grids of codes with cached activations and with a full pass per code.

    The weights are random, which does not change the time.
    """
    rows, remarks = [], []
    for hidden, layers in NET_SIZES:
        for batch in BATCH_SIZES:
            found, equal = _race_nets(settings, hidden, layers, batch)
            rows += found
            count = batch * GRID[0] * GRID[1]
            remarks.append(f"{hidden} channels, {layers} layers, batch {batch}: {equal:,} of {count:,} codes equal")
    remarks.append(f"{GRID[0]} x {GRID[1]} codes of {CODEBOOK_SIZE}; the wavefront network sees less context")
    return Section(rows, remarks)


def _race_nets(settings: Settings, hidden: int, layers: int, batch: int) -> tuple[list[Row], int]:
    """Time networks of one size; also return how many codes are equal with and without the cache."""
    device, random = settings.world.device, torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    cnn, wavefront = (
        kind(nn.Embedding(CODEBOOK_SIZE, CODE_DIM), hidden, hidden, layers).to(device)
        for kind in (PixelCNN, WavefrontNet)
    )
    condition = torch.randn(batch, *GRID, hidden, generator=random).to(device)
    uniforms = torch.rand(batch, *GRID, generator=random).to(device)
    # One parallel pass predicts each code from those before it, as a pass per code would if it sampled the same ones.
    codes = cnn.sample(condition, uniforms)
    equal = int((sample_categorical(cnn(codes, condition), uniforms, 1.0) == codes).sum())

    def with_cache() -> Tensor:
        return cnn.sample(condition, uniforms)

    def by_full_passes() -> Tensor:
        return sample_without_cache(cnn, condition, uniforms, positions=NUM_PASSES)

    def by_wavefronts() -> Tensor:
        return wavefront.sample(condition, uniforms)

    name = f"{hidden}, {layers}, batch {batch}"
    whole = [count_flops(partial(network, codes, condition)) for network in (cnn, wavefront)]
    each = [cost / codes.numel() for cost in whole]
    contestants = [
        Contestant(f"{name}: cached", with_cache, codes.numel(), "code", each[0]),
        Contestant(f"{name}: a full pass per code", by_full_passes, batch * NUM_PASSES, "code", whole[0] / batch),
        Contestant(f"{name}: wavefront network", by_wavefronts, codes.numel(), "code", each[1]),
    ]
    return race(contestants, settings.rounds, settings.stopwatch), equal
