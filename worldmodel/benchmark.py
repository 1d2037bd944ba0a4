"""Benchmark speed and compare with other implementations: ``python -m worldmodel.benchmark``."""

import json
import os
import platform
import statistics
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmodel import cli
from worldmodel.checks import check_threads
from worldmodel.episodes.store import EpisodeStore
from worldmodel.files import check_file, unused_path, write_atomically
from worldmodel.models.config import Precision
from worldmodel.shipped import DEFAULT_WORLD
from worldmodel.suggest import unknown_name

if TYPE_CHECKING:
    from worldmodel.benchmarks.settings import Settings
    from worldmodel.benchmarks.timing import Section

SECTIONS = {  # name: module and function in worldmodel.benchmarks
    "dream": "dream:dream",
    "peers": "peers:peers",
    "quantizer": "peers:quantizer",
    "codec": "dream:codec",
    "pixelcnn": "pixelcnn:pixelcnn",
    "wavenet": "wavenet:wavenet",
    "training": "training:training",
    "steps": "steps:steps",
    "collect": "collect:collect",
    "store": "store:store",
}
QUICK, QUICK_ROUNDS, QUICK_BATCHES = ("dream", "codec", "training"), 3, "1,16"
PACKAGES = ("torch", "numpy", "numba", "transformers", "vector-quantize-pytorch", "zstandard", "lz4", "vizdoom")


def benchmark(
    world: str = DEFAULT_WORLD,
    only: str = "",
    quick: bool = False,
    repeats: int = 7,
    batches: str = "1,16,64",
    threads: int = 2,
    store: str = "",
    env: str = "envs:Doom-v0",
    out: str = "",
    device: str = "cpu",
    precision: Precision = "float32",
) -> None:
    """Benchmark the speed of every part, print tables with the fraction of the machine's limits, and write JSON.

    Times are CPU time on one thread, or wall time on cuda. They are medians of several rounds in which contestants take
    turns; ratios are medians of ratios within rounds, relative to the first row of each group.

    Args:
        world: name of a shipped world, or run folder of a dynamics model.
        only: comma-separated sections to run; by default all: dream, peers, quantizer, codec, pixelcnn, wavenet,
            training, steps, collect, store.
        quick: run only dream, codec and training with two batch sizes and three rounds, in a minute or two.
        repeats: number of timed rounds per measurement.
        batches: comma-separated batch sizes of dreams.
        threads: number of CPU threads that the largest batch is also timed with; everything else uses one.
        store: folder of recorded episodes to read; by default a few are recorded.
        env: Gymnasium id of the environment to record.
        out: JSON file to write; by default the first unused name of benchmark.json, benchmark-2.json, ….
        device: device to run the models on, cpu or cuda.
        precision: number format of the dynamics model: float32, bfloat16, or auto for bfloat16 if the hardware has it.
    """
    from worldmodel.benchmarks import limits
    from worldmodel.benchmarks.settings import Settings, count_parameters
    from worldmodel.world_model import WorldModel

    if quick:
        repeats, batches = min(repeats, QUICK_ROUNDS), QUICK_BATCHES
    chosen = only.split(",") if only else list(QUICK if quick else SECTIONS)
    for name in chosen:
        if name not in SECTIONS:
            raise ValueError(unknown_name("section", name, SECTIONS))
    sizes = batches.split(",")
    if not all(size.isdigit() and int(size) > 0 for size in sizes) or repeats < 1:
        raise ValueError(
            f"--batches must be numbers such as 1,16, and --repeats 1 or more, got {batches} and {repeats}"
        )
    check_threads(threads)
    target = Path(out) if out else unused_path(Path("benchmark.json"))
    check_file(target)
    if store:
        EpisodeStore(store)  # raises now if there is none
    model = WorldModel.load(world, device, precision=precision)
    settings = Settings(model, store, env, repeats, tuple(sorted(map(int, sizes))), threads)
    result = {**describe_machine(), "device": device, "threads": threads, "world": world}
    result |= {"parameters": count_parameters(model), "precision": model.precision}
    best, result["sections"] = {}, {}
    for name in ["limits", *chosen]:
        section = run_section(name, settings, best)
        best = best or limits.peak_flops(section.rows)
        result["sections"][name] = {"rows": [row.summary() for row in section.rows], "remarks": section.remarks}
        text = json.dumps(result, indent=2) + "\n"
        write_atomically(target, text.encode())  # after each section, to keep results
    print(f"wrote {target}")


def run_section(name: str, settings: "Settings", best: dict[str, float]) -> "Section":
    """Run one section on one thread, compare it with the best FLOP/s by precision, and print its table."""
    from worldmodel.benchmarks.timing import format_rows, use_threads

    with use_threads(1):
        module, _, function = SECTIONS.get(name, "limits:limits").partition(":")
        section = getattr(import_module(f"worldmodel.benchmarks.{module}"), function)(settings)
    for row in section.rows:
        if row.flops and row.precision in best:
            row.fraction_of_limit = row.flops / statistics.median(row.seconds) / best[row.precision]
    print(f"{name}\n{format_rows(section.rows)}")
    print(*(f"  {remark}" for remark in section.remarks), "", sep="\n", flush=True)
    return section


def describe_machine() -> dict[str, Any]:
    """Describe the processor, its load, and the versions of packages."""
    import torch

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
    cli.run(benchmark)
