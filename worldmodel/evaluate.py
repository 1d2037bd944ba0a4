"""Measure a world on held-out episodes: ``python -m worldmodel.evaluate --store stores/doom`` writes a page."""

from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from worldmodel import checkpoint, config
from worldmodel.checks import check_seed
from worldmodel.episodes.segments import split
from worldmodel.episodes.store import EpisodeStore
from worldmodel.evaluation.bits_per_code import BATCH, load_blind
from worldmodel.evaluation.clips import CONTEXT, held_out_clips
from worldmodel.evaluation.report import Report
from worldmodel.evaluation.sections import PARTS, Evaluation
from worldmodel.evaluation.table import table
from worldmodel.files import check_folder, free
from worldmodel.models.autoregressive.sampling import check_temperature
from worldmodel.models.precision import Precision
from worldmodel.suggest import unknown
from worldmodel.world_model import DEFAULT, WorldModel

SETTINGS = ("store", "world", "vqvae", "blind", "frames", "stretches", "length", "clips", "samples", "horizon", "long")
SETTINGS += ("long_frames", "episodes", "objects", "pairs", "only", "quick", "temperature", "seed", "precision")
QUICK = {"frames": 256, "stretches": 16, "clips": 16, "samples": 1, "horizon": 20, "episodes": 4, "pairs": 1024}
QUICK |= {"long": 0, "objects": 0}  # at most


def evaluate(
    store: str,
    world: str = DEFAULT,
    vqvae: str = "",
    blind: str = "",
    frames: int = 2048,
    stretches: int = 256,
    length: int = 16,
    clips: int = 256,
    samples: int = 2,
    horizon: int = 50,
    long: int = 32,
    long_frames: int = 1000,
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
    """Measure a world on the episodes of a store that training held out.

    The folder ``out`` gets scores.json, index.html, one page with every number, plot and strip, and the pictures as
    files. What is measured: reconstruction; bits per code with true, shuffled and no actions, beside baselines; dreams
    from six real frames under the recorded actions, beside those frames; whether the actions can be read off the
    dream, and what random ones cost; how far long dreams drift from real video; rewards and ends; whether objects stay,
    if the store says what is in view (--env.objects true when Doom is recorded) or is of DeepMind Lab. Each part's
    exact definition stands in the docstring of worldmodel/evaluation/. The most of it is printed as a table.

    Args:
        store: folder of recorded episodes.
        world: a shipped world's name, or the run folder of a prior.
        vqvae: run folder of a VQ-VAE, to measure that alone.
        blind: run folder of a prior trained with --model.context 0, for the baseline that knows no past.
        frames: to reconstruct.
        stretches: to predict.
        length: frames of such a stretch.
        clips: to dream and compare with what came.
        samples: dreams of each clip.
        horizon: frames of such a dream.
        long: dreams that drift is measured on; 0 for none.
        long_frames: of each.
        episodes: held-out ones that rewards and ends are foretold in.
        objects: clips that begin with an object in view, to follow it in; 0 for none.
        pairs: of frames that the nets learn from which name actions and tell dreams.
        only: the parts to measure, such as prediction,dreams; all of them by default: reconstruction, prediction,
            dreams, actions, drift, heads, objects.
        quick: a first look in two minutes: fewer of everything, no long dreams and no objects.
        temperature: of all dreams.
        seed: of the choice of stretches and clips, of the nets that judge, and of the dreams.
        out: folder to write; by default evaluation, evaluation-2, …, the first that is free.
        device: cpu or cuda.
        precision: of what is multiplied in a dream: float32, bfloat16, or auto: bfloat16 if the hardware multiplies it.
        threads: that dreams are shared out among on the CPU.
    """
    chosen = only.split(",") if only else ["reconstruction"] if vqvae else list(PARTS)
    for part in chosen:
        if part not in PARTS:
            raise ValueError(unknown("part", part, PARTS))
        if vqvae and part != "reconstruction":
            raise ValueError(f"--only {part} needs a --world, and --vqvae is that of none")
    settings = {name: value for name, value in locals().items() if name in SETTINGS}
    if quick:
        settings |= {name: min(settings[name], most) for name, most in QUICK.items()}
    _check(settings, threads)
    folder = Path(out) if out else free(Path("evaluation"))
    check_folder(folder)
    torch.set_num_threads(1)
    recorded = EpisodeStore(store)
    model = None if vqvae else WorldModel.load(world, device, threads, precision)
    unaware = None
    if model:
        settings["precision"] = str(model.dtype).removeprefix("torch.")
        model.check_actions(recorded.schema.action_names)
        if {"dreams", "actions"} & set(chosen):
            held_out_clips(recorded, 1, settings["horizon"], seed)  # to say now that no episode is long enough
        unaware = load_blind(Path(blind), model) if blind else None
    network = model.vqvae if model else checkpoint.load_vqvae(Path(vqvae)).to(checkpoint.check_device(device))
    scores: dict[str, Any] = {"settings": settings, "held_out_episodes": len(split(recorded)[1])}
    report = Report(f"The VQ-VAE {vqvae}" if vqvae else f"The world {world}", scores)
    evaluation = Evaluation(report, recorded, network, model, unaware)
    for part in tqdm(chosen, unit="part", desc="evaluate", leave=False):
        PARTS[part](evaluation)
        report.write(folder)  # so that nothing is lost
    print(table(scores))
    print(f"wrote {folder / 'index.html'} and scores.json")


def _check(settings: dict[str, Any], threads: int) -> None:
    counts = ("frames", "stretches", "clips", "samples", "episodes", "pairs")
    fewest = min(*(settings[name] for name in counts), threads)
    if (
        settings["length"] <= CONTEXT
        or settings["horizon"] < 2
        or fewest < 1
        or min(settings["long"], settings["objects"]) < 0
    ):
        raise ValueError(
            f"--length must be more than {CONTEXT}, --horizon more than 1, --long and --objects 0 or more, and "
            f"{', '.join(f'--{name}' for name in counts)} and --threads 1 or more"
        )
    if settings["long"] and settings["long_frames"] < 2:
        raise ValueError(
            f"--long_frames must be 2 or more, got {settings['long_frames']}; --long 0 leaves long dreams out"
        )
    if settings["stretches"] % BATCH:
        raise ValueError(
            f"--stretches must be a multiple of {BATCH}, which swap their actions, got {settings['stretches']}"
        )
    check_seed(settings["seed"])
    check_temperature(settings["temperature"])


if __name__ == "__main__":
    config.run(evaluate)
