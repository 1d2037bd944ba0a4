"""Bits per code of the next frame under the world model and under simpler baselines."""

from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from worldmodel import checkpoint, tensor_io
from worldmodel.baselines import CopyLast, Unigram
from worldmodel.episodes.encode import encode_store
from worldmodel.episodes.segments import sample_segments, split_held_out
from worldmodel.episodes.store import Entry, EpisodeStore
from worldmodel.metrics import frame_bits_per_code
from worldmodel.models.config import NUM_CONTEXT_FRAMES
from worldmodel.models.dynamics import Dynamics
from worldmodel.stats import bootstrap_interval
from worldmodel.world_model import WorldModel

BATCH_SIZE = 4  # segments; actions are shuffled within a batch
TRAIN_SEGMENTS = 4  # of training episodes that the baselines are fitted to, for each scored segment


def bits_per_code(
    world: WorldModel,
    store: EpisodeStore,
    codes: EpisodeStore,
    no_context_prior: Dynamics | None,
    count: int,
    length: int,
    seed: int,
) -> tuple[dict[str, dict], float]:
    """Score held-out segments, leaving out their first NUM_CONTEXT_FRAMES frames.

    ``shuffled_actions`` takes the actions of another segment; ``no_actions`` masks all actions and is scored only for a
    prior trained with ``action_dropout`` above 0. The baselines are fitted to training episodes.

    Args:
        codes: store of the codes of the held-out episodes, or of all.
        no_context_prior: prior that sees no past frames, or None.
        count: number of segments.
        length: frames per segment.

    Returns:
        By model, ``bits_per_code``, an interval over episodes, and ``bits_per_frame``; and the flip probability of
        the ``copy_last`` baseline.
    """
    config, dynamics, (train, held_out) = world.dynamics.config, world.rollout.dynamics, split_held_out(store)
    train_codes = _sample_codes(world, store, codes, train, TRAIN_SEGMENTS * count, length, seed)
    unigram = Unigram(train_codes, config.codebook_size)
    copy_last = CopyLast(train_codes, unigram)
    segments, actions, episodes = sample_segments(codes, held_out, count, length, seed)
    rows: dict[str, list[Tensor]] = {}
    batches = zip(segments.split(BATCH_SIZE), actions.split(BATCH_SIZE), strict=True)
    for batch, taken in tqdm(batches, total=-(-count // BATCH_SIZE), unit="batch", desc="bits per code", leave=False):
        frames, taken = batch.to(world.device), taken.to(world.device)
        scores = {
            "true_actions": frame_bits_per_code(dynamics, frames, taken),
            "shuffled_actions": frame_bits_per_code(dynamics, frames, taken.roll(1, 0)),
        }
        if config.action_dropout:
            scores["no_actions"] = frame_bits_per_code(dynamics, frames, torch.full_like(taken, -1))
        if no_context_prior:
            scores["no_context_no_actions"] = frame_bits_per_code(no_context_prior, frames, taken)
        scores |= {"copy_last": copy_last.bits(batch), "unigram": unigram.bits(batch[:, 1:])}
        for name, values in scores.items():
            rows.setdefault(name, []).append(values[:, NUM_CONTEXT_FRAMES - 1 :].mean(1).cpu())
    result = {}
    for name, values in rows.items():
        interval = bootstrap_interval(torch.cat(values), episodes)
        result[name] = {"bits_per_code": interval, "bits_per_frame": interval["mean"] * config.grid[0] * config.grid[1]}
    return result, copy_last.flip_probability


def _sample_codes(
    world: WorldModel,
    store: EpisodeStore,
    codes: EpisodeStore,
    entries: list[Entry],
    count: int,
    length: int,
    seed: int,
) -> Tensor:
    """Return the codes of random segments of the episodes, (count, length, h, w), by way of the fewest frames."""
    if sum(entry.observations for entry in entries if entry.number not in codes) <= count * length:
        codes = encode_store(store, world.run / "vqvae", world.device, entries=entries)
        return sample_segments(codes, entries, count, length, seed)[0]
    frames, _, _ = sample_segments(store, entries, count, length, seed)
    return world.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])


def load_no_context_prior(run: Path, world: WorldModel) -> Dynamics:
    """Load the baseline that predicts each frame without past frames.

    Raises:
        ValueError: if its context length is not 0, or its VQ-VAE is not the world's.
    """
    prior = checkpoint.load_dynamics(run).to(world.device)
    if length := prior.config.context_length:
        raise ValueError(f"--no_context_prior {run} must be trained with --model.context_length 0, got {length}")
    if tensor_io.digest(run / "vqvae") != tensor_io.digest(world.run / "vqvae"):
        raise ValueError(f"--no_context_prior {run} predicts the codes of another VQ-VAE than the world {world.run}")
    return prior
