"""Comparison of quantizers over several seeds: scores of runs, their statistics, a table and a plot."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from worldmodel import checkpoint
from worldmodel.evaluation import plots
from worldmodel.stats import descriptive_stats, t_interval
from worldmodel.tables import align_columns

BASELINE = "ema"  # which the other quantizers are compared with
SCORE_DECIMALS = {  # decimals of each score in the table
    "nmse": 4,
    "psnr": 2,
    "perplexity": 1,
    "codes_used": 0,
    "nmse_drawn": 4,  # of soft EM only: from the mean of m sampled codes, as in training
    "nmse_train": 4,
}
PLOT_LABELS = {"nmse": "squared error / variance", "perplexity": "perplexity"}


class Variant(NamedTuple):
    """A quantizer, codebook size and initial codebook; its runs differ only in their seeds."""

    codebook_size: int
    quantizer: str
    start: str  # empty for gumbel and semhash

    @property
    def name(self) -> str:
        """Name such as 512-ema-kmeans, which is also the folder of the runs."""
        return "-".join(filter(None, (str(self.codebook_size), self.quantizer, self.start)))

    def run_folder(self, out: Path, seed: int) -> Path:
        """Return the folder of the run with this seed."""
        return out / self.name / f"seed-{seed}"


def read_scores(run: Path, steps: int) -> dict[str, Any]:
    """Read the last held-out scores of a finished run, and ``nmse_train``, its relative error on training batches.

    The latter is the mean over the last tenth of the run, with the noise of training; it is left out if nothing was
    logged there.

    Raises:
        ValueError: if the run was not evaluated after this many steps.
    """
    lines = checkpoint.read_metrics(run)
    last = next((line for line in lines if line["part"] == "held_out" and line["step"] == steps), None)
    if last is None:
        raise ValueError(f"{run} was not evaluated at step {steps}; give the --train.steps it had, or another --out")
    errors = [line["reconstruction_error"] for line in lines if line["part"] == "train" and line["step"] > 0.9 * steps]
    train = {"nmse_train": sum(errors) / len(errors)} if errors else {}
    return {"run": f"{run.parent.name}/{run.name}", **last, **train}


def summarize(scores: dict[Variant, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return for each variant the statistics of its scores, ``nmse_minus_ema``, and its runs.

    ``nmse_minus_ema`` is the relative error minus that of hard EMA with the same K, start and seed: mean, 95 %
    interval, and the number of runs with a lower error. Variants without a start are compared with hard EMA's first.
    """
    rows = []
    for variant, runs in scores.items():
        size = variant.codebook_size
        starts = [other.start for other in scores if other.quantizer == BASELINE and other.codebook_size == size]
        start = variant.start if variant.start in starts else next(iter(starts), "")
        stats = {
            name: descriptive_stats(_column(runs, name)) for name in SCORE_DECIMALS if all(name in run for run in runs)
        }
        row = {**variant._asdict(), **stats}
        if starts and variant.quantizer != BASELINE:
            difference = _column(runs, "nmse") - _column(scores[Variant(size, BASELINE, start)], "nmse")
            lower = int((difference < 0).sum())
            row["nmse_minus_ema"] = {"start": start, **t_interval(difference), "num_lower": lower}
        rows.append({**row, "runs": runs})
    return rows


def format_table(rows: list[dict[str, Any]]) -> str:
    """Format a summary as text: mean ± standard deviation of each score, with minimum and maximum if in PLOT_LABELS."""
    cells = [["K", "quantizer", "start"]]
    for name in SCORE_DECIMALS:
        cells[0] += [name, "min", "max"] if name in PLOT_LABELS else [name]
    cells[0] += [f"nmse - {BASELINE}", "lower in"]
    for row in rows:
        line = [str(row["codebook_size"]), row["quantizer"], row["start"]]
        for name, decimals in SCORE_DECIMALS.items():
            stats = [f"{value:.{decimals}f}" for value in row[name].values()] if name in row else []
            line += [" ± ".join(stats[:2]), *(stats[2:] if name in PLOT_LABELS else [])]
        if difference := row.get("nmse_minus_ema"):
            mean, low, high = (f"{difference[name]:+.4f}" for name in ("mean", "low", "high"))
            line += [f"{mean} ({low} to {high})", f"{difference['num_lower']} of {len(row['runs'])}"]
        cells.append(line + [""] * (len(cells[0]) - len(line)))
    return align_columns(cells, {1, 2})


def plot_scores(rows: list[dict[str, Any]]) -> Figure:
    """Plot relative error and perplexity of all runs, with a row of panels for each codebook size."""
    sizes = list(dict.fromkeys(row["codebook_size"] for row in rows))
    figure = Figure((11, 3.4 * len(sizes)))
    for panels, size in zip(figure.subplots(len(sizes), 2, squeeze=False), sizes, strict=True):
        chosen = [row for row in rows if row["codebook_size"] == size]
        for axes, name in zip(panels, PLOT_LABELS, strict=True):
            values = {(row["quantizer"], row["start"] or "no codebook"): _column(row["runs"], name) for row in chosen}
            plots.plot_spread(axes, values, f"{PLOT_LABELS[name]}, K = {size}")
        panels[1].set_yscale("log")
    return figure


def _column(runs: list[dict[str, Any]], name: str) -> Tensor:
    return torch.tensor([run[name] for run in runs], dtype=torch.float64)
