"""Accuracy of predicted rewards and terminations."""

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldmodel.episodes.segments import read_segment
from worldmodel.episodes.store import Entry, EpisodeStore
from worldmodel.models.config import NUM_CONTEXT_FRAMES
from worldmodel.stats import auroc, calibration, detection
from worldmodel.world_model import WorldModel

FALSE_ALARM_RATE = 0.002  # fraction of the steps without a termination that may count as predicted ones
DREAMED_FRAMES = (10, 20)  # imagined frames before the step whose termination is predicted


@torch.no_grad()
def reward_termination(
    world: WorldModel, codes: EpisodeStore, entries: list[Entry], temperature: float = 1.0, seed: int = 0
) -> dict:
    """Score the reward and termination heads on whole episodes, given the true codes and actions.

    Args:
        codes: store of the codes of the episodes in ``entries``, or of more.
        temperature: sampling temperature of the imagined frames before a predicted step.
        seed: random seed of the imagined frames.

    Returns:
        ``reward``: ``rmse``, and ``baseline_rmse`` of always predicting the mean; for ``gains`` and ``losses``, steps
        with a reward above or below 0, their number and the AUROC of the expected reward for finding them (0.5 if
        there are none). ``termination``: ``auroc``; the Brier score ``brier``, and ``baseline_brier`` of always
        predicting the base rate; the numbers of terminations and steps; the calibration in ten bins; and by the number
        of imagined frames before the predicted step, "0" for none, ``detected``: :func:`worldmodel.stats.detection` at
        the threshold that one in 500 steps without a termination passes after true frames.
    """
    parts = []  # predicted and true rewards, probabilities and terminations
    for entry in tqdm(entries, unit="episode", desc="rewards", leave=False):
        episode = read_segment(codes, entry, 0, entry.steps + 1)
        frames, actions, rewards, terminated, _, _ = map(torch.from_numpy, episode)
        past = frames[:-1].to(world.device), actions.to(world.device)
        predictions = [part[1:] for part in world.rollout.dynamics.predict_episode(*past)]
        expected, logits = (torch.cat(column).cpu() for column in zip(*predictions, strict=True))
        parts.append((expected, rewards, logits.sigmoid(), terminated > 0))
    predicted, reward, probability, terminated = map(torch.cat, zip(*parts, strict=True))
    base_rate, threshold = terminated.float().mean(), _threshold(probability[~terminated])
    detected = {"0": detection(probability, terminated, threshold)}
    for frames in DREAMED_FRAMES:
        after = _dreamed_probabilities(world, codes, entries, frames, temperature, seed)
        if after is not None:
            detected[str(frames)] = detection(*after, threshold)
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
            "detected": detected,
        },
    }


def _threshold(probabilities: Tensor) -> float:
    """Return the probability that FALSE_ALARM_RATE of these are above, or 0 if there are none."""
    return float(np.quantile(probabilities.numpy(), 1 - FALSE_ALARM_RATE)) if len(probabilities) else 0.0


def _dreamed_probabilities(
    world: WorldModel, codes: EpisodeStore, entries: list[Entry], num_frames: int, temperature: float, seed: int
) -> tuple[Tensor, Tensor] | None:
    """Predict a termination after ``num_frames`` imagined frames, under the recorded actions.

    In each episode that ended in time, this is done for its last step and for one in the middle of its earlier ones.

    Returns:
        Probabilities (N,) and whether each step was a termination (N,) bool, or None if no episode is long enough.
    """
    first = NUM_CONTEXT_FRAMES + num_frames - 1  # the first step that so many frames come before
    clips, ends = [], []
    for entry in entries:
        if entry.terminated and entry.steps > first + 1:
            actions, _ = codes.steps(entry.number)
            for step in (entry.steps - 1, (first + entry.steps - 2) // 2):
                start = step - first
                observations = codes.observations(entry.number, start, NUM_CONTEXT_FRAMES).astype(np.int64)
                clips.append((torch.from_numpy(observations), torch.from_numpy(actions[start : step + 1])))
                ends.append(step == entry.steps - 1)
    if not clips:
        return None
    contexts, actions = (torch.stack(part) for part in zip(*clips, strict=True))
    state = world.start_from_codes(contexts, actions[:, : NUM_CONTEXT_FRAMES - 1])
    *_, last = world.imagine_steps(state, actions[:, NUM_CONTEXT_FRAMES - 1 :], seed, temperature)
    return last.termination_probs.cpu(), torch.tensor(ends)
