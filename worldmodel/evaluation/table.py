"""The main scores of an evaluation as a text table."""

from collections.abc import Iterator
from typing import Any

from worldmodel.tables import align_columns

DRIFT_LABELS = {"histogram_divergence": "histogram", "change_rate_error": "change rate"}
DRIFT_LABELS |= {"classifier_effect_size": "classifier", "classifier_auroc": "AUROC"}


def format_scores(scores: dict[str, Any]) -> str:
    """Return a table with one score per line; brackets hold 95 % bootstrap intervals over episodes."""
    return align_columns(list(_rows(scores)), left=(0, 1))


def _rows(scores: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if found := scores.get("reconstruction"):
        yield (
            "reconstruction",
            f"PSNR {found['psnr']:.2f} dB, SSIM {found['ssim']:.3f}, perplexity {found['perplexity']:.0f}, "
            f"{found['codes_used']:.0f} codes used",
        )
    for name, row in scores.get("bits_per_code", {}).items():
        yield f"bits per code, {to_label(name)}", _format_interval(row["bits_per_code"], 3)
    if found := scores.get("open_loop"):
        yield "dreamed frames", "  ".join(f"{int(horizon):6}" for horizon in found["psnr"]["dream"])
        for name, row in found["psnr"].items():
            if name == "best_dream" and scores["settings"]["samples"] == 1:
                continue
            yield f"PSNR, {to_label(name)}", "  ".join(f"{value['mean']:6.2f}" for value in row.values())
        wins = scores["fraction_above_copy_last"].values()
        yield "dreams above copy last", "  ".join(f"{100 * value['mean']:4.0f} %" for value in wins)
    if found := scores.get("actions"):
        yield "action accuracy, real frames", _format_interval(found["real"], 3)
        dreamed = _format_interval(found["dreamed"], 3)
        yield "action accuracy, dreams", f"{dreamed}, {100 * found['ratio']:.0f} % of real"
        for horizon, value in scores["delta_psnr"].items():
            yield f"ΔPSNR of random actions at {horizon}", f"{_format_interval(value, 2)} dB"
    if found := scores.get("drift"):
        for name, row in found["rows"].items():
            numbers = ", ".join(f"{label} {row[metric]:.4g}" for metric, label in DRIFT_LABELS.items())
            yield f"drift at {name}" if name != "real" else "drift of real video", numbers
        if found["growth"]:
            grown = ", ".join(f"{DRIFT_LABELS[metric]} × {value:.2f}" for metric, value in found["growth"].items())
            yield "drift, last over 100", grown
    if found := scores.get("reward_termination"):
        reward, end = found["reward"], found["termination"]
        signs = ", ".join(
            f"{sign} {reward[sign]['auroc']:.3f} in {reward[sign]['steps']} steps" for sign in ("gains", "losses")
        )
        yield "reward RMSE", f"{reward['rmse']:.3f}, of the mean {reward['baseline_rmse']:.3f}; AUROC of {signs}"
        yield "termination AUROC", f"{end['auroc']:.3f}, {end['terminations']} terminations in {end['steps']} steps"
        recalls = ", ".join(f"{100 * row['recall']:.0f} % after {n} frames" for n, row in end["detected"].items())
        yield "terminations found at 0.2 % false alarms", recalls.replace("after 0 frames", "after true frames")
    for kind, rows in scores.get("objects", {}).items():
        hits = {horizon: row["detected_in_dream"] for horizon, row in rows.items() if "detected_in_dream" in row}
        yield f"{kind} still in the dream", ", ".join(f"{100 * row['mean']:.0f} % at {at}" for at, row in hits.items())
        counts = {at: [row[f"per_frame_in_{part}"]["mean"] for part in ("dream", "truth")] for at, row in rows.items()}
        pairs = ", ".join(f"{dreamed:.2f} / {true:.2f} at {at}" for at, (dreamed, true) in counts.items())
        yield f"{kind} per frame, dream / truth", pairs


def _format_interval(value: dict[str, float], digits: int) -> str:
    mean, low, high = (f"{value[name]:.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if value["low"] < value["high"] else mean  # one episode has no interval


def to_label(key: str) -> str:
    """Return a key of the scores as plain text."""
    return key.replace("_", " ").replace("vqvae", "VQ-VAE").replace("auroc", "AUROC")
