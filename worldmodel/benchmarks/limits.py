"""What the machine can do at best: products a second, in each precision, and bytes a second; and counts of products."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from worldmodel.benchmarks.settings import Settings
from worldmodel.benchmarks.timing import Contestant, Row, Section, race
from worldmodel.models.precision import multiplies_bfloat16

SIDE, CHANNELS, GRID = 1024, 128, 32  # of the matrices; of the convolution, and the side of its pictures
COPIED = 1 << 26  # bytes, more than a cache holds
GIGA = 10**9


def limits(settings: Settings) -> Section:
    """The matrix product and the 3×3 convolution of torch, in float32 and where it is fast in bfloat16, and a copy."""
    device = settings.world.device
    numbers = torch.empty(COPIED // 4, device=device), torch.empty(COPIED // 4, device=device)
    contestants = []
    for dtype in [torch.float32, torch.bfloat16] if multiplies_bfloat16(device) else [torch.float32]:
        a, b = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
        pictures = torch.randn(4, CHANNELS, GRID, GRID, device=device, dtype=dtype)
        kernels = torch.randn(CHANNELS, CHANNELS, 3, 3, device=device, dtype=dtype)
        pictures, kernels = (x.to(memory_format=torch.channels_last) for x in (pictures, kernels))

        def product(a: Tensor = a, b: Tensor = b) -> Tensor:
            return a @ b

        def convolution(x: Tensor = pictures, kernels: Tensor = kernels) -> Tensor:
            return F.conv2d(x, kernels, padding=1)

        for function in (product, convolution):
            name = f"{function.__name__}, {str(dtype).removeprefix('torch.')}"
            contestants.append(Contestant(name, function, 1, "call", flops_of(function), dtype))
    contestants.append(Contestant("copy of 64 MiB", lambda: numbers[0].copy_(numbers[1]), 1, "call"))
    rows = race(contestants, settings.rounds, settings.watch)
    for row in rows[:-1]:
        row.remark = f"{row.flops / min(row.seconds) / GIGA:,.0f} GFLOP/s at best"
    rows[-1].remark = f"{2 * COPIED / min(rows[-1].seconds) / GIGA:,.1f} GB/s at best, read and written"
    return Section(rows, ["the limit of a precision is the faster one of product and convolution, at best"])


def at_best(rows: list[Row]) -> dict[str, float]:
    """The limit of each precision that was measured, in FLOP a second."""
    best: dict[str, float] = {}
    for row in rows:
        if row.flops:
            best[row.precision] = max(best.get(row.precision, 0.0), row.flops / min(row.seconds))
    return best


def flops_of(function: Callable[[], Any]) -> int:
    """How many additions and multiplications the matrix products, convolutions and attention of one call are."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()
