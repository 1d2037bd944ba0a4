"""Accuracy of predicted rewards and terminations."""

import torch
from tqdm import tqdm

from worldmodel.episodes.segments import SegmentSampler, split_held_out
from worldmodel.episodes.store import EpisodeStore
from worldmodel.stats import auroc, calibration
from worldmodel.world_model import WorldModel

CHUNK_STEPS = 128  # steps predicted in one pass


@torch.no_grad()
def reward_termination(world: WorldModel, codes: EpisodeStore, episodes: int) -> dict:
    """Score the reward and termination heads on whole held-out episodes, given the true codes and actions.

    Returns:
        ``reward``: ``rmse``, and ``baseline_rmse`` of always predicting the mean; for ``gains`` and ``losses``, steps
        with a reward above or below 0, their number and the AUROC of the expected reward for finding them (0.5 if
        there are none). ``termination``: ``auroc``; the Brier score ``brier``, and ``baseline_brier`` of always
        predicting the base rate; the numbers of terminations and steps; and the calibration in ten bins.
    """
    context_length, dynamics = world.dynamics.config.context_length, world.rollout.dynamics
    parts = []  # predicted and true rewards, probabilities and terminations
    for entry in tqdm(split_held_out(codes)[1][:episodes], unit="episode", desc="rewards", leave=False):
        episode = SegmentSampler(codes, [entry], 1, entry.steps + 1, 0).read_segment(entry, 0)
        frames, actions, rewards, terminated, _, _ = (torch.from_numpy(part)[None] for part in episode)
        frames = frames[:, :-1]
        for start in range(0, entry.steps, CHUNK_STEPS):
            chunk = slice(max(0, start - context_length), start + CHUNK_STEPS)
            new = slice(start - chunk.start, None)  # the frames before are context
            prediction = dynamics.predict(frames[:, chunk].to(world.device), actions[:, chunk].to(world.device))
            probabilities = prediction.termination_logits[0, new].sigmoid().cpu()
            true = rewards[0, chunk][new], terminated[0, chunk][new] > 0
            parts.append((prediction.rewards[0, new].cpu(), true[0], probabilities, true[1]))
    predicted, reward, probability, terminated = map(torch.cat, zip(*parts, strict=True))
    base_rate = terminated.float().mean()
    return {
        "reward": {
            "rmse": float((predicted - reward).square().mean().sqrt()),
            "baseline_rmse": float(reward.std(correction=0)),
            "gains": {"auroc": auroc(predicted, reward > 0), "steps": int((reward > 0).sum())},
            "losses": {"auroc": auroc(-predicted, reward < 0), "steps": int((reward < 0).sum())},
        },
        "termination": {
            "auroc": auroc(probability, terminated),
            "brier": float((probability - terminated.float()).square().mean()),
            "baseline_brier": float(base_rate * (1 - base_rate)),
            "terminations": int(terminated.sum()),
            "steps": len(terminated),
            "calibration": calibration(probability, terminated),
        },
    }
