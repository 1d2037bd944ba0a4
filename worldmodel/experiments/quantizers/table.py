"""Quantizers compared over several seeds: scores of runs, their moments, a table and a plot."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from worldmodel import checkpoint
from worldmodel.evaluation import plots
from worldmodel.metrics import interval, moments
from worldmodel.tables import aligned

BASELINE = "ema"  # hard EMA, which the others are beside
SCORES = {  # and the decimals of each
    "nmse": 4,
    "psnr": 2,
    "perplexity": 1,
    "codes_used": 0,
    "nmse_drawn": 4,  # of soft EM alone: from the mean of its m codes, as it learns
    "learnt": 4,
}
LABELS = {"nmse": "squared error / variance", "perplexity": "perplexity"}


class Arm(NamedTuple):
    """What runs that differ in their seeds alone have in common."""

    codes: int
    quantizer: str
    start: str  # empty for gumbel and semhash

    @property
    def name(self) -> str:
        """Such as 512-ema-kmeans, which is also the folder of its runs."""
        return "-".join(filter(None, (str(self.codes), self.quantizer, self.start)))

    def run(self, out: Path, seed: int) -> Path:
        """The folder of one of its runs."""
        return out / self.name / f"seed-{seed}"


def scores(run: Path, steps: int) -> dict[str, Any]:
    """What a finished run reached: the last held-out scores, and the relative error on what it learnt from.

    The latter, ``learnt``, is the mean of the last tenth of the run, with the noise of training.

    Raises:
        ValueError: if it was not measured after so many steps.
    """
    lines = checkpoint.read_metrics(run)
    last = next((line for line in lines if line["part"] == "held_out" and line["step"] == steps), None)
    if last is None:
        raise ValueError(f"{run} was not measured at step {steps}; give the --train.steps it had, or another --out")
    learnt = [line["reconstruction_error"] for line in lines if line["part"] == "train" and line["step"] > 0.9 * steps]
    return {"run": f"{run.parent.name}/{run.name}", **last, "learnt": sum(learnt) / max(1, len(learnt))}


def summary(found: dict[Arm, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """For each arm the moments of its scores, ``beside``, and its runs.

    ``beside`` is the relative error less that of hard EMA with the same K, start and seed: mean, 95 % interval, and in
    how many of the runs it is lower. An arm without a start stands beside hard EMA's first.
    """
    rows = []
    for arm, runs in found.items():
        starts = [other.start for other in found if other.quantizer == BASELINE and other.codes == arm.codes]
        baseline = arm.start if arm.start in starts else next(iter(starts), "")
        row = {**arm._asdict(), **{name: moments(_column(runs, name)) for name in SCORES if name in runs[0]}}
        if starts and arm.quantizer != BASELINE:
            more = _column(runs, "nmse") - _column(found[Arm(arm.codes, BASELINE, baseline)], "nmse")
            row["beside"] = {"start": baseline, **interval(more), "lower": int((more < 0).sum())}
        rows.append({**row, "runs": runs})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """A summary as text: mean ± standard deviation of each score, and the least and the most of those in LABELS."""
    cells = [["K", "quantizer", "start"]]
    for name in SCORES:
        cells[0] += [name, "least", "most"] if name in LABELS else [name]
    cells[0] += [f"nmse less {BASELINE}'s", "lower in"]
    for row in rows:
        line = [str(row["codes"]), row["quantizer"], row["start"]]
        for name, decimals in SCORES.items():
            found = [f"{value:.{decimals}f}" for value in row[name].values()] if name in row else []
            line += [" ± ".join(found[:2]), *(found[2:] if name in LABELS else [])]
        if "beside" in row:
            mean, low, high = (f"{row['beside'][name]:+.4f}" for name in ("mean", "low", "high"))
            line += [f"{mean} ({low} to {high})", f"{row['beside']['lower']} of {len(row['runs'])}"]
        cells.append(line + [""] * (len(cells[0]) - len(line)))
    return aligned(cells, {1, 2})


def plot(rows: list[dict[str, Any]]) -> Figure:
    """Relative error and perplexity of all runs; a row of panels for each K."""
    sizes = list(dict.fromkeys(row["codes"] for row in rows))
    figure = Figure((11, 3.4 * len(sizes)))
    for panels, number in zip(figure.subplots(len(sizes), 2, squeeze=False), sizes, strict=True):
        mine = [row for row in rows if row["codes"] == number]
        for axes, name in zip(panels, LABELS, strict=True):
            values = {(row["quantizer"], row["start"] or "no codebook"): _column(row["runs"], name) for row in mine}
            plots.spreads(axes, values, f"{LABELS[name]}, K = {number}")
        panels[1].set_yscale("log")
    return figure


def _column(runs: list[dict[str, Any]], name: str) -> Tensor:
    return torch.tensor([run[name] for run in runs], dtype=torch.float64)
