"""What the next frame costs a prior, beside the same without its actions, and beside simpler ones."""

from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from worldmodel import checkpoint
from worldmodel.episodes.segments import split
from worldmodel.episodes.store import EpisodeStore
from worldmodel.evaluation.clips import CONTEXT, stretches
from worldmodel.metrics import CopyLast, Unigram, bits, interval
from worldmodel.models.dynamics import Dynamics
from worldmodel.world_model import WorldModel

BATCH = 4


def predict(
    world: WorldModel, codes: EpisodeStore, blind: Dynamics | None, count: int, length: int, seed: int
) -> tuple[dict[str, dict], float]:
    """Bits of the world and of its baselines on held-out stretches, over all frames but the first CONTEXT.

    ``shuffled actions`` are those of another stretch, ``no actions`` says that none is known (which means something
    only to a prior trained with ``untold`` above 0). The baselines are fitted to training episodes.

    Args:
        blind: a prior of single frames, or none.
        count: of stretches.
        length: of each, in frames.

    Returns:
        Rows of ``bits_per_code``, an interval over episodes, and ``bits_per_frame``; the flip probability of
        ``copy last or flip``.
    """
    config, (learnt, held_out) = world.dynamics.config, split(codes)
    seen, _, _ = stretches(codes, learnt, 4 * count, length, seed)
    unigram = Unigram(seen, config.codes)
    copy = CopyLast(seen, unigram)
    films, actions, episodes = stretches(codes, held_out, count, length, seed)
    rows: dict[str, list[Tensor]] = {}
    parts = zip(films.split(BATCH), actions.split(BATCH), strict=True)
    for film, taken in tqdm(parts, total=-(-count // BATCH), unit="batch", desc="predict", leave=False):
        there, told = film.to(world.device), taken.to(world.device)
        scored = {
            "true actions": bits(world.rollout.dynamics, there, told),
            "shuffled actions": bits(world.rollout.dynamics, there, told.roll(1, 0)),
        }
        if config.untold:
            scored["no actions"] = bits(world.rollout.dynamics, there, torch.full_like(told, -1))
        if blind:
            scored["no context, no actions"] = bits(blind, there, told)
        scored |= {"copy last or flip": copy.bits(film), "unigram": unigram.bits(film[:, 1:])}
        for name, values in scored.items():
            rows.setdefault(name, []).append(values[:, CONTEXT - 1 :].mean(1).cpu())
    result = {}
    for name, values in rows.items():
        per_code = interval(torch.cat(values), episodes)
        result[name] = {"bits_per_code": per_code, "bits_per_frame": per_code["mean"] * config.grid[0] * config.grid[1]}
    return result, copy.flip


def load_blind(run: Path, world: WorldModel) -> Dynamics:
    """The prior of single frames that is the baseline of a world.

    Raises:
        ValueError: if it knows a past, or other codes.
    """
    prior = checkpoint.load_dynamics(run).to(world.device)
    if prior.config.context:
        raise ValueError(
            f"--blind {run} must be a prior trained with --model.context 0, it knows {prior.config.context} frames"
        )
    if checkpoint.digest(run / "vqvae") != checkpoint.digest(world.run / "vqvae"):
        raise ValueError(f"--blind {run} predicts the codes of another VQ-VAE than the world {world.run}")
    return prior
