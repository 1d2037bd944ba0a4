"""The reward and termination heads of a world are fitted to other episodes, and nothing else changes."""

import re
from dataclasses import replace

import pytest
import torch

from tests.conftest import sliding_stripes
from worldmodel import tensor_io
from worldmodel.episodes.encode import encode_store
from worldmodel.episodes.schema import Schema
from worldmodel.episodes.segments import split_held_out
from worldmodel.episodes.store import EpisodeStore
from worldmodel.train.heads import heads, losses, read_steps
from worldmodel.world_model import WorldModel


@pytest.fixture(scope="module")
def short_episodes(tmp_path_factory) -> EpisodeStore:
    """Episodes that terminate after three to five steps, where those of the tiny world last twenty."""
    path = tmp_path_factory.mktemp("short") / "store"
    store = EpisodeStore.create(path, Schema((24, 24, 3), "uint8", ("left", "stay", "right"), "stripes"))
    for seed in range(40):
        store.append(replace(sliding_stripes(seed, steps=3 + seed % 3), terminated=True, truncated=False))
    return store


def test_the_heads_fit_other_episodes_and_the_rest_stays(world_run, short_episodes, tmp_path, capsys):
    for name in ("new", "again"):
        heads(str(world_run), str(short_episodes.path), str(tmp_path / name), epochs=60, learning_rate=3e-3)
    before, after, *_ = [line for line in capsys.readouterr().out.splitlines() if "termination_nats" in line]
    nats, errors = (
        [float(re.search(rf"{name} ([\d.]+)", line)[1]) for line in (before, after)]
        for name in ("termination_nats", "reward_error")
    )
    assert nats[1] < 0.7 * nats[0] and errors[1] < 0.9 * errors[0]
    old, new, again = (
        tensor_io.read_tensors(run / "model.safetensors") for run in (world_run, tmp_path / "new", tmp_path / "again")
    )
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed and all(name.startswith("outcome.") for name in changed)
    assert all(torch.equal(new[name], again[name]) for name in new)
    world = WorldModel.load(tmp_path / "new")
    codes = encode_store(short_episodes, world_run / "vqvae", world.device)
    steps = read_steps(world, codes, split_held_out(codes)[1])
    assert losses(world, world.dynamics.outcome, steps)[1].item() == pytest.approx(nats[1], abs=1e-4)


def test_features_of_a_long_episode_are_those_of_one_pass(world_run, tmp_path, monkeypatch):
    store = EpisodeStore.create(tmp_path / "store", Schema((24, 24, 3), "uint8", ("left", "stay", "right"), "stripes"))
    store.append(sliding_stripes(1, steps=30))
    world = WorldModel.load(world_run)
    codes = encode_store(store, world_run / "vqvae", world.device)
    whole = read_steps(world, codes, codes.entries)
    monkeypatch.setattr("worldmodel.models.dynamics.CHUNK_STEPS", 7)
    torch.testing.assert_close(read_steps(world, codes, codes.entries).features, whole.features)
    assert whole.terminated.tolist() == [0.0] * 29 + [1.0]


def test_a_folder_that_exists_or_a_world_without_context_is_refused(world_run, short_episodes, tmp_path):
    with pytest.raises(ValueError, match="exists already; name a new folder"):
        heads(str(world_run), str(short_episodes.path), str(tmp_path))
    for shape, actions, message in (
        ((24, 24, 3), ("a", "b", "c"), r"knows the actions \('left', 'stay', 'right'\), the episodes have \('a'"),
        ((48, 24, 3), ("left", "stay", "right"), r"dreams frames of \(6, 6\) codes, .*\(12, 6\)"),
    ):
        other = EpisodeStore.create(tmp_path / actions[0], Schema(shape, "uint8", actions, "stripes"))
        with pytest.raises(ValueError, match=message):
            heads(str(world_run), str(other.path), str(tmp_path / "new"))
    with pytest.raises(ValueError, match="--epochs must be 1 or more"):
        heads(str(world_run), str(short_episodes.path), str(tmp_path / "new"), epochs=0)
