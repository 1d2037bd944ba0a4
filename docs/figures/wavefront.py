"""Draw docs/figures/wavefront.svg, the sampling order of a frame's codes: ``python docs/figures/wavefront.py``."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

SIDE = 21  # codes on a side of a frame
DETAIL = 7  # codes on a side of the enlarged corner
TAPS = ((0, -1), (-1, -1), (-1, 0), (-1, 1))  # (rows, columns) from a code to those that its first layer sees
HIGHLIGHT, INPUT, SHOWN_STEP = "#d1495b", "#edae49", 30


def steps(side: int) -> np.ndarray:
    """Return the step at which each code is sampled, (side, side) int64."""
    rows, columns = np.indices((side, side))
    return columns + 2 * rows


def outline(axes: Axes, row: int, column: int, color: str, width: float) -> None:
    """Draw a frame around one code."""
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=color, linewidth=width, zorder=3))


def draw_detail(axes: Axes) -> None:
    """Draw a corner of the grid with its step numbers, one code and the four codes that it sees."""
    order = steps(DETAIL)
    row, column = 3, 3
    same = order == order[row, column]
    axes.imshow(np.where(same, 1.0, np.nan), cmap="Reds", vmin=0, vmax=3, zorder=1)
    for i, j in np.ndindex(order.shape):
        outline(axes, i, j, "#c8c8c8", 0.8)
        weight = "bold" if same[i, j] else "normal"
        axes.text(j, i, str(order[i, j]), ha="center", va="center", fontsize=11, weight=weight, zorder=5)
    for up, left in TAPS:
        i, j = row + up, column + left
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=INPUT, edgecolor="none", alpha=0.55, zorder=2))
        arrow = {"arrowstyle": "-|>", "color": "#444444", "linewidth": 1.2, "shrinkA": 9, "shrinkB": 9}
        axes.annotate("", xy=(column, row), xytext=(j, i), arrowprops=arrow, zorder=4)
    outline(axes, row, column, HIGHLIGHT, 2.5)
    axes.set_title("A code sees its left and three upper\nneighbors; numbers are sampling steps", fontsize=11)


def draw_grid(axes: Axes) -> None:
    """Draw all codes of a frame, colored by step, with the codes of one step outlined."""
    order = steps(SIDE)
    image = axes.imshow(order, cmap="viridis")
    for i, j in np.argwhere(order == SHOWN_STEP):
        outline(axes, i, j, HIGHLIGHT, 2.0)
    count, largest = int((order == SHOWN_STEP).sum()), int(np.bincount(order.ravel()).max())
    axes.set_title(
        f"{SIDE}×{SIDE} = {SIDE * SIDE} codes in {order.max() + 1} steps, up to {largest} codes at once\n"
        f"(outlined: the {count} codes of step {SHOWN_STEP})",
        fontsize=11,
    )
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.04)
    bar.set_label("step = column + 2 · row")


def main() -> None:
    """Draw both panels."""
    plt.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": "wavefront", "font.family": "DejaVu Sans"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.8), layout="constrained", facecolor="white")
    draw_detail(left)
    draw_grid(right)
    for axes in (left, right):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("column")
        axes.set_ylabel("row")
    figure.savefig(Path(__file__).with_name("wavefront.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
