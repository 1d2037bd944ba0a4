"""Terminations: how many are found, after true and after imagined frames."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldmodel.episodes.episode import Episode
from worldmodel.episodes.segments import split_held_out
from worldmodel.episodes.store import EpisodeStore, Schema
from worldmodel.evaluation.reward_termination import _dreamed_probabilities, reward_termination
from worldmodel.models.dynamics import Prediction
from worldmodel.stats import detection

STEPS, FATAL = 40, 1
SCHEMA = Schema((2, 2), "uint16", ("stay", "die"), "toy", {}, {})


def test_rewards_and_terminations_have_the_scores_of_their_definitions(tmp_path, monkeypatch):
    """Of 1,000 steps, four terminate; their probability is higher, but for one, and three others' is, too."""
    lengths, store = (1, 2, 3, 994), EpisodeStore.create(tmp_path / "codes", SCHEMA)
    for number in range(40):
        steps = lengths[number // 10] if number % 10 == 9 else 1  # every tenth episode is held out
        observations = np.zeros((steps + 1, 2, 2), np.uint16)
        rewards = np.where(np.arange(steps) % 2, -1.0, 2.0)
        store.append(Episode(observations, np.zeros(steps, np.int64), rewards, True, False, 0))
    hazards = {1: [0.9], 2: [0.1, 0.9], 3: [0.1, 0.8, 0.9], 994: [0.8, 0.8, *[0.1] * 991, 0.05]}

    def predict_episode(codes, actions):
        logits = torch.tensor(hazards[len(actions)]).logit()
        yield Prediction(torch.zeros(0), torch.full((len(actions),), 0.5), logits)

    monkeypatch.setattr("worldmodel.evaluation.reward_termination.DREAMED_FRAMES", ())
    world = SimpleNamespace(
        device=torch.device("cpu"),
        rollout=SimpleNamespace(dynamics=SimpleNamespace(predict_episode=predict_episode)),
    )
    scores = reward_termination(world, store, split_held_out(store)[1])
    reward, termination = scores["reward"], scores["termination"]
    gains = 1 + 1 + 2 + 497
    assert reward["rmse"] == pytest.approx(1.5) and reward["gains"] == {"auroc": 0.5, "steps": gains}
    assert reward["baseline_rmse"] == pytest.approx(3 * np.sqrt(gains / 1000 * (1 - gains / 1000)))
    assert reward["losses"]["steps"] == 1000 - gains
    assert (termination["terminations"], termination["steps"]) == (4, 1000)
    assert termination["auroc"] == pytest.approx(3 / 4)
    errors = [0.1**2] * 3 + [0.95**2] + [0.8**2] * 3 + [0.1**2] * 993
    assert termination["brier"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert termination["baseline_brier"] == pytest.approx(0.004 * 0.996)
    assert termination["detected"]["0"]["recall"] == 0.75, "one in 500 others, two of them, may be above the threshold"
    assert termination["calibration"][-1]["observed"] == pytest.approx(3 / 100)


def test_detection_counts_what_is_above_the_threshold():
    scores, positive = torch.tensor([0.1, 0.2, 0.6, 0.4]), torch.tensor([False, False, True, True])
    assert detection(scores, positive, 0.5) == {"recall": 0.5, "contrast": pytest.approx(0.5 / 0.15)}
    assert detection(scores, torch.zeros(4, dtype=torch.bool), 0.5) == {"recall": 0.0, "contrast": 0.0}
    assert detection(scores, torch.ones(4, dtype=torch.bool), 0.5) == {"recall": 0.25, "contrast": 0.0}


class Deadly:
    """A world in which one action ends the episode at once, and which counts what it is asked for."""

    def start_from_codes(self, codes, actions):
        self.context = codes[:, -1, 0, 0], actions.shape[1]
        return None

    def imagine_steps(self, state, actions, seed, temperature):
        self.length, self.sampling = actions.shape[1], (seed, temperature)
        for action in actions.T:
            yield SimpleNamespace(termination_probs=(action == FATAL).float())


@pytest.mark.parametrize("num_frames", [10, 20])
def test_the_hazard_after_dreamed_frames_is_that_of_the_step_that_ended_the_episode(tmp_path, num_frames):
    store = EpisodeStore.create(tmp_path / "codes", SCHEMA)
    observations = np.arange(STEPS, dtype=np.uint16)[:, None, None].repeat(2, 1).repeat(2, 2)
    actions = np.zeros(STEPS, np.int64)
    actions[-1] = FATAL
    for terminated in (True, False):
        store.append(Episode(observations, actions, np.zeros(STEPS), terminated, not terminated, 0))
    world = Deadly()
    probabilities, ends = _dreamed_probabilities(world, store, store.entries, num_frames, temperature=0.5, seed=7)
    assert ends.tolist() == [True, False], "the last step and an earlier one of the episode that ended in time"
    assert probabilities.tolist() == [1.0, 0.0]
    assert world.length == num_frames + 1, "so many imagined frames, and the step that is judged"
    assert world.sampling == (7, 0.5)
    assert world.context[0][0] == STEPS - 1 - num_frames, "the frame that the fatal action was taken in is imagined"
    assert _dreamed_probabilities(world, store, store.entries[1:], num_frames, 1.0, 0) is None
