"""How long a dream stays true: its frames against the recorded ones, and what its actions are worth."""

import torch
from torch import Tensor

from worldmodel.evaluation.clips import CONTEXT, Clips, dream
from worldmodel.metrics import interval, psnr, ssim
from worldmodel.world_model import WorldModel

HORIZONS = (1, 2, 4, 5, 8, 10, 16, 20, 32, 50)
MEASURES = {"psnr": psnr, "ssim": ssim}
CONTROLLED = (1, 4, 10)  # horizons at which the worth of actions is measured


def open_loop(world: WorldModel, clips: Clips, dreams: Tensor) -> dict[str, dict[str, Tensor]]:
    """PSNR in dB and SSIM of every frame to come, by clip and horizon.

    Args:
        dreams: (N, S, T, h, w), S samples for each of N clips.

    Returns:
        For each measure, (N, T) values of: ``dream``, the mean over the samples; ``best dream``, that of them which is
        best over the whole horizon;
        ``copy last``, the last real frame repeated; ``vqvae alone``, the true frames encoded and decoded, which no
        dream can be expected to pass.
    """
    samples = range(dreams.shape[1])
    contestants = {f"sample {number}": [] for number in samples} | {"copy last": [], "vqvae alone": []}
    values = {measure: {name: [] for name in contestants} for measure in MEASURES}
    for real, codes in zip(clips.frames, dreams, strict=True):
        truth = real[CONTEXT:]
        shown = {f"sample {number}": world.decode(codes[number]) for number in samples}
        shown["copy last"] = real[CONTEXT - 1].expand_as(truth)
        shown["vqvae alone"] = world.decode(world.encode(truth))
        for measure, function in MEASURES.items():
            for name, pictures in shown.items():
                values[measure][name].append(function(pictures, truth))
    result = {}
    for measure, by_name in values.items():
        stacked = {name: torch.stack(rows) for name, rows in by_name.items()}
        sampled = torch.stack([stacked.pop(f"sample {number}") for number in samples])  # (S, N, T)
        best = sampled[sampled.mean(2).argmax(0), torch.arange(len(dreams))]
        result[measure] = {"dream": sampled.mean(0), "best dream": best, **stacked}
    return result


def by_horizon(values: Tensor, episodes: Tensor) -> dict[int, dict[str, float]]:
    """Mean and interval of (N, T) values of clips of ``episodes`` (N,), at the horizons that people quote."""
    return {horizon: interval(values[:, horizon - 1], episodes) for horizon in HORIZONS if horizon <= values.shape[1]}


def worth_of_actions(world: WorldModel, clips: Clips, temperature: float, seed: int) -> dict[int, dict[str, float]]:
    """ΔPSNR: how much PSNR a dream loses when its actions are random ones (Bruce et al. 2024, Genie, section 3.1).

    Both dreams of a clip draw the same chance, so a world that ignores its actions scores exactly 0.
    """
    horizon = min(max(CONTROLLED), clips.to_take.shape[1])
    taken = clips.to_take[:, :horizon]
    random = torch.randint(len(world.action_names), taken.shape, generator=torch.Generator().manual_seed(seed))
    truth = clips.truth[:, :horizon]
    scored = []
    for actions in (taken, random):
        imagined = dream(world, clips, actions, temperature=temperature, seed=seed)
        pictures = world.decode(imagined.flatten(0, 2))
        scored.append(psnr(pictures, truth.flatten(0, 1)).unflatten(0, taken.shape))
    gain = scored[0] - scored[1]  # (N, T)
    return {at: interval(gain[:, at - 1], clips.episodes) for at in CONTROLLED if at <= horizon}
