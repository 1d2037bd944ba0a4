"""Measure a world on held-out episodes: ``python -m worldmodel.evaluate --store stores/doom`` writes a page."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel import checkpoint, config
from worldmodel.codes import encoded
from worldmodel.core.precision import Precision
from worldmodel.core.ranges import check_seed
from worldmodel.core.sampling import check_temperature
from worldmodel.core.vqvae import VQVAE
from worldmodel.data.pictures import FramePictures
from worldmodel.data.store import EpisodeStore
from worldmodel.data.windows import split, spread
from worldmodel.evaluation import plots
from worldmodel.evaluation.clips import CONTEXT, dream, held_out_clips
from worldmodel.evaluation.drift import drift
from worldmodel.evaluation.heads import heads
from worldmodel.evaluation.judges import inverse_dynamics, real_pairs
from worldmodel.evaluation.objects import permanence
from worldmodel.evaluation.openloop import by_horizon, open_loop, worth_of_actions
from worldmodel.evaluation.page import Report
from worldmodel.evaluation.prediction import BATCH, load_blind, predict
from worldmodel.files import check_folder
from worldmodel.scores import vqvae_scores
from worldmodel.world import DEFAULT, WorldModel

SHOWN = 12  # frames in the picture of reconstructions


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
    temperature: float = 1.0,
    seed: int = 0,
    out: str = "evaluation",
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
    exact definition stands in the docstring of worldmodel/evaluation/.

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
        temperature: of all dreams.
        seed: of the choice of stretches and clips, of the nets that judge, and of the dreams.
        out: folder to write.
        device: cpu or cuda.
        precision: of what is multiplied in a dream: float32, bfloat16, or auto: bfloat16 if the hardware multiplies it.
        threads: that dreams are shared out among on the CPU.
    """
    settings = {name: value for name, value in locals().items() if name not in ("out", "device", "threads")}
    counts = frames, stretches, clips, samples, episodes, threads
    if length <= CONTEXT or horizon < 2 or min(counts) < 1 or min(long, objects) < 0:
        raise ValueError(
            f"--length must be more than {CONTEXT}, --horizon more than 1, --long and --objects 0 or more, and "
            f"--frames, --stretches, --clips, --samples, --episodes and --threads 1 or more"
        )
    if long and long_frames < 2:
        raise ValueError(f"--long_frames must be 2 or more, got {long_frames}; --long 0 leaves long dreams out")
    if stretches % BATCH:
        raise ValueError(f"--stretches must be a multiple of {BATCH}, which swap their actions, got {stretches}")
    check_seed(seed)
    check_temperature(temperature)
    check_folder(Path(out))
    torch.set_num_threads(1)
    recorded = EpisodeStore(store)
    model = None if vqvae else WorldModel.load(world, device, threads, precision)
    if model:
        settings["precision"] = str(model.dtype).removeprefix("torch.")
        model.check_actions(recorded.schema.action_names)
        held_out_clips(recorded, 1, horizon, seed)  # to say now that no episode is long enough
        unaware = load_blind(Path(blind), model) if blind else None
    network = model.vqvae if model else checkpoint.load_vqvae(Path(vqvae)).to(checkpoint.check_device(device))
    scores: dict[str, Any] = {"settings": settings, "held_out_episodes": len(split(recorded)[1])}
    report = Report(f"The VQ-VAE {vqvae}" if vqvae else f"The world {world}", scores)

    shown, scores["reconstruction"] = reconstruct(network, recorded, frames)
    report.pictures["reconstruction"] = shown
    report.write(Path(out))  # after each part, so that nothing is lost
    if model:
        codes = encoded(recorded, model.run / "vqvae", torch.device(device))
        scores["bits_per_code"], scores["flip_probability"] = predict(model, codes, unaware, stretches, length, seed)
        report.write(Path(out))
        follow(report, model, recorded, codes)
        report.write(Path(out))
        scores["heads"] = heads(model, codes, episodes)
        report.plots["reliability"] = plots.svg(plots.reliability(scores["heads"]["termination"]["calibration"]))
        report.write(Path(out))
        if objects and (kinds := permanence(model, recorded, objects, temperature, seed)):
            scores["objects"] = kinds
    report.write(Path(out))
    print(json.dumps({name: part for name, part in scores.items() if name != "settings"}, indent=2))
    print(f"wrote {Path(out) / 'index.html'} and scores.json")


def reconstruct(network: VQVAE, recorded: EpisodeStore, count: int) -> tuple[np.ndarray, dict[str, float]]:
    """Scores of ``count`` held-out frames through a VQ-VAE, and a picture of some over what became of them."""
    held_out = FramePictures([(recorded, split(recorded)[1])])
    originals = torch.from_numpy(held_out.read(spread(len(held_out), count)))
    reconstructions, scores = vqvae_scores(network, originals)
    every = max(1, len(originals) // SHOWN)
    return plots.pairs_of_rows(*(part[None, ::every][:, :SHOWN] for part in (originals, reconstructions))), scores


def follow(report: Report, model: WorldModel, recorded: EpisodeStore, codes: EpisodeStore) -> None:
    """Everything that is measured on dreams: open loop, the worth of actions, drift."""
    scores, settings = report.scores, report.scores["settings"]
    seed, temperature = settings["seed"], settings["temperature"]
    clips = held_out_clips(recorded, settings["clips"], settings["horizon"], seed)
    dreams = dream(model, clips, clips.to_take, settings["samples"], temperature, seed)
    measured = open_loop(model, clips, dreams)
    scores["open_loop"] = {
        measure: {name: by_horizon(values, clips.episodes) for name, values in rows.items()}
        for measure, rows in measured.items()
    }
    wins = (measured["psnr"]["dream"] > measured["psnr"]["copy last"]).float()
    scores["dreams_above_copy_last"] = by_horizon(wins, clips.episodes)
    for measure, label in (("psnr", "PSNR (dB)"), ("ssim", "SSIM")):
        report.plots[measure] = plots.svg(plots.curves(measured[measure], clips.episodes, label))
    report.pictures |= plots.strips(model, recorded, temperature, seed)
    report.pictures["worst"] = plots.worst(model, clips, dreams, measured["psnr"]["dream"])

    scores["delta_psnr"] = worth_of_actions(model, clips, temperature, seed)
    pairs = real_pairs(model, recorded, seed)
    scores["actions"] = inverse_dynamics(model, pairs, clips, dreams, seed=seed)
    report.plots["confusion"] = plots.svg(plots.matrices(scores["actions"]["confusion"], model.action_names))

    if settings["long"]:
        lengths = settings["long"], settings["long_frames"]
        scores["drift"], long = drift(model, recorded, codes, pairs.shown, *lengths, temperature, seed)
        report.pictures["long"] = plots.milestones(model, long)


if __name__ == "__main__":
    config.run(evaluate)
