"""Bits per code: of which frames, and given which actions."""

from dataclasses import replace

import pytest
import torch

from worldmodel.episodes.encode import encode_store
from worldmodel.episodes.segments import sample_segments, split_held_out
from worldmodel.episodes.store import EpisodeStore
from worldmodel.evaluation.bits_per_code import BATCH_SIZE, bits_per_code
from worldmodel.metrics import frame_bits_per_code
from worldmodel.models.config import NUM_CONTEXT_FRAMES
from worldmodel.world_model import WorldModel

pytestmark = pytest.mark.slow


def test_frames_beyond_the_context_are_scored_given_true_other_and_no_actions(store, vqvae_run, world_run):
    count, length, seed = BATCH_SIZE + 2, 12, 3
    world = WorldModel.load(world_run)
    world.dynamics.config = replace(world.dynamics.config, action_dropout=0.5)  # so that it is scored without actions
    frames = EpisodeStore(store)
    codes = encode_store(frames, vqvae_run, torch.device("cpu"))
    rows, _ = bits_per_code(world, frames, codes, None, count, length, seed)
    segments, actions, _ = sample_segments(codes, split_held_out(codes)[1], count, length, seed)
    others = torch.cat([part.roll(1, 0) for part in actions.split(BATCH_SIZE)])
    given = {"true_actions": actions, "shuffled_actions": others, "no_actions": torch.full_like(actions, -1)}
    expected = {
        name: frame_bits_per_code(world.dynamics, segments, taken)[:, NUM_CONTEXT_FRAMES - 1 :].mean().item()
        for name, taken in given.items()
    }
    assert {name: rows[name]["bits_per_code"]["mean"] for name in given} == pytest.approx(expected, abs=1e-5)
    assert len(set(expected.values())) == 3
    assert all(row["bits_per_frame"] == pytest.approx(36 * row["bits_per_code"]["mean"]) for row in rows.values())
