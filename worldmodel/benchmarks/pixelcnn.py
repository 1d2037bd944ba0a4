"""What it costs to draw the codes of a picture with a gated PixelCNN."""

from functools import partial

import torch
from torch import Tensor, nn

from worldmodel.benchmarks.limits import flops_of
from worldmodel.benchmarks.peers import sample_by_full_passes
from worldmodel.benchmarks.settings import Settings
from worldmodel.benchmarks.timing import Contestant, Row, Section, race
from worldmodel.models.autoregressive.pixelcnn import PixelCNN
from worldmodel.models.autoregressive.sampling import draw
from worldmodel.models.autoregressive.wavefront import WavefrontNet

GRID, CODES, DIM = (32, 32), 512, 64
SIZES, BATCHES = ((64, 10), (128, 12)), (1, 16)  # channels and layers
PASSES = 2  # timed full passes; each draws a code, and all cost the same


@torch.no_grad()
def pixelcnn(settings: Settings) -> Section:
    """Draw grids of codes with what was worked out before kept, and with a full pass for each code.

    The weights are random: what they are costs nothing.
    """
    rows, remarks = [], []
    for hidden, layers in SIZES:
        for batch in BATCHES:
            found, equal = _sizes(settings, hidden, layers, batch)
            rows += found
            count = batch * GRID[0] * GRID[1]
            remarks.append(f"{hidden} channels, {layers} layers, batch {batch}: {equal:,} of {count:,} codes equal")
    remarks.append(f"{GRID[0]} x {GRID[1]} codes, {CODES} in the book; the wavefront net sees less of a picture")
    return Section(rows, remarks)


def _sizes(settings: Settings, hidden: int, layers: int, batch: int) -> tuple[list[Row], int]:
    """The times of nets of one size, and how many codes a full pass draws as they were drawn with what was kept."""
    device, random = settings.world.device, torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    cnn, front = (net(nn.Embedding(CODES, DIM), hidden, hidden, layers).to(device) for net in (PixelCNN, WavefrontNet))
    condition = torch.randn(batch, *GRID, hidden, generator=random).to(device)
    uniforms = torch.rand(batch, *GRID, generator=random).to(device)
    # Each position of this pass is told the codes before it: what a pass for each code would have been told, so long as
    # it drew the same ones.
    codes = cnn.sample(condition, uniforms)
    equal = int((draw(cnn(codes, condition), uniforms, 1.0) == codes).sum())

    def keeping() -> Tensor:
        return cnn.sample(condition, uniforms)

    def by_full_passes() -> Tensor:
        return sample_by_full_passes(cnn, condition, uniforms, positions=PASSES)

    def by_wavefronts() -> Tensor:
        return front.sample(condition, uniforms)

    name = f"{hidden}, {layers}, batch {batch}"
    whole = [flops_of(partial(net, codes, condition)) for net in (cnn, front)]
    each = [cost / codes.numel() for cost in whole]
    contestants = [
        Contestant(f"{name}: what was seen is kept", keeping, codes.numel(), "code", each[0]),
        Contestant(f"{name}: a full pass for each code", by_full_passes, batch * PASSES, "code", whole[0] / batch),
        Contestant(f"{name}: wavefront net", by_wavefronts, codes.numel(), "code", each[1]),
    ]
    return race(contestants, settings.rounds, settings.watch), equal
