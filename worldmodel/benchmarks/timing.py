"""The stopwatch of every section: contestants take turns, so that a ratio is of runs beside each other."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from worldmodel.tables import aligned

NEEDS = "{} is not installed: needs pip install worldmodel[bench]"


class Contestant(NamedTuple):
    """Something to time: one call of ``run`` makes ``count`` of ``unit``, each of so many FLOPs in a precision.

    FLOPs are those of the plain network: whoever finds a way round some of them reaches a larger share of the limit.
    """

    name: str
    run: Callable[[], Any]
    count: int = 1
    unit: str = "frame"
    flops: float = 0.0  # 0 where they are not what it spends its time on
    dtype: torch.dtype = torch.float32


@dataclass
class Row:
    """What a contestant took: seconds a unit, one number a round."""

    name: str
    unit: str
    cpu: list[float]
    wall: list[float]
    by_wall: bool = False  # what the ratio is of: the work of a GPU takes no CPU time
    beside: str = ""  # the row that the ratio is to
    ratio: float | None = None  # median over rounds
    remark: str = ""
    flops: float = 0.0  # of a unit
    precision: str = "float32"
    share: float | None = None  # of the machine's limit

    @property
    def seconds(self) -> list[float]:
        """The times that count."""
        return self.wall if self.by_wall else self.cpu

    def summary(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        times = {
            f"{name}_seconds": {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for name, values in (("cpu", self.cpu), ("wall", self.wall))
        }
        said = {"ratio": self.ratio, "beside": self.beside, "remark": self.remark}
        said |= {"flops": self.flops, "precision": self.precision, "share_of_limit": self.share}
        return {"name": self.name, "unit": self.unit, "rounds": len(self.cpu), **times, **said}


@dataclass
class Section:
    """What one section measured, and what there is to say about it."""

    rows: list[Row]
    remarks: list[str] = field(default_factory=list)


class Stopwatch:
    """CPU seconds by ``clock`` and wall seconds, read when the device has done what it was given."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.process_time) -> None:
        self.device, self.clock = device, clock

    def read(self) -> tuple[float, float]:
        """CPU and wall seconds since some moment in the past."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock(), time.perf_counter()


def race(contestants: Sequence[Contestant], rounds: int, watch: Stopwatch) -> list[Row]:
    """Run each once to warm up, then all in turn for so many rounds, every other one backwards.

    Returns:
        A row each, with ratios to the first.
    """
    by_wall = watch.device.type == "cuda"
    rows = [
        Row(c.name, c.unit, [], [], by_wall, flops=c.flops, precision=str(c.dtype).removeprefix("torch."))
        for c in contestants
    ]
    pairs = list(zip(contestants, rows, strict=True))
    with tqdm(total=(rounds + 1) * len(pairs), unit="run", leave=False) as bar:
        for number in range(rounds + 1):
            for contestant, row in pairs[:: -1 if number % 2 else 1]:
                bar.set_description(contestant.name, refresh=False)
                began = watch.read()
                contestant.run()
                cpu, wall = (after - before for after, before in zip(watch.read(), began, strict=True))
                if number:
                    row.cpu.append(cpu / contestant.count)
                    row.wall.append(wall / contestant.count)
                bar.update()
    return beside_first(rows)


def beside_first(rows: list[Row]) -> list[Row]:
    """Give rows of as many rounds each their ratios to the first one, round by round."""
    for row in rows:
        row.beside = rows[0].name
        row.ratio = statistics.median(a / b for a, b in zip(row.seconds, rows[0].seconds, strict=True))
    return rows


@contextmanager
def on_threads(number: int) -> Iterator[None]:
    """Let torch use so many threads on the CPU, and then what it used before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def table(rows: Sequence[Row]) -> str:
    """Rows as aligned text: milliseconds a unit, units a second of that time and of the clock, ratios and shares."""
    heading = ("", "unit", "ms", "min", "max", "per second", "by the clock", "ratio", "of the limit", "")
    cells = [heading]
    for row in rows:
        median, by_the_clock = statistics.median(row.seconds), statistics.median(row.wall)
        milliseconds = (f"{1000 * value:.4g}" for value in (median, min(row.seconds), max(row.seconds)))
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        rates = (f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}" for rate in (1 / median, 1 / by_the_clock))
        share = "" if row.share is None else f"{row.share:.0%}"
        cells.append((row.name, row.unit, *milliseconds, *rates, ratio, share, row.remark))
    return aligned(cells, {0, 1, len(heading) - 1})
