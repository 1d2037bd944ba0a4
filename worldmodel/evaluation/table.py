"""The most of an evaluation as a table that fits on a screen."""

from collections.abc import Iterator
from typing import Any

from worldmodel.tables import aligned


def table(scores: dict[str, Any]) -> str:
    """What was measured, a line each; intervals hold 95 % of the means of bootstrap resamples of the episodes."""
    return aligned(list(_rows(scores)), left=(0, 1))


def _rows(scores: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if found := scores.get("reconstruction"):
        yield (
            "reconstruction",
            f"PSNR {found['psnr']:.2f} dB, SSIM {found['ssim']:.3f}, perplexity {found['perplexity']:.0f}, "
            f"{found['codes_used']:.0f} codes used",
        )
    for name, row in scores.get("bits_per_code", {}).items():
        yield f"bits per code, {name}", _estimate(row["bits_per_code"], 3)
    if found := scores.get("open_loop"):
        yield "frames dreamed", "  ".join(f"{int(horizon):6}" for horizon in found["psnr"]["dream"])
        for name, row in found["psnr"].items():
            if name == "best dream" and scores["settings"]["samples"] == 1:
                continue
            yield f"PSNR, {name}", "  ".join(f"{value['mean']:6.2f}" for value in row.values())
        wins = scores["dreams_above_copy_last"].values()
        yield "dreams above copy last", "  ".join(f"{100 * value['mean']:4.0f} %" for value in wins)
    if found := scores.get("actions"):
        yield "actions named, of real frames", _estimate(found["real"], 3)
        yield "actions named, of dreams", f"{_estimate(found['dreamed'], 3)}, {100 * found['ratio']:.0f} % of real"
        for horizon, value in scores["delta_psnr"].items():
            yield f"random actions cost at {horizon}", f"{_estimate(value, 2)} dB"
    if found := scores.get("drift"):
        for name, row in found["rows"].items():
            numbers = ", ".join(
                f"{measure} {row[measure]:.4g}" for measure in ("histogram", "change", "judge", "auroc")
            )
            yield f"drift at {name}" if name != "real" else "drift of real video", numbers
        if found["growth"]:
            grown = ", ".join(f"{measure} × {value:.2f}" for measure, value in found["growth"].items())
            yield "drift, last over 100", grown
    if found := scores.get("heads"):
        reward, end = found["reward"], found["termination"]
        signs = ", ".join(
            f"{sign} {reward[sign]['auroc']:.3f} of {reward[sign]['steps']}" for sign in ("gains", "losses")
        )
        yield (
            "rewards, error",
            f"{reward['error']:.3f}, of the mean {reward['error of the mean']:.3f}; AUROC of {signs}",
        )
        yield "ends, AUROC", f"{end['auroc']:.3f}, {end['ends']} in {end['steps']} steps"
    for kind, rows in scores.get("objects", {}).items():
        kept = [(horizon, row["found in dream"]) for horizon, row in rows.items() if "found in dream" in row]
        yield f"{kind} kept", ", ".join(f"{100 * row['mean']:.0f} % at {horizon}" for horizon, row in kept)


def _estimate(value: dict[str, float], digits: int) -> str:
    return f"{value['mean']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"
