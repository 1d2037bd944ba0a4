"""The pictures of an evaluation: curves, matrices, and films laid out as strips."""

import io
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from worldmodel import media
from worldmodel.episodes.segments import split
from worldmodel.episodes.store import EpisodeStore
from worldmodel.evaluation.clips import CONTEXT, Clips, dream
from worldmodel.metrics import interval, moments
from worldmodel.world_model import WorldModel

matplotlib.rcParams.update({"svg.hashsalt": "worldmodel", "font.size": 9, "axes.spines.top": False})
matplotlib.rcParams.update({"axes.spines.right": False, "figure.constrained_layout.use": True})
STYLES = {"dream": "C1-", "best dream": "C1:", "copy last": "C7--", "vqvae alone": "C0--"}
STRIP = 10  # imagined frames in a strip
CANDIDATES = 32  # clips that the one of a strip is chosen from
WORST = 4
BEGINS, LINE = (255, 140, 0), 2  # colour of the line where a dream begins, and its pixels
MILESTONES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # frames of a long dream that are shown


def svg(figure: Figure) -> str:
    """A figure as an SVG element, the same text every time."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()[file.getvalue().index("<svg") :]


def curves(values: dict[str, Tensor], episodes: Tensor, label: str) -> Figure:
    """(N, T) values of several contestants over the horizon, with the interval of the mean over ``episodes`` (N,)."""
    figure = Figure((4.9, 2.9))
    axes = figure.subplots()
    for name, rows in values.items():
        points = [interval(column, episodes) for column in rows.T]
        horizons = range(1, len(points) + 1)
        axes.plot(horizons, [point["mean"] for point in points], STYLES[name], label=name)
        low, high = ([point[end] for point in points] for end in ("low", "high"))
        axes.fill_between(horizons, low, high, color=STYLES[name][:2], alpha=0.15, linewidth=0)
    axes.set(xlabel="frames after the last real one", ylabel=label, xscale="log")
    axes.xaxis.set_major_formatter("{x:.0f}")
    figure.legend(loc="outside upper center", ncols=len(values), frameon=False)
    return figure


def training_curves(rows: list[dict[str, Any]], label: str, prefix: str) -> Figure:
    """What a run measured on the way, lines of its metrics.jsonl: all metrics whose names begin with ``prefix``."""
    figure = Figure((4.9, 2.9), layout="constrained")
    axes = figure.subplots()
    shown = {(row["part"], name) for row in rows for name in row if name.startswith(prefix)}
    for number, (part, name) in enumerate(sorted(shown)):
        points = [(row["step"], row[name]) for row in rows if row["part"] == part and name in row]
        style = {"color": "0.8", "linewidth": 0.7, "zorder": 0} if part == "train" else {"color": f"C{number}"}
        told = name.removeprefix(prefix).strip("_").replace("_", " ")
        axes.plot(*zip(*points, strict=True), label=f"{part.replace('_', ' ')}{', ' * bool(told)}{told}", **style)
    axes.set(xlabel="steps", ylabel=label)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def spreads(axes: Axes, values: dict[tuple[str, str], Tensor], label: str) -> None:
    """Runs (N,) of each (contestant, variant): points, and beside them mean and deviation; a colour for a variant."""
    names, variants = (list(dict.fromkeys(parts)) for parts in zip(*values, strict=True))
    for (name, variant), runs in values.items():
        mine = [other for first, other in values if first == name]  # side by side, about the middle
        place = names.index(name) + 0.2 * (mine.index(variant) - (len(mine) - 1) / 2)
        color, found = f"C{variants.index(variant)}", moments(runs)
        axes.plot([place + 0.06] * len(runs), runs, ".", color=color, markersize=4, alpha=0.6, markeredgewidth=0)
        axes.errorbar(place, found["mean"], found["deviation"], fmt="_", color=color, capsize=1.5, linewidth=1)
    for number, variant in enumerate(variants):
        axes.plot([], [], f"C{number}_", label=variant)
    axes.set(ylabel=label)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.legend(frameon=False, fontsize=7)


def rows_of_pictures(rows: dict[str, np.ndarray]) -> Figure:
    """Named rows of as many pictures each, (N, H, W, 3) uint8, under each other."""
    first = next(iter(rows.values()))
    figure = Figure((2.2 + 0.4 * len(first), 0.2 + 0.4 * len(rows) * first.shape[1] / first.shape[2]))
    axes = figure.subplots()
    axes.imshow(media.grid(np.stack(list(rows.values()))), interpolation="nearest")
    axes.set_yticks((np.arange(len(rows)) + 0.5) * first.shape[1], rows, fontsize=7)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    return figure


def matrices(tables: dict[str, list[list[float]]], names: tuple[str, ...]) -> Figure:
    """Confusion matrices side by side; rows are what is true."""
    figure = Figure((4.8 * len(tables), 4.6))
    for axes, (title, table) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True):
        axes.pcolormesh(table, vmin=0, vmax=1, cmap="Blues")
        for row, column in np.ndindex(len(names), len(names)):
            share = table[row][column]
            color = "white" if share > 0.6 else "black"
            axes.text(column + 0.5, row + 0.5, f"{share:.2f}", ha="center", va="center", color=color, fontsize=7)
        axes.set(title=title, xlabel="named", ylabel="taken", aspect="equal")
        axes.invert_yaxis()
        axes.set_xticks(np.arange(len(names)) + 0.5, names, rotation=45, ha="right")
        axes.set_yticks(np.arange(len(names)) + 0.5, names)
    return figure


def reliability(groups: list[dict[str, float]]) -> Figure:
    """Observed over predicted frequency."""
    figure = Figure((3.2, 3))
    axes = figure.subplots()
    predicted, observed = ([group[name] for group in groups] for name in ("predicted", "observed"))
    top = max(*predicted, *observed, 1e-3)
    axes.plot([0, top], [0, top], "C7--")
    axes.plot(predicted, observed, "C0o-")
    axes.set(xlabel="predicted probability of an end", ylabel="observed frequency")
    return figure


def pairs_of_rows(above: Tensor, below: Tensor, real: int = 0) -> np.ndarray:
    """Films (N, T, H, W, 3) twice, each one over its counterpart, as one picture with a line between the pairs.

    Args:
        real: frames before the dream, which ends them with an orange line; 0 for none.
    """
    picture = media.grid(torch.stack([above, below], 1).flatten(0, 1).numpy())
    height = 2 * above.shape[2]
    picture[height::height] = 255
    line = np.broadcast_to(np.array(BEGINS, np.uint8), (len(picture), LINE, 3))
    return np.insert(picture, [real * above.shape[3]] * LINE, line, axis=1) if real else picture


def strips(world: WorldModel, store: EpisodeStore, temperature: float, seed: int) -> dict[str, np.ndarray]:
    """For each action, the held-out clip that holds it longest: what came, over what was dreamed."""
    made = {}
    for number, name in enumerate(world.action_names):
        place = longest(store, number)
        if place is None:
            continue
        frames, actions = (torch.from_numpy(part.copy())[None] for part in place)
        clip = Clips(frames, actions, torch.zeros(1, dtype=torch.int64))
        codes = dream(world, clip, clip.to_take, temperature=temperature, seed=seed)[0, 0]
        dreamt = torch.cat([frames[0, :CONTEXT], world.decode(codes)])[None]
        made[f"strip_{name}"] = pairs_of_rows(frames, dreamt, CONTEXT)
    return made


def longest(store: EpisodeStore, action: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The frames and actions of the held-out clip that takes an action most often once dreaming; None if never.

    Of several the one in which most happens, by the difference of neighbouring frames.
    """
    best, places = 1, []
    for entry in split(store)[1]:
        taken = store.steps(entry.number)[0]
        for start in range(0, entry.observations - CONTEXT - STRIP + 1):
            times = int((taken[start + CONTEXT - 1 : start + CONTEXT + STRIP - 1] == action).sum())
            if times > best:
                best, places = times, []
            if times == best:
                places.append((entry.number, start))
    every = max(1, len(places) // CANDIDATES)
    clips = [(store.observations(number, start, CONTEXT + STRIP), number, start) for number, start in places[::every]]
    if not clips:
        return None
    frames, number, start = max(clips, key=lambda clip: np.abs(np.diff(clip[0].astype(np.int16), axis=0)).mean())
    return frames, store.steps(number)[0][start : start + CONTEXT + STRIP - 1]


def worst(world: WorldModel, clips: Clips, dreams: Tensor, psnr: Tensor) -> np.ndarray:
    """The clips whose dreams (N, S, T, h, w) miss the truth furthest at STRIP frames, by (N, T) PSNR."""
    reach = min(STRIP, psnr.shape[1])
    chosen = psnr[:, reach - 1].argsort()[:WORST]
    imagined = world.decode(dreams[chosen, 0, :reach].flatten(0, 1)).unflatten(0, (len(chosen), reach))
    real = clips.frames[chosen, : CONTEXT + reach]
    return pairs_of_rows(real, torch.cat([real[:, :CONTEXT], imagined], 1), CONTEXT)


def milestones(world: WorldModel, dreams: Tensor, rows: int = 6) -> np.ndarray:
    """Frames of long dreams (N, T, h, w) at the MILESTONES, a row for each of the first dreams."""
    films = dreams[:rows, [frames - 1 for frames in MILESTONES if frames <= dreams.shape[1]]]
    return media.grid(world.decode(films.flatten(0, 1)).unflatten(0, films.shape[:2]).numpy())
