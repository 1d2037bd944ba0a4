"""Limits of the machine: peak FLOP/s in each precision and copied bytes per second; and FLOP counting."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from worldmodel.benchmarks.settings import Settings
from worldmodel.benchmarks.timing import Contestant, Row, Section, race
from worldmodel.models.precision import has_native_bfloat16

MATRIX_SIZE, CHANNELS, IMAGE_SIZE = 1024, 128, 32  # matrix side; channels and image side of the convolution
COPY_BYTES = 1 << 26  # more than a cache holds
GIGA = 10**9


def limits(settings: Settings) -> Section:
    """Time a matrix product and a 3×3 convolution, in float32 and native bfloat16, and a copy of memory."""
    device = settings.world.device
    numbers = torch.empty(COPY_BYTES // 4, device=device), torch.empty(COPY_BYTES // 4, device=device)
    contestants = []
    for dtype in [torch.float32, torch.bfloat16] if has_native_bfloat16(device) else [torch.float32]:
        a, b = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device, dtype=dtype) for _ in range(2))
        images = torch.randn(4, CHANNELS, IMAGE_SIZE, IMAGE_SIZE, device=device, dtype=dtype)
        kernels = torch.randn(CHANNELS, CHANNELS, 3, 3, device=device, dtype=dtype)
        images, kernels = (x.to(memory_format=torch.channels_last) for x in (images, kernels))

        def product(a: Tensor = a, b: Tensor = b) -> Tensor:
            return a @ b

        def convolution(x: Tensor = images, kernels: Tensor = kernels) -> Tensor:
            return F.conv2d(x, kernels, padding=1)

        for function in (product, convolution):
            name = f"{function.__name__}, {str(dtype).removeprefix('torch.')}"
            contestants.append(Contestant(name, function, 1, "call", count_flops(function), dtype))
    contestants.append(Contestant("copy of 64 MiB", lambda: numbers[0].copy_(numbers[1]), 1, "call"))
    rows = race(contestants, settings.rounds, settings.stopwatch)
    for row in rows[:-1]:
        row.remark = f"{row.flops / min(row.seconds) / GIGA:,.0f} GFLOP/s at best"
    rows[-1].remark = f"{2 * COPY_BYTES / min(rows[-1].seconds) / GIGA:,.1f} GB/s at best, reads and writes together"
    return Section(rows, ["the limit of a precision is the best speed of product and convolution"])


def peak_flops(rows: list[Row]) -> dict[str, float]:
    """Return the measured limit of each precision in FLOP/s."""
    best: dict[str, float] = {}
    for row in rows:
        if row.flops:
            best[row.precision] = max(best.get(row.precision, 0.0), row.flops / min(row.seconds))
    return best


def count_flops(function: Callable[[], Any]) -> int:
    """Count the additions and multiplications of matrix products, convolutions and attention in one call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()
