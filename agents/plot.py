"""Plot real returns against real steps: ``python -m agents.plot --runs runs/loop,runs/real --out returns.png``."""

import json
from pathlib import Path
from typing import Any

from worldmodel import cli


def plot(runs: str, out: str, real_steps: str = "", labels: str = "") -> None:
    """Plot what agents reach in the real environment against the frames of it that were needed.

    Agents of the real environment have a curve over their training, those of a loop one over its rounds, which does not
    count the frames that a world given with --world was trained on. An agent that was trained in dreams has a point:
    its last evaluation, at the number of frames that its world was trained on. So has a file that agents.evaluate --out
    wrote, which may be of more episodes.

    Args:
        runs: comma-separated folders of agents or loops, or files of agents.evaluate.
        out: image file to write, .png or .svg.
        real_steps: comma-separated numbers of real frames, one for each run of an agent trained in dreams and each
            file, in the order of --runs.
        labels: comma-separated labels of the runs; by default the names of their folders.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from worldmodel.evaluation import plots

    folders = [Path(run) for run in runs.split(",")]
    counts = [count for count in real_steps.split(",") if count]
    if not all(count.isdecimal() for count in counts):
        raise ValueError(f"--real_steps must be whole numbers, such as 235493,40000, got {real_steps}")
    dreamed = [int(count) for count in counts]
    names = labels.split(",") if labels else [folder.stem if folder.is_file() else folder.name for folder in folders]
    if len(names) != len(folders):
        raise ValueError(f"--labels must be one for each of {len(folders)} runs, got {len(names)}")
    plots.check_plot_path(Path(out))
    figure = Figure((5.5, 3.5))
    axes = figure.subplots()
    for folder, name in zip(folders, names, strict=True):
        rows = read_returns(folder)
        if not rows:
            raise ValueError(f"{folder} has no evaluation in the real environment")
        if any(row["real_steps"] is None for row in rows):
            if not dreamed:
                raise ValueError(f"{folder} has no real steps of its own: --real_steps must say how many it needed")
            rows = [{**rows[-1], "real_steps": dreamed.pop(0)}]
        steps, means = ([row[key] for row in rows] for key in ("real_steps", "return"))
        errors = [[abs(row[end] - row["return"]) for row in rows] for end in ("low", "high")]
        axes.errorbar(steps, means, errors, marker="o", markersize=4, linewidth=1, capsize=2, label=name)
    if dreamed:
        raise ValueError(f"--real_steps has {len(dreamed)} numbers more than there are runs that need one")
    axes.set(xlabel="frames of the real environment", ylabel="real return", xlim=(0, None))
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False)
    plots.save_plot(figure, Path(out))


def read_returns(folder: Path) -> list[dict[str, Any]]:
    """Return the real evaluations of an agent, a loop or a file, with their real steps, or None if these are unknown.

    Raises:
        FileNotFoundError: if there is no such folder or file.
        ValueError: if the file is none of agents.evaluate, or a loop's table is damaged.
    """
    from agents.loop import read_table
    from agents.policy import read_agent_config
    from agents.rollouts import DREAM_ENV
    from worldmodel import checkpoint

    if folder.is_file():
        try:
            values = json.loads(folder.read_text("utf-8"))
            in_dreams = values.get("env") == DREAM_ENV
            evaluated = {} if in_dreams else {key: float(values["agent"][key]) for key in ("return", "low", "high")}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder} must be a file that agents.evaluate --out wrote: {error!r}") from error
        if in_dreams:
            raise ValueError(f"{folder} has returns of dreams; plots are of real returns")
        return [{**evaluated, "real_steps": None}]
    if (folder / "table.json").is_file():
        return read_table(folder / "table.json")
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder} is the folder of no agent and no loop")
    data, rows = read_agent_config(folder)["data"], checkpoint.read_metrics(folder)
    in_dreams = data["env"] == DREAM_ENV
    repeat = data.get("action_repeat", 1)
    evaluations = [row for row in rows if row["part"] == "real"]
    return [{**row, "real_steps": None if in_dreams else row["step"] * repeat} for row in evaluations]


if __name__ == "__main__":
    cli.run(plot)
