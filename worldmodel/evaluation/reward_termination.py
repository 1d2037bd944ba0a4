"""How well a world foretells rewards and ends."""

import torch
from tqdm import tqdm

from worldmodel.episodes.segments import StepWindows, split
from worldmodel.episodes.store import EpisodeStore
from worldmodel.metrics import auroc, calibration
from worldmodel.world_model import WorldModel

AT_ONCE = 128  # steps


@torch.no_grad()
def heads(world: WorldModel, codes: EpisodeStore, episodes: int) -> dict:
    """Score the heads on whole held-out episodes, told the true codes and actions.

    Returns:
        ``reward``: root mean squared error, and that of always saying the mean; for ``gains`` and ``losses``, steps
        with a reward above or below 0, how many there were and the AUROC of telling them from all others by the
        expected reward (0.5 if there were none). ``termination``: AUROC, mean squared error of the probability (Brier
        score) and that of always saying the frequency, how many ends there were, and predicted beside observed
        frequency in ten groups.
    """
    expected, rewards, probabilities, ends = [], [], [], []
    for entry in tqdm(split(codes)[1][:episodes], unit="episode", desc="heads", leave=False):
        whole = StepWindows(codes, [entry], 1, entry.steps + 1, 0)
        seen, actions, reward, terminated, _, _ = (torch.from_numpy(part)[None] for part in whole.read(entry, 0))
        seen = seen[:, :-1]
        for start in range(0, entry.steps, AT_ONCE):
            part = slice(max(0, start - world.dynamics.config.context), start + AT_ONCE)
            new = slice(start - part.start, None)  # the others are there to be remembered
            outlook = world.rollout.dynamics.outlook(seen[:, part].to(world.device), actions[:, part].to(world.device))
            expected.append(outlook.rewards[0, new].cpu())
            probabilities.append(outlook.termination[0, new].sigmoid().cpu())
        rewards.append(reward[0])
        ends.append(terminated[0] > 0)
    said, was, chance, ended = (torch.cat(parts) for parts in (expected, rewards, probabilities, ends))
    frequency = ended.float().mean()
    return {
        "reward": {
            "error": float((said - was).square().mean().sqrt()),
            "error of the mean": float(was.std(correction=0)),
            "gains": {"auroc": auroc(said, was > 0), "steps": int((was > 0).sum())},
            "losses": {"auroc": auroc(-said, was < 0), "steps": int((was < 0).sum())},
        },
        "termination": {
            "auroc": auroc(chance, ended),
            "brier": float((chance - ended.float()).square().mean()),
            "brier of the frequency": float(frequency * (1 - frequency)),
            "ends": int(ended.sum()),
            "steps": len(ended),
            "calibration": calibration(chance, ended),
        },
    }
