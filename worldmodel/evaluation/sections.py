"""The parts of an evaluation: each adds what it measures to the report."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from worldmodel.episodes.encode import encoded
from worldmodel.episodes.segments import split, spread
from worldmodel.episodes.store import EpisodeStore
from worldmodel.evaluation import plots
from worldmodel.evaluation.bits_per_code import predict
from worldmodel.evaluation.clips import Clips, dream, held_out_clips
from worldmodel.evaluation.drift import drift
from worldmodel.evaluation.inverse_dynamics import Pairs, inverse_dynamics, real_pairs
from worldmodel.evaluation.object_permanence import permanence
from worldmodel.evaluation.open_loop import by_horizon, open_loop, worth_of_actions
from worldmodel.evaluation.report import Report
from worldmodel.evaluation.reward_termination import heads
from worldmodel.images.pictures import FramePictures
from worldmodel.metrics import vqvae_scores
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.vqvae import VQVAE
from worldmodel.world_model import WorldModel

SHOWN = 12  # frames in the picture of reconstructions


@dataclass
class Evaluation:
    """What the parts work on, and share.

    Attributes:
        report: that they add to; its ``settings`` are those of ``worldmodel.evaluate``.
        recorded: the store.
        network: the VQ-VAE.
        model: the world, or None where the VQ-VAE alone is measured.
        blind: a prior of single frames, or None.
    """

    report: Report
    recorded: EpisodeStore
    network: VQVAE
    model: WorldModel | None
    blind: Dynamics | None = None

    @property
    def settings(self) -> dict[str, Any]:
        return self.report.scores["settings"]

    @property
    def chance(self) -> dict[str, Any]:
        """The temperature and the seed of all dreams."""
        return {name: self.settings[name] for name in ("temperature", "seed")}

    @cached_property
    def codes(self) -> EpisodeStore:
        return encoded(self.recorded, self.model.run / "vqvae", self.model.device)

    @cached_property
    def clips(self) -> Clips:
        return held_out_clips(self.recorded, self.settings["clips"], self.settings["horizon"], self.settings["seed"])

    @cached_property
    def dreams(self) -> Tensor:
        return dream(self.model, self.clips, self.clips.to_take, self.settings["samples"], **self.chance)

    @cached_property
    def pairs(self) -> Pairs:
        return real_pairs(self.model, self.recorded, self.settings["pairs"], self.settings["seed"])


def reconstruction(it: Evaluation) -> None:
    """Held-out frames through the VQ-VAE, and a picture of some over what became of them."""
    held_out = FramePictures([(it.recorded, split(it.recorded)[1])])
    originals = torch.from_numpy(held_out.read(spread(len(held_out), it.settings["frames"])))
    reconstructions, it.report.scores["reconstruction"] = vqvae_scores(it.network, originals)
    every = max(1, len(originals) // SHOWN)
    rows = (part[None, ::every][:, :SHOWN] for part in (originals, reconstructions))
    it.report.pictures["reconstruction"] = plots.pairs_of_rows(*rows)


def prediction(it: Evaluation) -> None:
    """Bits per code of what comes next, beside baselines."""
    settings, scores = it.settings, it.report.scores
    scores["bits_per_code"], scores["flip_probability"] = predict(
        it.model, it.codes, it.blind, settings["stretches"], settings["length"], settings["seed"]
    )


def dreams(it: Evaluation) -> None:
    """Dreams under the recorded actions, beside the frames that came."""
    scores, report, episodes = it.report.scores, it.report, it.clips.episodes
    measured = open_loop(it.model, it.clips, it.dreams)
    scores["open_loop"] = {
        measure: {name: by_horizon(values, episodes) for name, values in rows.items()}
        for measure, rows in measured.items()
    }
    wins = (measured["psnr"]["dream"] > measured["psnr"]["copy last"]).float()
    scores["dreams_above_copy_last"] = by_horizon(wins, episodes)
    for measure, label in (("psnr", "PSNR (dB)"), ("ssim", "SSIM")):
        report.plots[measure] = plots.svg(plots.curves(measured[measure], episodes, label))
    report.pictures |= plots.strips(it.model, it.recorded, **it.chance)
    report.pictures["worst"] = plots.worst(it.model, it.clips, it.dreams, measured["psnr"]["dream"])


def actions(it: Evaluation) -> None:
    """Whether actions can be read off the dream, and what random ones cost."""
    scores = it.report.scores
    scores["delta_psnr"] = worth_of_actions(it.model, it.clips, **it.chance)
    scores["actions"] = inverse_dynamics(it.model, it.pairs, it.clips, it.dreams, seed=it.settings["seed"])
    it.report.plots["confusion"] = plots.svg(plots.matrices(scores["actions"]["confusion"], it.model.action_names))


def drifting(it: Evaluation) -> None:
    """How far long dreams come from real video; nothing if none are asked for."""
    if it.settings["long"]:
        lengths = it.settings["long"], it.settings["long_frames"]
        it.report.scores["drift"], long = drift(it.model, it.recorded, it.codes, it.pairs.shown, *lengths, **it.chance)
        it.report.pictures["long"] = plots.milestones(it.model, long)


def outcomes(it: Evaluation) -> None:
    """Rewards and ends foretold."""
    it.report.scores["heads"] = found = heads(it.model, it.codes, it.settings["episodes"])
    it.report.plots["reliability"] = plots.svg(plots.reliability(found["termination"]["calibration"]))


def objects(it: Evaluation) -> None:
    """Whether objects stay; nothing if none are asked for, or the store does not say what is in view."""
    count = it.settings["objects"]
    if count and (kinds := permanence(it.model, it.recorded, count, **it.chance)):
        it.report.scores["objects"] = kinds


PARTS: dict[str, Callable[[Evaluation], None]] = {
    "reconstruction": reconstruction,
    "prediction": prediction,
    "dreams": dreams,
    "actions": actions,
    "drift": drifting,
    "heads": outcomes,
    "objects": objects,
}
