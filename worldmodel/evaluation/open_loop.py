"""Open-loop prediction: dreamed frames against recorded ones, and how sensitive dreams are to their actions."""

import torch
from torch import Tensor

from worldmodel.evaluation.clips import Clips, dream_clips
from worldmodel.metrics import psnr, ssim
from worldmodel.models.config import NUM_CONTEXT_FRAMES
from worldmodel.stats import bootstrap_interval
from worldmodel.world_model import WorldModel

HORIZONS = (1, 2, 4, 5, 8, 10, 16, 20, 32, 50)
METRICS = {"psnr": psnr, "ssim": ssim}
SENSITIVITY_HORIZONS = (1, 4, 10)


def open_loop(world: WorldModel, clips: Clips, dreams: Tensor) -> dict[str, dict[str, Tensor]]:
    """Compute the PSNR in dB and the SSIM of every predicted frame, by clip and horizon.

    Args:
        dreams: (N, S, T, h, w) codes of S samples for each of N clips.

    Returns:
        For each metric, (N, T) values of ``dream``, the mean over samples; ``best_dream``, the sample that is best over
        the whole horizon; ``copy_last``, the last context frame repeated; and ``vqvae_reconstruction``, the true frames
        encoded and decoded, an upper bound for dreams.
    """
    samples = range(dreams.shape[1])
    names = [f"sample {number}" for number in samples] + ["copy_last", "vqvae_reconstruction"]
    values = {metric: {name: [] for name in names} for metric in METRICS}
    for real, codes in zip(clips.frames, dreams, strict=True):
        truth = real[NUM_CONTEXT_FRAMES:]
        predictions = {f"sample {number}": world.decode(codes[number]) for number in samples}
        predictions["copy_last"] = real[NUM_CONTEXT_FRAMES - 1].expand_as(truth)
        predictions["vqvae_reconstruction"] = world.decode(world.encode(truth))
        for metric, function in METRICS.items():
            for name, frames in predictions.items():
                values[metric][name].append(function(frames, truth))
    result = {}
    for metric, by_name in values.items():
        stacked = {name: torch.stack(rows) for name, rows in by_name.items()}
        sampled = torch.stack([stacked.pop(f"sample {number}") for number in samples])  # (S, N, T)
        best = sampled[sampled.mean(2).argmax(0), torch.arange(len(dreams))]
        result[metric] = {"dream": sampled.mean(0), "best_dream": best, **stacked}
    return result


def intervals_by_horizon(values: Tensor, episodes: Tensor) -> dict[int, dict[str, float]]:
    """Return intervals of (N, T) values of clips of ``episodes`` (N,) at each of the HORIZONS up to T."""
    horizons = [horizon for horizon in HORIZONS if horizon <= values.shape[1]]
    return {horizon: bootstrap_interval(values[:, horizon - 1], episodes) for horizon in horizons}


def action_sensitivity(world: WorldModel, clips: Clips, temperature: float, seed: int) -> dict[int, dict[str, float]]:
    """ΔPSNR: how much PSNR a dream loses under random actions (Bruce et al. 2024, Genie, section 3.1).

    Both dreams of a clip use the same random numbers, so a world that ignores its actions scores exactly 0.
    """
    horizon = min(max(SENSITIVITY_HORIZONS), clips.future_actions.shape[1])
    recorded = clips.future_actions[:, :horizon]
    random = torch.randint(len(world.action_names), recorded.shape, generator=torch.Generator().manual_seed(seed))
    truth = clips.future_frames[:, :horizon]
    scores = []
    for actions in (recorded, random):
        dreams = dream_clips(world, clips, actions, temperature=temperature, seed=seed)
        frames = world.decode(dreams.flatten(0, 2))
        scores.append(psnr(frames, truth.flatten(0, 1)).unflatten(0, recorded.shape))
    loss = scores[0] - scores[1]  # (N, T)
    return {at: bootstrap_interval(loss[:, at - 1], clips.episodes) for at in SENSITIVITY_HORIZONS if at <= horizon}
