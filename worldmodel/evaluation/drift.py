"""Drift of long dreams: statistics of dreamed frames at horizons 10, 100 and 1000 compared with real video."""

import torch
from torch import Tensor

from worldmodel.episodes.segments import sample_segments, split_held_out
from worldmodel.episodes.store import EpisodeStore
from worldmodel.evaluation.clips import Clips, dream_clips, sample_held_out_clips
from worldmodel.evaluation.inverse_dynamics import PairClassifier, log_odds, pair_frames, train_dream_detector
from worldmodel.models.config import NUM_CONTEXT_FRAMES
from worldmodel.models.quantizers.interface import perplexity
from worldmodel.stats import auroc, jensen_shannon_divergence
from worldmodel.world_model import WorldModel

HORIZONS = (10, 100, 1000)
WINDOW_FRAMES = 50  # frames before a horizon that are measured, or fewer in short dreams
DISTANCES = ("histogram_divergence", "change_rate_error", "classifier_effect_size")


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
    """Measure the distance of long dreams from real video, by horizon.

    ``count`` dreams of ``frames`` frames start from held-out clips and take the actions of held-out episodes laid end
    to end. The WINDOW_FRAMES frames before each horizon are compared with every second held-out episode:

    - ``histogram_divergence``: Jensen–Shannon divergence of the code histograms, in bits;
    - ``change_rate_error``: absolute difference in the fraction of codes that change between frames;
    - ``classifier_effect_size``: Glass's Δ of a dream detector, the absolute difference of its mean log-odds on
      dreamed and real pairs, in standard deviations of those on real pairs. It is trained on training episodes only:
      on ``real`` pairs (M, 2, H, W, 3) reconstructed by the VQ-VAE, and on dreams that start there.

    Each row also has ``classifier_auroc``, 0.5 if the detector cannot tell dreams from real video, and ``perplexity``
    of the codes, which falls if dreams collapse into one texture. The row ``real`` compares the other half of the
    held-out episodes with the first half: the distance between real video and real video. There must be two at least.

    Returns:
        ``rows`` by horizon and ``growth``, the ratio of each distance at the last horizon to that at 100, empty for
        shorter dreams; and the codes of the long dreams (count, frames, h, w).
    """
    held_out = split_held_out(store)[1]
    halves = held_out[::2], held_out[1::2]
    window = min(WINDOW_FRAMES, frames, *(max(entry.observations for entry in half) for half in halves))
    reference, others = (sample_segments(codes, half, 2 * count, window, seed)[0] for half in halves)
    detector = _train_detector(world, store, real, window, temperature, seed)
    real_odds = log_odds(detector, decode_pairs(world, reference))

    def compare(window_codes: Tensor) -> dict[str, float]:
        """Compare codes (N, n, h, w) with the reference."""
        odds = log_odds(detector, decode_pairs(world, window_codes))
        size = world.dynamics.config.codebook_size
        counts, expected = (torch.bincount(part.flatten(), minlength=size) for part in (window_codes, reference))
        is_dreamed = torch.arange(len(odds) + len(real_odds)) < len(odds)
        return {
            "histogram_divergence": jensen_shannon_divergence(counts, expected),
            "change_rate_error": abs(code_change_rate(window_codes) - code_change_rate(reference)),
            "classifier_effect_size": abs(float((odds.mean() - real_odds.mean()) / real_odds.std().clamp_min(1e-6))),
            "classifier_auroc": auroc(torch.cat([odds, real_odds]), is_dreamed),
            "perplexity": float(perplexity(counts)),
        }

    starts = sample_held_out_clips(store, count, 1, seed + 1)
    actions = sample_action_sequences(store, count, frames, seed)
    dreams = dream_clips(world, starts, actions, temperature=temperature, seed=seed)[:, 0]
    rows: dict = {"real": compare(others)}
    for horizon in sorted({h for h in HORIZONS if h < frames} | {frames}):
        rows[horizon] = compare(dreams[:, max(0, horizon - window) : horizon])
    return {"rows": rows, "growth": compute_growth(rows) if frames > 100 else {}}, dreams


def _train_detector(
    world: WorldModel, store: EpisodeStore, real: Tensor, window: int, temperature: float, seed: int
) -> PairClassifier:
    """Train a dream detector on about half as many dreamed pairs as ``real`` has, and on as many real ones."""
    train = split_held_out(store)[0]
    horizon = min(window, max(entry.observations for entry in train) - NUM_CONTEXT_FRAMES)
    count = len(real) // (2 * horizon) + 1
    clips = Clips(*sample_segments(store, train, count, NUM_CONTEXT_FRAMES + horizon, seed))
    dreams = dream_clips(world, clips, clips.future_actions, temperature=temperature, seed=seed)[:, 0]
    dreamed = decode_pairs(world, dreams)
    return train_dream_detector(real[: len(dreamed)], dreamed, seed)


def decode_pairs(world: WorldModel, codes: Tensor) -> Tensor:
    """Decode codes (N, T, h, w) into pairs of consecutive frames (N·(T-1), 2, H, W, 3)."""
    return pair_frames(world.decode(codes.flatten(0, 1)).unflatten(0, codes.shape[:2]))


def code_change_rate(codes: Tensor) -> float:
    """Return the fraction of codes (N, T, h, w) that differ from those one frame earlier."""
    return float((codes[:, 1:] != codes[:, :-1]).float().mean())


def compute_growth(rows: dict) -> dict[str, float]:
    """Return each distance at the last horizon divided by that at 100, both at least the distance of real video."""
    last = max(horizon for horizon in rows if horizon != "real")
    floors = {name: max(rows["real"][name], 1e-9) for name in DISTANCES}
    return {name: max(rows[last][name], floors[name]) / max(rows[100][name], floors[name]) for name in DISTANCES}


def sample_action_sequences(store: EpisodeStore, count: int, frames: int, seed: int) -> Tensor:
    """Sample realistic action sequences (count, frames): pieces of the held-out episodes laid end to end."""
    actions = torch.cat([torch.from_numpy(store.steps(entry.number)[0].copy()) for entry in split_held_out(store)[1]])
    starts = torch.randint(len(actions), (count, 1), generator=torch.Generator().manual_seed(seed))
    return actions[(starts + torch.arange(frames)) % len(actions)]
