"""The sections of an evaluation: each adds its scores, plots and images to the report."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from worldmodel.episodes.encode import encode_store
from worldmodel.episodes.segments import split_held_out
from worldmodel.episodes.store import Entry, EpisodeStore
from worldmodel.evaluation import plots
from worldmodel.evaluation.bits_per_code import bits_per_code
from worldmodel.evaluation.clips import Clips, dream_clips, sample_held_out_clips
from worldmodel.evaluation.drift import drift
from worldmodel.evaluation.inverse_dynamics import FramePairs, inverse_dynamics, sample_real_pairs
from worldmodel.evaluation.object_permanence import object_permanence
from worldmodel.evaluation.open_loop import action_sensitivity, intervals_by_horizon, open_loop
from worldmodel.evaluation.report import Report
from worldmodel.evaluation.reward_termination import reward_termination
from worldmodel.images.sources import FrameImages
from worldmodel.metrics import vqvae_scores
from worldmodel.models.config import NUM_CONTEXT_FRAMES
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.vqvae import VQVAE
from worldmodel.splits import evenly_spaced
from worldmodel.world_model import WorldModel

NUM_SHOWN_FRAMES = 12  # in the image of reconstructions


@dataclass
class Evaluation:
    """What the sections share.

    Attributes:
        report: report that the sections add to; its scores hold the settings, parameters of the program.
        store: recorded episodes.
        vqvae: VQ-VAE of the world, or the one measured alone.
        model: world model, or None if the VQ-VAE is measured alone.
        no_context_prior: prior that sees no past frames, or None.
    """

    report: Report
    store: EpisodeStore
    vqvae: VQVAE
    model: WorldModel | None
    no_context_prior: Dynamics | None = None

    @property
    def world(self) -> WorldModel:
        """The world model, which only the reconstruction does without."""
        assert self.model is not None  # evaluate() runs no other section without it
        return self.model

    @property
    def settings(self) -> dict[str, Any]:
        return self.report.scores["settings"]

    @property
    def sampling(self) -> dict[str, Any]:
        """The temperature and the seed of all dreams."""
        return {name: self.settings[name] for name in ("temperature", "seed")}

    @cached_property
    def held_out(self) -> list[Entry]:
        return split_held_out(self.store)[1]

    @cached_property
    def codes(self) -> EpisodeStore:
        """The codes of the held-out episodes, and of those that were encoded before."""
        return encode_store(self.store, self.world.run / "vqvae", self.world.device, entries=self.held_out)

    @cached_property
    def clips(self) -> Clips:
        sizes = (self.settings[name] for name in ("clips", "horizon", "seed"))
        return sample_held_out_clips(self.store, *sizes)

    @cached_property
    def dreams(self) -> Tensor:
        return dream_clips(self.world, self.clips, self.clips.future_actions, self.settings["samples"], **self.sampling)

    @cached_property
    def pairs(self) -> FramePairs:
        return sample_real_pairs(self.world, self.store, self.settings["pairs"], self.settings["seed"])


def add_reconstruction(evaluation: Evaluation) -> None:
    """Add the reconstruction scores of held-out frames, and an image of some originals over reconstructions."""
    report, store = evaluation.report, evaluation.store
    held_out = FrameImages([(store, evaluation.held_out)])
    originals = torch.from_numpy(held_out.read(evenly_spaced(len(held_out), evaluation.settings["frames"])))
    reconstructions, report.scores["reconstruction"] = vqvae_scores(evaluation.vqvae, originals)
    every = max(1, len(originals) // NUM_SHOWN_FRAMES)
    above, below = (part[None, ::every][:, :NUM_SHOWN_FRAMES] for part in (originals, reconstructions))
    report.images["reconstruction"] = plots.draw_comparison(above, below)


def add_bits_per_code(evaluation: Evaluation) -> None:
    """Add the bits per code of the next frame under the world and the baselines."""
    world, settings, scores = evaluation.world, evaluation.settings, evaluation.report.scores
    sampling = settings["segments"], settings["length"], settings["seed"]
    results = bits_per_code(world, evaluation.store, evaluation.codes, evaluation.no_context_prior, *sampling)
    scores["bits_per_code"], scores["flip_probability"] = results


def add_dreams(evaluation: Evaluation) -> None:
    """Add the open-loop scores of dreams under the recorded actions, their curves, and strips of example dreams."""
    report, world, clips, dreams = evaluation.report, evaluation.world, evaluation.clips, evaluation.dreams
    values = open_loop(world, clips, dreams)
    report.scores["open_loop"] = {
        metric: {name: intervals_by_horizon(rows, clips.episodes) for name, rows in by_name.items()}
        for metric, by_name in values.items()
    }
    wins = (values["psnr"]["dream"] > values["psnr"]["copy_last"]).float()
    report.scores["fraction_above_copy_last"] = intervals_by_horizon(wins, clips.episodes)
    for metric, label in (("psnr", "PSNR (dB)"), ("ssim", "SSIM")):
        report.plots[metric] = plots.to_svg(plots.plot_horizon_curves(values[metric], clips.episodes, label))
    report.images |= plots.draw_action_strips(world, evaluation.store, **evaluation.sampling)
    report.images["worst"] = plots.draw_worst_dreams(world, clips, dreams, values["psnr"]["dream"])


def add_actions(evaluation: Evaluation) -> None:
    """Add how much PSNR random actions cost, and how well actions are recovered from dreamed frames."""
    report, world, clips = evaluation.report, evaluation.world, evaluation.clips
    report.scores["delta_psnr"] = action_sensitivity(world, clips, **evaluation.sampling)
    found = inverse_dynamics(world, evaluation.pairs, clips, evaluation.dreams, seed=evaluation.settings["seed"])
    report.scores["actions"] = found
    report.plots["confusion"] = plots.to_svg(plots.plot_confusion_matrices(found["confusion"], world.action_names))


def add_drift(evaluation: Evaluation) -> None:
    """Add the drift of long dreams, unless ``drift_rollouts`` is 0 or the episodes are too few or too short."""
    report, world, settings = evaluation.report, evaluation.world, evaluation.settings
    if not settings["drift_rollouts"]:
        return
    training, needed = split_held_out(evaluation.store)[0], NUM_CONTEXT_FRAMES + 2
    if len(evaluation.held_out) < 2:
        print("note: drift is left out; it compares dreams with two halves of the held-out episodes, and there is one")
    elif max(entry.observations for entry in training) < needed:
        print(f"note: drift is left out; it needs a training episode of {needed} frames or more")
    else:
        sizes = settings["drift_rollouts"], settings["drift_horizon"]
        data = evaluation.store, evaluation.codes, evaluation.pairs.reconstructed
        report.scores["drift"], dreams = drift(world, *data, *sizes, **evaluation.sampling)
        report.images["drift_rollouts"] = plots.draw_milestones(world, dreams)


def add_reward_termination(evaluation: Evaluation) -> None:
    """Add the scores of predicted rewards and terminations, and a reliability diagram."""
    report = evaluation.report
    entries = evaluation.held_out[: evaluation.settings["episodes"]]
    found = reward_termination(evaluation.world, evaluation.codes, entries, **evaluation.sampling)
    report.scores["reward_termination"] = found
    report.plots["reliability"] = plots.to_svg(plots.plot_reliability(found["termination"]["calibration"]))


def add_objects(evaluation: Evaluation) -> None:
    """Add object permanence, unless ``objects`` is 0 or the objects in view are unknown."""
    count = evaluation.settings["objects"]
    if count and (found := object_permanence(evaluation.world, evaluation.store, count, **evaluation.sampling)):
        evaluation.report.scores["objects"] = found


SECTIONS: dict[str, Callable[[Evaluation], None]] = {
    "reconstruction": add_reconstruction,
    "bits_per_code": add_bits_per_code,
    "dreams": add_dreams,
    "actions": add_actions,
    "drift": add_drift,
    "reward_termination": add_reward_termination,
    "objects": add_objects,
}
