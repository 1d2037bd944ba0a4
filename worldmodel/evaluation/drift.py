"""Does a long dream stay in its world: dreamed frames at 10, 100, 1000 against real ones, frame by frame unmatched."""

import torch
from torch import Tensor

from worldmodel.core.quantizer import perplexity
from worldmodel.data.store import EpisodeStore
from worldmodel.data.windows import split
from worldmodel.evaluation.clips import dream, held_out_clips, stretches
from worldmodel.evaluation.judges import neighbours, teach_to_tell_dreams, told_apart
from worldmodel.scores import divergence
from worldmodel.world import WorldModel

HORIZONS = (10, 100, 1000)
WINDOW = 50  # frames up to a horizon that are looked at, as far as there are any
DISTANCES = ("histogram", "change", "judge")


def drift(
    world: WorldModel,
    store: EpisodeStore,
    codes: EpisodeStore,
    real: Tensor,
    dreams: Tensor,
    count: int,
    frames: int,
    temperature: float,
    seed: int,
) -> tuple[dict, Tensor]:
    """Distance of long dreams from real video, by horizon.

    ``count`` dreams of ``frames`` frames begin in held-out clips of their own and take the actions of held-out
    episodes, one episode after the other. Looked at are the fifty frames up to each horizon, or as many as there are:

    - ``histogram``: Jensen–Shannon divergence in bits of their codes from those of real held-out frames;
    - ``change``: difference of the share of codes that change from a frame to the next, dreamed and real;
    - ``judge``: how far a net that learnt to tell dreams from real pairs does better than chance, AUROC − 0.5. It
      learns from the open-loop ``dreams`` (N, S, T, h, w) and ``real`` pairs (M, 2, H, W, 3) as the VQ-VAE shows them.

    Beside them ``perplexity`` of the codes, which would fall if the dream ended in one texture. The row ``real`` is
    what as many real frames score: the distance that chance alone makes.

    Returns:
        The numbers, ``rows`` by horizon and ``growth`` of each distance from horizon 100 to the last, and the codes of
        the long dreams (count, frames, h, w).
    """
    size = world.dynamics.config.codes
    starts = held_out_clips(store, count, 1, seed + 1)
    long = dream(world, starts, walks(codes, count, frames, seed), temperature=temperature, seed=seed)[:, 0]

    held_out = split(codes)[1]
    window = min(WINDOW, frames, max(entry.observations for entry in held_out))
    sample, _ = stretches(codes, held_out, 5 * count, window, seed)  # (5·count, window, h, w)
    one, rest = sample[:count], sample[count:]
    dreamed = neighbours(world.decode(dreams[:, 0].flatten(0, 1)).unflatten(0, dreams[:, 0].shape[:2]))
    chosen = torch.randperm(len(dreamed), generator=torch.Generator().manual_seed(seed))[: len(real) // 2]
    judge = teach_to_tell_dreams(real[: len(chosen)], dreamed[chosen], seed)

    def looked_at(film: Tensor) -> dict[str, float]:
        """Films of codes (N, n, h, w) beside real ones."""
        counts = torch.bincount(film.flatten(), minlength=size)
        pairs = [neighbours(world.decode(part.flatten(0, 1)).unflatten(0, part.shape[:2])) for part in (rest, film)]
        return {
            "histogram": divergence(counts, torch.bincount(rest.flatten(), minlength=size)),
            "change": abs(changing(film) - changing(rest)),
            "judge": max(0.0, told_apart(judge, *pairs) - 0.5),
            "perplexity": float(perplexity(counts)),
        }

    rows = {"real": looked_at(one)}
    for horizon in [h for h in HORIZONS if h <= frames] or [frames]:
        rows[horizon] = looked_at(long[:, max(0, horizon - window) : horizon])
    return {"rows": rows, "growth": growth(rows)}, long


def changing(film: Tensor) -> float:
    """The share of codes (N, T, h, w) that differ from those a frame before."""
    return float((film[:, 1:] != film[:, :-1]).float().mean())


def growth(rows: dict) -> dict[str, float]:
    """Each distance at the last horizon over that at the last but one; what is below chance counts as chance."""
    *_, before, last = rows
    return {
        name: max(rows[last][name], rows["real"][name]) / max(rows[before][name], rows["real"][name], 1e-9)
        for name in DISTANCES
    }


def walks(store: EpisodeStore, count: int, frames: int, seed: int) -> Tensor:
    """Actions as they are really taken: (count, frames) pieces of the held-out episodes put in a row."""
    taken = torch.cat([torch.from_numpy(store.steps(entry.number)[0].copy()) for entry in split(store)[1]])
    starts = torch.randint(len(taken), (count, 1), generator=torch.Generator().manual_seed(seed))
    return taken[(starts + torch.arange(frames)) % len(taken)]
