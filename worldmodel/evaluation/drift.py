"""Does a long dream stay in its world: dreamed frames at 10, 100, 1000 against real ones, frame by frame unmatched."""

import torch
from torch import Tensor

from worldmodel.episodes.segments import split
from worldmodel.episodes.store import EpisodeStore
from worldmodel.evaluation.clips import CONTEXT, Clips, dream, held_out_clips, stretches
from worldmodel.evaluation.inverse_dynamics import Judge, log_odds, neighbours, teach_to_tell_dreams
from worldmodel.metrics import auroc, divergence
from worldmodel.models.quantizers.nearest import perplexity
from worldmodel.world_model import WorldModel

HORIZONS = (10, 100, 1000)
WINDOW = 50  # frames up to a horizon that are looked at, as far as there are any
DISTANCES = ("histogram", "change", "judge")


def drift(
    world: WorldModel,
    store: EpisodeStore,
    codes: EpisodeStore,
    real: Tensor,
    count: int,
    frames: int,
    temperature: float,
    seed: int,
) -> tuple[dict, Tensor]:
    """Distance of long dreams from real video, by horizon.

    ``count`` dreams of ``frames`` frames begin in held-out clips and take the actions of held-out episodes, one
    episode after the other. Looked at are the fifty frames up to each horizon, or as many as there are, beside every
    second held-out episode:

    - ``histogram``: Jensen–Shannon divergence of their codes, in bits;
    - ``change``: difference of the share of codes that change from a frame to the next;
    - ``judge``: how much surer a net that learnt to tell dreams from real pairs is that they are dreamed, in standard
      deviations of its log-odds for real ones. It learns from training episodes alone: from ``real`` pairs
      (M, 2, H, W, 3) as the VQ-VAE shows them, and from dreams that begin there.

    Beside them ``auroc`` of that judge, 0.5 if dreams look real, and ``perplexity`` of the codes, which falls if a
    dream ends in one texture. The row ``real`` is what the other half of the held-out episodes scores: real video
    is that far from real video.

    Returns:
        The numbers, ``rows`` by horizon and ``growth`` of each distance from horizon 100 to the last one beyond, if
        there is one; and the codes of the long dreams (count, frames, h, w).
    """
    held_out = split(codes)[1]
    halves = held_out[::2], held_out[1::2] or held_out
    window = min(WINDOW, frames, *(max(entry.observations for entry in half) for half in halves))
    reference, others = (stretches(codes, half, 2 * count, window, seed)[0] for half in halves)
    judge = _judge(world, store, real, window, temperature, seed)
    beside = log_odds(judge, shown_pairs(world, reference))

    def looked_at(film: Tensor) -> dict[str, float]:
        """Films of codes (N, n, h, w) beside the reference."""
        odds = log_odds(judge, shown_pairs(world, film))
        counts, expected = (
            torch.bincount(part.flatten(), minlength=world.dynamics.config.codes) for part in (film, reference)
        )
        return {
            "histogram": divergence(counts, expected),
            "change": abs(changing(film) - changing(reference)),
            "judge": abs(float((odds.mean() - beside.mean()) / beside.std().clamp_min(1e-6))),
            "auroc": auroc(torch.cat([odds, beside]), torch.arange(len(odds) + len(beside)) < len(odds)),
            "perplexity": float(perplexity(counts)),
        }

    starts = held_out_clips(store, count, 1, seed + 1)
    long = dream(world, starts, walks(codes, count, frames, seed), temperature=temperature, seed=seed)[:, 0]
    rows: dict = {"real": looked_at(others)}
    for horizon in sorted({h for h in HORIZONS if h < frames} | {frames}):
        rows[horizon] = looked_at(long[:, max(0, horizon - window) : horizon])
    return {"rows": rows, "growth": growth(rows) if frames > 100 else {}}, long


def _judge(world: WorldModel, store: EpisodeStore, real: Tensor, window: int, temperature: float, seed: int) -> Judge:
    """One that has learnt from ``real`` pairs and from half as many dreamed ones, all of training episodes."""
    learnt = split(store)[0]
    reach = min(window, max(entry.observations for entry in learnt) - CONTEXT)
    clips = Clips(*stretches(store, learnt, len(real) // (2 * reach) + 1, CONTEXT + reach, seed))
    dreamed = shown_pairs(world, dream(world, clips, clips.to_take, temperature=temperature, seed=seed)[:, 0])
    return teach_to_tell_dreams(real[: len(dreamed)], dreamed, seed)


def shown_pairs(world: WorldModel, codes: Tensor) -> Tensor:
    """Films of codes (N, T, h, w) -> the pairs of neighbouring frames (N·(T-1), 2, H, W, 3) that they show."""
    return neighbours(world.decode(codes.flatten(0, 1)).unflatten(0, codes.shape[:2]))


def changing(film: Tensor) -> float:
    """The share of codes (N, T, h, w) that differ from those a frame before."""
    return float((film[:, 1:] != film[:, :-1]).float().mean())


def growth(rows: dict) -> dict[str, float]:
    """Each distance at the last horizon over that at 100; what real video scores counts as no distance at all."""
    last = max(horizon for horizon in rows if horizon != "real")
    floors = {name: max(rows["real"][name], 1e-9) for name in DISTANCES}
    return {name: max(rows[last][name], floors[name]) / max(rows[100][name], floors[name]) for name in DISTANCES}


def walks(store: EpisodeStore, count: int, frames: int, seed: int) -> Tensor:
    """Actions as they are really taken: (count, frames) pieces of the held-out episodes put in a row."""
    taken = torch.cat([torch.from_numpy(store.steps(entry.number)[0].copy()) for entry in split(store)[1]])
    starts = torch.randint(len(taken), (count, 1), generator=torch.Generator().manual_seed(seed))
    return taken[(starts + torch.arange(frames)) % len(taken)]
