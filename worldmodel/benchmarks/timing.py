"""Timing of contestants that take turns, so that each ratio compares runs made shortly after each other."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from worldmodel.tables import align_columns

MISSING_PACKAGE = "{} is not installed: needs pip install worldmodel[bench]"


class Contestant(NamedTuple):
    """Something to time: one call of ``run`` produces ``count`` of ``unit``.

    FLOPs are those of the plain network per unit: an implementation that avoids some of them comes closer to the limit.
    """

    name: str
    run: Callable[[], Any]
    count: int = 1
    unit: str = "frame"
    flops: float = 0.0  # per unit; 0 if they do not dominate the time
    dtype: torch.dtype = torch.float32


@dataclass
class Row:
    """Measured seconds per unit of one contestant, one value per round."""

    name: str
    unit: str
    cpu: list[float]
    wall: list[float]
    uses_wall_time: bool = False  # on a GPU, whose work takes no CPU time
    relative_to: str = ""  # name of the row that the ratio compares with
    ratio: float | None = None  # median over rounds
    remark: str = ""
    flops: float = 0.0  # per unit
    precision: str = "float32"
    fraction_of_limit: float | None = None  # FLOP/s relative to the limit of the machine

    @property
    def seconds(self) -> list[float]:
        """CPU times, or wall times if the ratio uses them."""
        return self.wall if self.uses_wall_time else self.cpu

    def summary(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        times = {
            f"{name}_seconds": {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for name, values in (("cpu", self.cpu), ("wall", self.wall))
        }
        result = {"name": self.name, "unit": self.unit, "rounds": len(self.cpu), **times}
        names = ("ratio", "relative_to", "remark", "flops", "precision", "fraction_of_limit")
        return result | {name: getattr(self, name) for name in names}


@dataclass
class Section:
    """Rows measured by one section, and remarks on them."""

    rows: list[Row]
    remarks: list[str] = field(default_factory=list)


class Stopwatch:
    """CPU seconds by ``clock`` and wall seconds, read after pending work of the device is done."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.process_time) -> None:
        self.device, self.clock = device, clock

    def read(self) -> tuple[float, float]:
        """Return CPU and wall seconds since an arbitrary start."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock(), time.perf_counter()


def race(contestants: Sequence[Contestant], rounds: int, watch: Stopwatch) -> list[Row]:
    """Run each contestant once to warm up, then all in turn for ``rounds`` rounds, reversing the order every round.

    Returns:
        A row per contestant, with ratios to the first.
    """
    uses_wall_time = watch.device.type == "cuda"
    rows = [
        Row(c.name, c.unit, [], [], uses_wall_time, flops=c.flops, precision=str(c.dtype).removeprefix("torch."))
        for c in contestants
    ]
    pairs = list(zip(contestants, rows, strict=True))
    with tqdm(total=(rounds + 1) * len(pairs), unit="run", leave=False) as bar:
        for number in range(rounds + 1):
            for contestant, row in pairs[:: -1 if number % 2 else 1]:
                bar.set_description(contestant.name, refresh=False)
                start = watch.read()
                contestant.run()
                cpu, wall = (after - before for after, before in zip(watch.read(), start, strict=True))
                if number:
                    row.cpu.append(cpu / contestant.count)
                    row.wall.append(wall / contestant.count)
                bar.update()
    return add_ratios(rows)


def add_ratios(rows: list[Row]) -> list[Row]:
    """Set the ratio of each row to the first row, the median of ratios within rounds."""
    for row in rows:
        row.relative_to = rows[0].name
        row.ratio = statistics.median(a / b for a, b in zip(row.seconds, rows[0].seconds, strict=True))
    return rows


@contextmanager
def use_threads(number: int) -> Iterator[None]:
    """Set the number of CPU threads of torch, and restore it afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def format_rows(rows: Sequence[Row]) -> str:
    """Return a text table of milliseconds per unit, units per second, ratios and fractions of the limit."""
    heading = ("", "unit", "ms", "min", "max", "per second", "by wall time", "ratio", "of the limit", "")
    cells: list[tuple[str, ...]] = [heading]
    for row in rows:
        median, wall = statistics.median(row.seconds), statistics.median(row.wall)
        milliseconds = (f"{1000 * value:.4g}" for value in (median, min(row.seconds), max(row.seconds)))
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        rates = (f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}" for rate in (1 / median, 1 / wall))
        fraction = "" if row.fraction_of_limit is None else f"{row.fraction_of_limit:.0%}"
        cells.append((row.name, row.unit, *milliseconds, *rates, ratio, fraction, row.remark))
    return align_columns(cells, {0, 1, len(heading) - 1})
