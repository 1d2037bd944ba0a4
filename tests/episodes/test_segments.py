"""Batches are segments of episodes, the same for the same seed and step, all as likely."""

import numpy as np
import pytest
import torch

from worldmodel.episodes.segments import SegmentSampler, split_held_out
from worldmodel.episodes.store import EpisodeStore


def test_segments_follow_the_episode_and_mark_its_end(store):
    episodes = EpisodeStore(store)
    training, _ = split_held_out(episodes)
    sampler = SegmentSampler(episodes, training, 2, 8, seed=0)
    whole = episodes.read(1)
    observations, actions, rewards, terminated, seen, valid = sampler.read_segment(episodes.entries[1], 14)
    assert np.array_equal(observations[:7], whole.observations[14:])
    assert seen.tolist() == [True] * 7 + [False]
    assert valid.tolist() == [True] * 6 + [False]
    assert actions[:6].tolist() == whole.actions[14:].tolist()
    assert rewards[:6].tolist() == whole.rewards[14:].tolist()
    assert terminated.tolist() == [0, 0, 0, 0, 0, 1, 0]
    assert not sampler.read_segment(episodes.entries[1], 12)[3].any(), "its last step is the one before the end"
    assert sampler.read_segment(episodes.entries[1], 13)[3].tolist() == [0] * 6 + [1]
    assert not sampler.read_segment(episodes.entries[0], 13)[3].any(), "this one was cut off"
    first, again = sampler(3), SegmentSampler(episodes, training, 2, 8, seed=0)(3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(sampler(4)[0], first[0])
    for whole_part, *parts in zip(first, sampler(3, 0, 2), sampler(3, 1, 2), strict=True):
        assert torch.equal(torch.cat(parts), whole_part), "two workers read what one does"


def test_every_position_is_a_step_of_its_own_of_one_episode(store, monkeypatch):
    made, (training, _) = EpisodeStore(store), split_held_out(EpisodeStore(store))
    sampler, read = SegmentSampler(made, training, 1, 5, seed=0), []
    monkeypatch.setattr(
        sampler, "read_segment", lambda entry, start, flip: (read.append((entry.number, start)), (np.zeros(1),))[1]
    )
    end = sum(entry.steps for entry in training)
    monkeypatch.setattr("worldmodel.episodes.segments.batch_indices", lambda last, *rest: np.arange(last))
    sampler.batch_size = end
    sampler(0)
    assert read == [(entry.number, start) for entry in training for start in range(entry.steps)]


@pytest.mark.slow
def test_the_last_steps_of_episodes_come_as_often_as_others(store):
    episodes = EpisodeStore(store)
    training, _ = split_held_out(episodes)
    *_, terminated, _, valid = SegmentSampler(episodes, training, 4000, 8, seed=0)(0)
    true = sum(entry.terminated for entry in training) / sum(entry.steps for entry in training)
    assert 0.9 * true < terminated.sum() / valid.sum() < 1.4 * true  # first steps are in fewer segments


def test_half_of_the_segments_come_from_the_mirror_others_in_each_batch(store, monkeypatch):
    made, (training, _) = EpisodeStore(store), split_held_out(EpisodeStore(store))
    sampler, flips = SegmentSampler(made, training, 64, 5, seed=0, mirrored=made), []
    monkeypatch.setattr(sampler, "read_segment", lambda entry, start, flip: (flips.append(flip), (np.zeros(1),))[1])
    batches = []
    for place in ((0,), (1,), (1, 0, 2), (1, 1, 2)):
        flips.clear()
        sampler(*place)
        batches.append(flips.copy())
    first, second, *parts = batches
    assert first != second == [*parts[0], *parts[1]]
    assert 20 < sum(first) < 44
    plain = SegmentSampler(made, training, 64, 5, seed=0)
    monkeypatch.setattr(plain, "read_segment", lambda entry, start, flip: (flips.append(flip), (np.zeros(1),))[1])
    flips.clear()
    plain(0)
    assert not any(flips)
