"""Measure what everything costs, beside its peers: ``python -m worldmodel.benchmark``."""

import json
import os
import platform
import statistics
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from worldmodel import config
from worldmodel.benchmarks import collect, dream, limits, peers, pixelcnn, steps, store, training, wavenet
from worldmodel.benchmarks.settings import Settings, parameters
from worldmodel.benchmarks.timing import Section, on_threads, table
from worldmodel.episodes.store import EpisodeStore
from worldmodel.files import check_file
from worldmodel.models.precision import Precision
from worldmodel.suggest import unknown
from worldmodel.world_model import DEFAULT, WorldModel

SECTIONS = {
    "dream": dream.dream,
    "peers": peers.peers,
    "quantizer": peers.quantizer,
    "codec": dream.codec,
    "pixelcnn": pixelcnn.pixelcnn,
    "wavenet": wavenet.wavenet,
    "training": training.training,
    "steps": steps.steps,
    "collect": collect.collect,
    "store": store.store,
}
QUICK, QUICK_ROUNDS, QUICK_BATCHES = ("dream", "codec", "training"), 3, "1,16"
PACKAGES = ("torch", "numpy", "numba", "transformers", "vector-quantize-pytorch", "zstandard", "lz4", "vizdoom")


def benchmark(
    world: str = DEFAULT,
    only: str = "",
    quick: bool = False,
    repeats: int = 7,
    batches: str = "1,16,64",
    threads: int = 2,
    store: str = "",
    env: str = "envs:Doom-v0",
    out: str = "benchmark.json",
    device: str = "cpu",
    precision: Precision = "float32",
) -> None:
    """Measure speed in CPU time on one thread, as tables and as JSON, beside what the machine can do at best.

    Every figure is the median of several runs, and every ratio the median of ratios within a round, where contestants
    take turns; the first row of each group is the one that the others' ratios are to. On cuda, time is the clock's.

    Args:
        world: a shipped world's name, or the run folder of a prior.
        only: the sections to measure, such as dream,quantizer; all of them by default: dream, peers, quantizer, codec,
            pixelcnn, wavenet, training, steps, collect, store.
        quick: only dream, codec and training, with two batches and three rounds: a minute or two.
        repeats: rounds of every measurement.
        batches: dreams at a time.
        threads: that the largest batch is also dreamed with, on a CPU; everything else has one.
        store: recorded episodes to read; a few are recorded if not given.
        env: Gymnasium id of the world to record.
        out: file to write the JSON into.
        device: cpu or cuda.
        precision: of what is multiplied in a dream: float32, bfloat16, or auto: bfloat16 if the hardware multiplies it.
    """
    if quick:
        repeats, batches = min(repeats, QUICK_ROUNDS), QUICK_BATCHES
    chosen = only.split(",") if only else list(QUICK if quick else SECTIONS)
    for name in chosen:
        if name not in SECTIONS:
            raise ValueError(unknown("section", name, SECTIONS))
    sizes = batches.split(",")
    if not all(size.isdigit() and int(size) > 0 for size in sizes) or repeats < 1 or threads < 1:
        raise ValueError(
            f"--batches must be numbers such as 1,16 and --repeats and --threads 1 or more, got {batches}, {repeats} "
            f"and {threads}"
        )
    check_file(Path(out))
    if store:
        EpisodeStore(store)  # to say now that there is none
    model = WorldModel.load(world, device, precision=precision)
    settings = Settings(model, store, env, repeats, tuple(sorted(map(int, sizes))), threads)
    result = {**machine(), "device": device, "threads": threads, "world": world, "parameters": parameters(model)}
    result["precision"] = str(model.dtype).removeprefix("torch.")
    best, result["sections"] = {}, {}
    for name in ["limits", *chosen]:
        section = measure(name, settings, best)
        best = best or limits.at_best(section.rows)
        result["sections"][name] = {"rows": [row.summary() for row in section.rows], "remarks": section.remarks}
        Path(out).write_text(json.dumps(result, indent=2) + "\n", "utf-8")  # after each, so that nothing is lost


def measure(name: str, settings: Settings, best: dict[str, float]) -> Section:
    """Measure one section on one thread and print its table, with the share that rows reach of the machine's limits."""
    with on_threads(1):
        section = (limits.limits if name == "limits" else SECTIONS[name])(settings)
    for row in section.rows:
        if row.flops and row.precision in best:
            row.share = row.flops / statistics.median(row.seconds) / best[row.precision]
    print(f"{name}\n{table(section.rows)}")
    print(*(f"  {remark}" for remark in section.remarks), "", sep="\n", flush=True)
    return section


def machine() -> dict[str, Any]:
    """What the figures were measured on: processor, cores, how busy it is, and versions."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text("utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load": list(os.getloadavg()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    config.run(benchmark)
