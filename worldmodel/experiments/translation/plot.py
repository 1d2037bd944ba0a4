"""Plot how models with latents learn: ``python -m worldmodel.experiments.translation plot``."""

from pathlib import Path


def plot(runs: str, out: str) -> None:
    """Plot the BLEU from true latents over the steps of training, as in figure 3 of Roy et al. 2018.

    It is that of held-out sentences, measured at each evaluation during training. Runs that differ in their seed alone
    have one color.

    Args:
        runs: comma-separated run folders of models with latents.
        out: image file to write, .png or .svg.
    """
    from matplotlib.figure import Figure

    from worldmodel import checkpoint
    from worldmodel.evaluation import plots
    from worldmodel.experiments.translation.table import label_systems

    plots.check_plot_path(Path(out))
    figure = Figure((5.5, 3.5))
    axes = figure.subplots()
    colors: dict[str, str] = {}
    folders = [Path(run) for run in runs.split(",")]
    settings = [checkpoint.read_config(run) for run in folders]
    for run, one in zip(folders, settings, strict=True):
        if one["kind"] != "translation":
            raise ValueError(f"{run} must be the run of a translation model with latents, got kind {one['kind']}")
    for run, name in zip(folders, label_systems(settings), strict=True):
        rows = [row for row in checkpoint.read_metrics(run) if "bleu_true_latents" in row]
        if not rows:
            raise ValueError(f"{run} has not been evaluated yet: train it for train.evaluate_every steps or more")
        label = "_" + name if name in colors else name  # a leading underscore keeps it out of the legend
        points = [(row["step"], row["bleu_true_latents"]) for row in rows]
        color = colors.setdefault(name, f"C{len(colors)}")
        axes.plot(*zip(*points, strict=True), marker=".", linewidth=1, color=color, label=label)
    axes.set(xlabel="training steps", ylabel="BLEU from true latents", xlim=(0, None), ylim=(0, None))
    axes.legend(frameon=False, fontsize="small")
    plots.save_plot(figure, Path(out))
