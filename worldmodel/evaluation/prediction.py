"""What the next frame costs a prior, beside the same without its actions, and beside simpler ones."""

from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from worldmodel import checkpoint
from worldmodel.core.dynamics import Batch
from worldmodel.data.store import EpisodeStore
from worldmodel.data.windows import StepWindows, split
from worldmodel.evaluation.clips import CONTEXT
from worldmodel.scores import CopyLast, Unigram, bits, interval, shuffle_actions
from worldmodel.world import WorldModel

BATCH = 4


def predict(
    world: WorldModel, codes: EpisodeStore, blind: str, stretches: int, length: int, seed: int
) -> tuple[dict[str, dict], float]:
    """Bits of the world and of its baselines on held-out stretches, over all frames but the first CONTEXT.

    ``shuffled actions`` are those of another stretch, ``no actions`` says that none is known (which means something
    only to a prior trained with ``untold`` above 0). The baselines are fitted to training episodes.

    Args:
        blind: run folder of a prior trained with ``model.context`` 0, or nothing.

    Returns:
        Rows of ``bits_per_code``, an interval over stretches, and ``bits_per_frame``; the flip probability of
        ``copy last or flip``.
    """
    learnt, held_out = split(codes)
    windows = StepWindows(codes, held_out, BATCH, length, seed)
    config = world.dynamics.config
    seen = [Batch(*StepWindows(codes, learnt, BATCH, length, seed)(number)) for number in range(stretches)]
    sample = torch.cat([batch.codes[batch.frame_valid.all(1)] for batch in seen])  # (N, T, H, W), none of it padding
    unigram = Unigram(sample, config.codes)
    copy = CopyLast(sample, unigram)
    unaware = checkpoint.load_dynamics(Path(blind)).to(world.device) if blind else None
    rows: dict[str, list[Tensor]] = {}
    for number in tqdm(range(stretches // BATCH), unit="batch", desc="predict", leave=False):
        batch = Batch(*windows(number))
        there = Batch(*(part.to(world.device) for part in batch))
        scored = {
            "true actions": bits(world.dynamics, there).cpu(),
            "shuffled actions": bits(world.dynamics, shuffle_actions(there)).cpu(),
            "unigram": unigram.bits(batch.codes),
            "copy last or flip": copy.bits(batch.codes),
        }
        if config.untold:
            scored["no actions"] = bits(
                world.dynamics, there._replace(actions=torch.full_like(there.actions, -1))
            ).cpu()
        if unaware:
            scored["no context, no actions"] = bits(unaware, there).cpu()
        valid = batch.frame_valid[:, CONTEXT:]
        some = valid.any(1)  # an episode may be too short to score
        for name, values in scored.items():
            rows.setdefault(name, []).append(((values[:, CONTEXT - 1 :] * valid).sum(1) / valid.sum(1))[some])
    codes_of_a_frame = config.grid[0] * config.grid[1]
    result = {}
    for name, values in rows.items():
        per_code = interval(torch.cat(values))
        result[name] = {"bits_per_code": per_code, "bits_per_frame": per_code["mean"] * codes_of_a_frame}
    return result, copy.flip
