"""Batches are segments of episodes, the same for the same seed and step, all as likely."""

import numpy as np
import pytest
import torch

from worldmodel.episodes import segments
from worldmodel.episodes.segments import SegmentSampler, read_segment, split_held_out
from worldmodel.episodes.store import EpisodeStore

ONE = (np.zeros(1),)  # a segment of one array


def test_segments_follow_the_episode_and_mark_its_end(store):
    episodes = EpisodeStore(store)
    training, _ = split_held_out(episodes)
    sampler = SegmentSampler(episodes, training, 2, 8, seed=0)
    whole = episodes.read(1)
    observations, actions, rewards, terminated, seen, valid = read_segment(episodes, episodes.entries[1], 14, 8)
    assert np.array_equal(observations[:7], whole.observations[14:])
    assert seen.tolist() == [True] * 7 + [False]
    assert valid.tolist() == [True] * 6 + [False]
    assert actions[:6].tolist() == whole.actions[14:].tolist()
    assert rewards[:6].tolist() == whole.rewards[14:].tolist()
    assert terminated.tolist() == [0, 0, 0, 0, 0, 1, 0]
    assert not read_segment(episodes, episodes.entries[1], 12, 8)[3].any(), "its last step is the one before the end"
    assert read_segment(episodes, episodes.entries[1], 13, 8)[3].tolist() == [0] * 6 + [1]
    assert not read_segment(episodes, episodes.entries[0], 13, 8)[3].any(), "this one was cut off"
    first, again = sampler(3), SegmentSampler(episodes, training, 2, 8, seed=0)(3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(sampler(4)[0], first[0])
    for whole_part, *parts in zip(first, sampler(3, 0, 2), sampler(3, 1, 2), strict=True):
        assert torch.equal(torch.cat(parts), whole_part), "two workers read what one does"


def test_every_position_is_a_step_of_its_own_of_one_episode(store, monkeypatch):
    made, (training, _) = EpisodeStore(store), split_held_out(EpisodeStore(store))
    sampler, read = SegmentSampler(made, training, 1, 5, seed=0), []
    monkeypatch.setattr(
        segments, "read_segment", lambda _, entry, start, length: read.append((entry.number, start)) or ONE
    )
    end = sum(entry.steps for entry in training)
    monkeypatch.setattr(segments, "batch_indices", lambda last, *rest: np.arange(last))
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
    mirrored, flips = EpisodeStore(store), []
    sampler = SegmentSampler(made, training, 64, 5, seed=0, mirrored=mirrored)
    monkeypatch.setattr(segments, "read_segment", lambda source, *_: flips.append(source is mirrored) or ONE)
    batches = []
    for place in ((0,), (1,), (1, 0, 2), (1, 1, 2)):
        flips.clear()
        sampler(*place)
        batches.append(flips.copy())
    first, second, *parts = batches
    assert first != second == [*parts[0], *parts[1]]
    assert 20 < sum(first) < 44
    plain = SegmentSampler(made, training, 64, 5, seed=0)
    flips.clear()
    plain(0)
    assert not any(flips)
