"""Plots of scores, and images of videos laid out as strips of frames."""

import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from worldmodel import media
from worldmodel.episodes.store import EpisodeStore
from worldmodel.evaluation.clips import Clips, dream_clips, find_action_clips
from worldmodel.evaluation.table import to_label
from worldmodel.files import check_file
from worldmodel.models.config import NUM_CONTEXT_FRAMES
from worldmodel.stats import bootstrap_interval, descriptive_stats
from worldmodel.world_model import WorldModel

matplotlib.rcParams.update({"svg.hashsalt": "worldmodel", "font.size": 9, "axes.spines.top": False})
matplotlib.rcParams.update({"axes.spines.right": False, "figure.constrained_layout.use": True})
STYLES = {"dream": "C1-", "best_dream": "C1:", "copy_last": "C7--", "vqvae_reconstruction": "C0--"}
TRAINING_STYLE = {"color": "0.8", "linewidth": 0.7, "zorder": 0}
STRIP_FRAMES = 10  # dreamed frames in a strip
NUM_WORST_CLIPS = 4
DREAM_LINE_COLOR, DREAM_LINE_WIDTH = (255, 140, 0), 2  # RGB and pixels of the line where a dream starts
MILESTONE_FRAMES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # frames shown of a long dream


def to_svg(figure: Figure) -> str:
    """Return a figure as an SVG element, deterministically."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()[file.getvalue().index("<svg") :]


def check_plot_path(path: Path) -> None:
    """Check that a plot can be written there.

    Raises:
        ValueError: if the name does not end in .png or .svg, or as :func:`worldmodel.files.check_file`.
    """
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"{path} must end in .png or .svg")
    check_file(path)


def save_plot(figure: Figure, path: Path) -> None:
    """Write a figure as .png or .svg, the same bytes each time, and say so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    print(f"wrote {path}")


def plot_horizon_curves(values: dict[str, Tensor], episodes: Tensor, label: str) -> Figure:
    """Plot the mean of (N, T) values by name over the horizon, with its interval over ``episodes`` (N,)."""
    figure = Figure((4.9, 2.9))
    axes = figure.subplots()
    for name, rows in values.items():
        points = [bootstrap_interval(column, episodes) for column in rows.T]
        horizons = range(1, len(points) + 1)
        axes.plot(horizons, [point["mean"] for point in points], STYLES[name], label=to_label(name))
        low, high = ([point[end] for point in points] for end in ("low", "high"))
        axes.fill_between(horizons, low, high, color=STYLES[name][:2], alpha=0.15, linewidth=0)
    axes.set(xlabel="frames after the last real one", ylabel=label, xscale="log")
    axes.xaxis.set_major_formatter("{x:.0f}")
    figure.legend(loc="outside upper center", ncols=len(values), frameon=False)
    return figure


def plot_training_curves(rows: list[dict[str, Any]], label: str, prefix: str) -> Figure:
    """Plot all metrics whose names start with ``prefix`` from the rows of a run's metrics.jsonl."""
    figure = Figure((4.9, 2.9), layout="constrained")
    axes = figure.subplots()
    shown = {(row["part"], name) for row in rows for name in row if name.startswith(prefix)}
    for number, (part, name) in enumerate(sorted(shown)):
        points = [(row["step"], row[name]) for row in rows if row["part"] == part and name in row]
        style: dict[str, Any] = TRAINING_STYLE if part == "train" else {"color": f"C{number}"}
        suffix = to_label(name.removeprefix(prefix).strip("_"))
        axes.plot(*zip(*points, strict=True), label=f"{to_label(part)}{', ' * bool(suffix)}{suffix}", **style)
    axes.set(xlabel="steps", ylabel=label)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def plot_spread(axes: Axes, values: dict[tuple[str, str], Tensor], label: str) -> None:
    """Plot the runs (N,) of each (name, variant) as points next to their mean and deviation; one color per variant."""
    names, variants = (list(dict.fromkeys(parts)) for parts in zip(*values, strict=True))
    for (name, variant), runs in values.items():
        group = [other for first, other in values if first == name]  # centered on the tick of the name
        x = names.index(name) + 0.2 * (group.index(variant) - (len(group) - 1) / 2)
        color, summary = f"C{variants.index(variant)}", descriptive_stats(runs)
        axes.plot([x + 0.06] * len(runs), runs, ".", color=color, markersize=4, alpha=0.6, markeredgewidth=0)
        axes.errorbar(x, summary["mean"], summary["deviation"], fmt="_", color=color, capsize=1.5, linewidth=1)
    for number, variant in enumerate(variants):
        axes.plot([], [], f"C{number}_", label=variant)
    axes.set(ylabel=label)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.legend(frameon=False, fontsize=7)


def plot_image_rows(rows: dict[str, np.ndarray]) -> Figure:
    """Plot named rows of images, (N, H, W, 3) uint8 each, below each other."""
    first = next(iter(rows.values()))
    figure = Figure((2.2 + 0.4 * len(first), 0.2 + 0.4 * len(rows) * first.shape[1] / first.shape[2]))
    axes = figure.subplots()
    axes.imshow(media.tile(np.stack(list(rows.values()))), interpolation="nearest")
    axes.set_yticks((np.arange(len(rows)) + 0.5) * first.shape[1], rows, fontsize=7)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    return figure


def plot_confusion_matrices(tables: dict[str, list[list[float]]], names: tuple[str, ...]) -> Figure:
    """Plot confusion matrices (true, predicted) side by side."""
    figure = Figure((4.8 * len(tables), 4.6))
    for axes, (title, table) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True):
        axes.pcolormesh(table, vmin=0, vmax=1, cmap="Blues")
        for row, column in np.ndindex(len(names), len(names)):
            frequency = table[row][column]
            color = "white" if frequency > 0.6 else "black"
            axes.text(column + 0.5, row + 0.5, f"{frequency:.2f}", ha="center", va="center", color=color, fontsize=7)
        axes.set(title=title, xlabel="predicted action", ylabel="true action", aspect="equal")
        axes.invert_yaxis()
        axes.set_xticks(np.arange(len(names)) + 0.5, names, rotation=45, ha="right")
        axes.set_yticks(np.arange(len(names)) + 0.5, names)
    return figure


def plot_reliability(groups: list[dict[str, float]]) -> Figure:
    """Plot a reliability diagram of termination probabilities."""
    figure = Figure((3.2, 3))
    axes = figure.subplots()
    predicted, observed = ([group[name] for group in groups] for name in ("predicted", "observed"))
    top = max(*predicted, *observed, 1e-3)
    axes.plot([0, top], [0, top], "C7--")
    axes.plot(predicted, observed, "C0o-")
    axes.set(xlabel="predicted termination probability", ylabel="observed frequency")
    return figure


def draw_comparison(above: Tensor, below: Tensor, real: int = 0) -> np.ndarray:
    """Draw each video of (N, T, H, W, 3) over its counterpart, as one image with a white line between the pairs.

    Args:
        real: number of frames before the dream starts, marked by an orange line; 0 for no line.
    """
    image = media.tile(torch.stack([above, below], 1).flatten(0, 1).numpy())
    height = 2 * above.shape[2]
    image[height::height] = 255
    line = np.broadcast_to(np.array(DREAM_LINE_COLOR, np.uint8), (len(image), DREAM_LINE_WIDTH, 3))
    return np.insert(image, [real * above.shape[3]] * DREAM_LINE_WIDTH, line, axis=1) if real else image


def draw_action_strips(world: WorldModel, store: EpisodeStore, temperature: float, seed: int) -> dict[str, np.ndarray]:
    """Draw, as ``strip_ACTION``, the held-out clip that takes each action most often over its dream."""
    strips = {}
    for action, clip in find_action_clips(store, STRIP_FRAMES).items():
        codes = dream_clips(world, clip, clip.future_actions, temperature=temperature, seed=seed)[0, 0]
        dreamed = torch.cat([clip.frames[0, :NUM_CONTEXT_FRAMES], world.decode(codes)])[None]
        strips[f"strip_{world.action_names[action]}"] = draw_comparison(clip.frames, dreamed, NUM_CONTEXT_FRAMES)
    return strips


def draw_worst_dreams(world: WorldModel, clips: Clips, dreams: Tensor, psnr: Tensor) -> np.ndarray:
    """Draw the clips over the dreams (N, S, T, h, w) with the lowest PSNR (N, T) at frame STRIP_FRAMES."""
    horizon = min(STRIP_FRAMES, psnr.shape[1])
    chosen = psnr[:, horizon - 1].argsort()[:NUM_WORST_CLIPS]
    dreamed = world.decode(dreams[chosen, 0, :horizon].flatten(0, 1)).unflatten(0, (len(chosen), horizon))
    real = clips.frames[chosen, : NUM_CONTEXT_FRAMES + horizon]
    return draw_comparison(real, torch.cat([real[:, :NUM_CONTEXT_FRAMES], dreamed], 1), NUM_CONTEXT_FRAMES)


def draw_milestones(world: WorldModel, dreams: Tensor, rows: int = 6) -> np.ndarray:
    """Draw the MILESTONE_FRAMES of the first ``rows`` long dreams (N, T, h, w), one row per dream."""
    codes = dreams[:rows, [frames - 1 for frames in MILESTONE_FRAMES if frames <= dreams.shape[1]]]
    return media.tile(world.decode(codes.flatten(0, 1)).unflatten(0, codes.shape[:2]).numpy())
