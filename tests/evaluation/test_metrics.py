"""The scores against cases worked by hand, and the programs that print and ship them."""

import math
import re

import numpy as np
import pytest
import torch

from worldmodel import checkpoint, shipped, worlds
from worldmodel.baselines import Bigram, CopyLast, Unigram
from worldmodel.episodes.segments import SegmentSampler, split_held_out
from worldmodel.episodes.store import EpisodeStore
from worldmodel.metrics import dynamics_scores, frame_bits_per_code, psnr, shuffle_actions
from worldmodel.models.dynamics import Batch
from worldmodel.release import release
from worldmodel.world_model import WorldModel


def test_psnr_is_that_of_the_definition():
    truth = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    off = truth.clone()
    off[0] = 10
    assert psnr(off, truth).tolist() == pytest.approx([20 * math.log10(25.5), 10 * math.log10(255**2 / 0.01)])


def test_a_unigram_costs_the_entropy_of_uniform_codes():
    codes = torch.arange(8).repeat(1, 4, 10, 1)  # (1, 4, 10, 8)
    assert torch.allclose(Unigram(codes, 8).bits(codes), torch.full((1, 4), 3.0, dtype=torch.float64))


def test_copying_finds_the_true_flip_probability():
    random = torch.Generator().manual_seed(0)
    frames = [torch.randint(16, (40, 12, 12), generator=random)]
    for _ in range(5):
        flips = torch.rand(frames[-1].shape, generator=random) < 0.3
        frames.append(torch.where(flips, torch.randint(16, frames[-1].shape, generator=random), frames[-1]))
    codes = torch.stack(frames, 1)
    unigram = Unigram(codes, 16)
    copy = CopyLast(codes, unigram)
    assert copy.flip_probability == pytest.approx(0.3, abs=0.01)
    stay, change = 0.7 + 0.3 / 16, 0.3 / 16
    entropy = -(stay * math.log2(stay) + 15 * change * math.log2(change))
    assert copy.bits(codes).mean().item() == pytest.approx(entropy, abs=0.02)
    assert copy.bits(codes).mean() < unigram.bits(codes).mean()


def test_bits_are_the_training_loss_in_base_two(world_run, store, vqvae_run):
    model = WorldModel.load(world_run)
    codes = EpisodeStore(next((store / "codes").iterdir()))
    batch = Batch(*SegmentSampler(codes, split_held_out(codes)[1], 3, 6, seed=0)(0))
    scores = dynamics_scores(model.dynamics, [batch])
    there = frame_bits_per_code(model.dynamics, batch.codes, batch.actions)[batch.frame_valid[:, 1:]]
    assert there.mean().item() == pytest.approx(scores["bits_per_code"], rel=1e-4)
    assert torch.equal(shuffle_actions(batch).actions[1], batch.actions[0])
    assert torch.equal(shuffle_actions(batch).codes, batch.codes)


def test_actions_of_a_shorter_segment_are_scored_up_to_their_end():
    codes, actions = torch.zeros(2, 5, 1, 1, dtype=torch.int64), torch.tensor([[1, 2, 0, 0], [3, 4, 5, 6]])
    steps = torch.tensor([[True, True, False, False], [True] * 4])
    frames = torch.cat([torch.ones(2, 1, dtype=torch.bool), steps], 1)
    shuffled = shuffle_actions(Batch(codes, actions, torch.zeros(2, 4), torch.zeros(2, 4), frames, steps))
    assert shuffled.actions[1].tolist() == [1, 2, 0, 0]
    assert shuffled.step_valid.tolist() == [[True, True, False, False]] * 2
    assert shuffled.frame_valid.tolist() == [[True, True, True, False, False]] * 2


@pytest.mark.slow
def test_a_released_world_is_its_run_with_all_but_the_encoder_in_half_precision(
    store, world_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(shipped, "PRETRAINED", tmp_path)
    release(str(world_run), str(store), "9:2", str(tmp_path / "stripes"), "moving stripes", length=8)
    assert shipped.shipped_worlds() == ["stripes"]
    with pytest.raises(ValueError, match="already exists"):
        release(str(world_run), str(store), "9:2", str(tmp_path / "stripes"), "moving stripes", length=8)
    released, trained = WorldModel.load("stripes"), WorldModel.load(world_run)
    context, original = EpisodeStore(released.run / "context"), EpisodeStore(store).read(9)
    assert np.array_equal(context.read(0).observations, original.observations[2:10])
    assert np.array_equal(context.read(0).actions, original.actions[2:9])
    frames = torch.from_numpy(original.observations[None, 2:5].copy())
    taken, actions = torch.from_numpy(original.actions[None, 2:4]), torch.tensor([[0, 1]])
    rounded = WorldModel.load(world_run)
    for (name, mine), theirs in zip(
        released.vqvae.state_dict().items(), trained.vqvae.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs.half().float() if name.startswith("decoder.") else theirs), name
    for part in rounded.dynamics.state_dict().values():
        part.copy_(part.half())
    rounded = WorldModel(rounded.vqvae, rounded.dynamics, rounded.action_names, rounded.run)
    dreams = [model.imagine(model.start(frames, taken), actions) for model in (released, rounded)]
    assert torch.equal(*dreams)
    sizes = [(run / "model.safetensors").stat().st_size for run in (released.run, trained.run)]
    assert sizes[0] < 0.6 * sizes[1]
    capsys.readouterr()
    worlds.worlds()
    assert re.fullmatch(
        r"stripes  0\.\d MB  moving stripes\n    actions: left, stay, right\n    clips: 1 of 8 frames or more\n",
        capsys.readouterr().out,
    )
    for path in released.run.rglob("*.yaml"):
        assert str(store.parent.parent) not in path.read_text(), "it must not name folders of this machine"


def test_clips_can_be_shipped_as_the_vqvae_shows_them(store, world_run, tmp_path):
    release(str(world_run), str(store), "9:2", str(tmp_path / "out"), "", length=8, reconstructed=True)
    world = WorldModel.load(world_run)
    original = torch.from_numpy(EpisodeStore(store).observations(9, 2, 8).copy())
    written = torch.from_numpy(EpisodeStore(tmp_path / "out" / "context").read(0).observations.copy())
    assert torch.equal(written, world.decode(world.encode(original)))
    assert not torch.equal(written, original)
    assert not EpisodeStore(tmp_path / "out" / "context").entries[0].reproducible


def test_only_held_out_clips_are_shipped(store, world_run, tmp_path):
    with pytest.raises(ValueError, match=r"--clips must be an episode, a colon and a frame each, .*, got 9"):
        release(str(world_run), str(store), "9", str(tmp_path / "out"), "")
    with pytest.raises(ValueError, match="episode 3 was not held out: expected one of 9"):
        release(str(world_run), str(store), "3:0", str(tmp_path / "out"), "")
    for clips, length in (("", 8), ("9:0", 5)):
        with pytest.raises(ValueError, match="--clips must name one or more clips, and --length must be 6 or more"):
            release(str(world_run), str(store), clips, str(tmp_path / "out"), "", length=length)
    frames = EpisodeStore(store).read(9).observations
    for start, left in ((len(frames) - 5, 5), (len(frames) + 9, 0)):
        with pytest.raises(ValueError, match=f"clip 9:{start} has {left} frames, a dream needs 6"):
            release(str(world_run), str(store), f"9:{start}", str(tmp_path / "out"), "")
    assert not (tmp_path / "out").exists()


def test_a_world_that_is_exported_again_takes_its_new_description(world_run, tmp_path):
    checkpoint.export(world_run, tmp_path / "first", about="old")
    checkpoint.export(tmp_path / "first", tmp_path / "second", about="new")
    assert (tmp_path / "second" / "config.yaml").read_text().startswith("about: new\n")


def test_a_bigram_knows_what_follows_what_and_a_unigram_does_not():
    codes = torch.arange(3000) % 3  # 0 1 2 0 1 2 …
    unigram = Unigram(codes, 3)
    bigram = Bigram(codes, unigram)
    forward, backward = torch.tensor([[0, 1, 2, 0]]), torch.tensor([[0, 2, 1, 0]])
    assert float(bigram.bits(forward)) == pytest.approx(math.log2(3) / 4, abs=0.01)  # the first alone is a guess
    assert float(bigram.bits(backward)) > 4
    assert torch.allclose(bigram.probabilities.sum(1), torch.ones(3, dtype=torch.float64))


def test_a_bigram_of_independent_codes_is_the_unigram():
    codes = torch.randint(40, (2000,), generator=torch.Generator().manual_seed(0))
    unigram = Unigram(codes, 40)
    found = Bigram(codes, unigram).bits(torch.randint(40, (20, 100), generator=torch.Generator().manual_seed(1)))
    assert float(found.mean()) == pytest.approx(math.log2(40), abs=0.05)
