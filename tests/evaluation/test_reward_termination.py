"""Terminations: how many are found, after true and after imagined frames."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldmodel.episodes.episode import Episode
from worldmodel.episodes.store import EpisodeStore, Schema
from worldmodel.evaluation.reward_termination import _dreamed_probabilities
from worldmodel.stats import detection

STEPS, FATAL = 40, 1


def test_detection_counts_what_is_above_the_threshold():
    scores, positive = torch.tensor([0.1, 0.2, 0.6, 0.4]), torch.tensor([False, False, True, True])
    assert detection(scores, positive, 0.5) == {"recall": 0.5, "contrast": pytest.approx(0.5 / 0.15)}
    assert detection(scores, torch.zeros(4, dtype=torch.bool), 0.5) == {"recall": 0.0, "contrast": 0.0}


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
    store = EpisodeStore.create(tmp_path / "codes", Schema((2, 2), "uint16", ("stay", "die"), "toy", {}, {}))
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
