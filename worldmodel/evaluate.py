"""Evaluate a world on held-out episodes and write a page: ``python -m worldmodel.evaluate``."""

import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from worldmodel import cli
from worldmodel.checks import check_seed, check_temperature, check_threads
from worldmodel.episodes.store import EpisodeStore
from worldmodel.evaluation.table import format_scores
from worldmodel.files import check_folder, unused_path
from worldmodel.models.config import NUM_CONTEXT_FRAMES, Precision
from worldmodel.shipped import DEFAULT_WORLD, find_vqvae
from worldmodel.suggest import unknown_name

QUICK_LIMITS = {"frames": 256, "segments": 16, "clips": 16, "samples": 1, "horizon": 20, "episodes": 4, "pairs": 1024}
QUICK_LIMITS |= {"drift_rollouts": 0, "objects": 0}


def evaluate(
    store: str,
    world: str = DEFAULT_WORLD,
    vqvae: str = "",
    no_context_prior: str = "",
    frames: int = 2048,
    segments: int = 256,
    length: int = 16,
    clips: int = 256,
    samples: int = 2,
    horizon: int = 50,
    drift_rollouts: int = 32,
    drift_horizon: int = 1000,
    episodes: int = 64,
    objects: int = 128,
    pairs: int = 8192,
    only: str = "",
    quick: bool = False,
    temperature: float = 1.0,
    seed: int = 0,
    out: str = "",
    device: str = "cpu",
    precision: Precision = "float32",
    threads: int = 1,
) -> None:
    """Evaluate a world on the held-out episodes of a store, write a page with all results, and print a table.

    The folder ``out`` gets scores.json, index.html with every number, plot and image, and the images as PNG files.
    Measured are the reconstruction; bits per code with true, shuffled and no actions, and of baselines; dreams from
    six real frames under the recorded actions; how well the actions are recovered from dreams, and the cost of random
    ones; the drift of long dreams; rewards and terminations; and object permanence, if the store knows the objects in
    view (recorded from Doom with --env.objects true) or is of DeepMind Lab. The docstrings of worldmodel/evaluation/
    define every score.

    Args:
        store: folder of recorded episodes.
        world: name of a shipped world, or run folder of a dynamics model.
        vqvae: run folder of a VQ-VAE to evaluate without a world, or name or run folder of a world for its VQ-VAE.
        no_context_prior: run folder of a baseline dynamics model trained with --model.context_length 0.
        frames: number of frames to reconstruct.
        segments: number of segments to score bits per code on, a multiple of 4.
        length: frames per scored segment, more than 6.
        clips: number of clips to dream and compare with the recording.
        samples: number of dreams per clip.
        horizon: frames per dream, 2 or more.
        drift_rollouts: number of long dreams to measure drift on; 0 for none.
        drift_horizon: frames per long dream, 2 or more.
        episodes: number of held-out episodes to predict rewards and terminations in.
        objects: number of clips with an object in view to measure object permanence on; 0 for none.
        pairs: number of frame pairs that the classifiers of actions and of dreams are trained on.
        only: comma-separated sections to run; by default all: reconstruction, bits_per_code, dreams, actions, drift,
            reward_termination, objects.
        quick: take a first look in two minutes, with less of everything, no long dreams and no objects.
        temperature: sampling temperature of all dreams, 0 or more.
        seed: random seed for choosing segments and clips, training classifiers, and dreaming.
        out: folder to write; by default the first unused name of evaluation, evaluation-2, ….
        device: device to run the models on, cpu or cuda.
        precision: number format of the dynamics model: float32, bfloat16, or auto for bfloat16 if the hardware has it.
        threads: number of CPU threads that share the dreams.
    """
    import torch

    from worldmodel import checkpoint
    from worldmodel.episodes.segments import split_held_out
    from worldmodel.evaluation.bits_per_code import load_no_context_prior
    from worldmodel.evaluation.clips import sample_held_out_clips
    from worldmodel.evaluation.report import Report
    from worldmodel.evaluation.sections import SECTIONS, Evaluation
    from worldmodel.models.precision import check_device
    from worldmodel.world_model import WorldModel

    sections = only.split(",") if only else ["reconstruction"] if vqvae else list(SECTIONS)
    for name in sections:
        if name not in SECTIONS:
            raise ValueError(unknown_name("section", name, SECTIONS))
        if vqvae and name != "reconstruction":
            raise ValueError(f"--only {name} needs a --world, got --vqvae, which only allows reconstruction")
    settings: dict[str, Any] = {"store": store, "world": world, "vqvae": vqvae, "no_context_prior": no_context_prior}
    settings |= {"frames": frames, "segments": segments, "length": length, "clips": clips, "samples": samples}
    settings |= {"horizon": horizon, "drift_rollouts": drift_rollouts, "drift_horizon": drift_horizon}
    settings |= {"episodes": episodes, "objects": objects, "pairs": pairs, "only": only, "quick": quick}
    settings |= {"temperature": temperature, "seed": seed, "precision": precision}
    if quick:
        settings |= {name: min(settings[name], limit) for name, limit in QUICK_LIMITS.items()}
    _check(settings, threads)
    folder = Path(out) if out else unused_path(Path("evaluation"))
    check_folder(folder)
    if (folder / "index.html").exists() and not (folder / "scores.json").exists():
        raise ValueError(f"{folder} holds an index.html of something else than an evaluation; use another --out")
    torch.set_num_threads(1)
    recorded = EpisodeStore(store)
    model = None if vqvae else WorldModel.load(world, device, threads, precision)
    baseline = None
    if model:
        settings["precision"] = model.precision
        model.check_episodes(recorded.schema)
        if note := model.environment_mismatch(recorded.schema):
            print(f"note: {note}", file=sys.stderr)
        if {"dreams", "actions"} & set(sections):
            sample_held_out_clips(recorded, 1, settings["horizon"], seed)  # raises now if no episode is long enough
        baseline = load_no_context_prior(Path(no_context_prior), model) if no_context_prior else None
    network = model.vqvae if model else checkpoint.load_vqvae(find_vqvae(vqvae)).to(check_device(device))
    scores: dict[str, Any] = {"settings": settings, "held_out_episodes": len(split_held_out(recorded)[1])}
    report = Report(f"VQ-VAE {vqvae}" if vqvae else f"World model {world}", scores)
    evaluation = Evaluation(report, recorded, network, model, baseline)
    for name in tqdm(sections, unit="section", desc="evaluate", leave=False):
        SECTIONS[name](evaluation)
        report.write(folder)  # so that an interrupted evaluation keeps its results
    print(format_scores(scores))
    print(f"wrote {folder / 'index.html'} and scores.json")


def _check(settings: dict[str, Any], threads: int) -> None:
    from worldmodel.evaluation.bits_per_code import BATCH_SIZE

    counts = ("frames", "segments", "clips", "samples", "episodes", "pairs")
    if (
        settings["length"] <= NUM_CONTEXT_FRAMES
        or settings["horizon"] < 2
        or min(settings[name] for name in counts) < 1
        or min(settings["drift_rollouts"], settings["objects"]) < 0
    ):
        raise ValueError(
            f"--length must be more than {NUM_CONTEXT_FRAMES}, --horizon more than 1, --drift_rollouts and --objects "
            f"0 or more, and {', '.join(f'--{name}' for name in counts)} 1 or more"
        )
    if settings["drift_rollouts"] and settings["drift_horizon"] < 2:
        raise ValueError(
            f"--drift_horizon must be 2 or more, got {settings['drift_horizon']}; --drift_rollouts 0 skips long dreams"
        )
    if settings["segments"] % BATCH_SIZE:
        raise ValueError(
            f"--segments must be a multiple of {BATCH_SIZE}, which swap their actions, got {settings['segments']}"
        )
    check_seed(settings["seed"])
    check_threads(threads)
    check_temperature(settings["temperature"])


if __name__ == "__main__":
    cli.run(evaluate)
