"""Frames are encoded once, also mirrored, and by one process at a time."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from worldmodel import checkpoint
from worldmodel.episodes.encode import encode_store, mirrored_actions
from worldmodel.episodes.segments import SegmentSampler
from worldmodel.episodes.store import EpisodeStore
from worldmodel.images.dataset import ImageBatches
from worldmodel.images.sources import FrameImages


def test_codes_are_encoded_once_and_kept_small(store, vqvae_run):
    frames, cpu = EpisodeStore(store), torch.device("cpu")
    codes = encode_store(frames, vqvae_run, cpu)
    written = [(codes.path / entry.file).stat().st_mtime_ns for entry in codes.entries]
    again = encode_store(frames, vqvae_run, cpu)
    assert [(again.path / entry.file).stat().st_mtime_ns for entry in again.entries] == written
    assert codes.schema.observation_shape == (6, 6)
    network = checkpoint.load_vqvae(vqvae_run)
    for number in (0, 9):
        original, kept = frames.read(number), codes.read(number)
        assert np.array_equal(kept.actions, original.actions)
        assert np.array_equal(kept.rewards, original.rewards)
        assert np.array_equal(kept.observations, network.encode(torch.from_numpy(original.observations.copy())))


def test_only_chosen_episodes_are_encoded_and_the_others_later(store, vqvae_run, tmp_path):
    frames = EpisodeStore(shutil.copytree(store, tmp_path / "store", ignore=shutil.ignore_patterns("codes")))
    chosen = encode_store(frames, vqvae_run, torch.device("cpu"), entries=frames.entries[9:10])
    assert [entry.number for entry in chosen.entries] == [9]
    assert len(encode_store(frames, vqvae_run, torch.device("cpu"), entries=[])) == 1
    assert len(encode_store(frames, vqvae_run, torch.device("cpu"))) == len(frames)


@pytest.mark.slow
def test_mirrored_codes_are_those_of_flipped_frames_under_swapped_actions(store, vqvae_run, tmp_path):
    recorded = EpisodeStore(shutil.copytree(store, tmp_path / "store", ignore=shutil.ignore_patterns("codes")))
    mirrored = encode_store(recorded, vqvae_run, torch.device("cpu"), mirrored=True)
    plain = encode_store(recorded, vqvae_run, torch.device("cpu"))
    assert mirrored.path != plain.path
    original, flipped = recorded.read(3), mirrored.read(3)
    assert flipped.actions.tolist() == [2 - action for action in original.actions]
    network = checkpoint.load_vqvae(vqvae_run)
    frames = torch.from_numpy(original.observations.copy()).flip(2)
    assert np.array_equal(flipped.observations, network.encode(frames).numpy())
    windows = SegmentSampler(plain, plain.entries, 64, 6, seed=0, mirrored=mirrored)
    both = [SegmentSampler(part, part.entries, 64, 6, seed=0)(5) for part in (plain, mirrored)]
    from_plain = [torch.equal(row, other) for row, other in zip(windows(5)[0], both[0][0], strict=True)]
    from_mirror = [torch.equal(row, other) for row, other in zip(windows(5)[0], both[1][0], strict=True)]
    assert all(a != b for a, b in zip(from_plain, from_mirror, strict=True))
    assert 20 < sum(from_mirror) < 44
    halves = [windows(5, rank, 2)[0] for rank in range(2)]
    assert torch.equal(torch.cat(halves), windows(5)[0])


def test_the_mirror_image_of_an_action_swaps_left_and_right():
    names = ("noop", "forward", "strafe_left", "strafe_right", "forward_look_left", "forward_look_right")
    assert mirrored_actions(names).tolist() == [0, 1, 3, 2, 5, 4]
    with pytest.raises(ValueError, match="--mirror true needs an action 'turn_right' for 'turn_left', got"):
        mirrored_actions(("noop", "turn_left"))
    assert mirrored_actions(("NOOP", "RIGHT", "LEFT", "UpRight", "UpLeft")).tolist() == [0, 2, 1, 4, 3]
    with pytest.raises(ValueError, match="actions that are named left and right, got"):
        mirrored_actions(("0", "1"))


def test_half_of_the_pictures_are_flipped_the_same_ones_every_time(store):
    frames = FrameImages([(EpisodeStore(store), EpisodeStore(store).entries)])
    plain, flipping = (ImageBatches(frames, 64, 0, mirror) for mirror in (False, True))
    seen, before = flipping(7), plain(7)
    flipped = [torch.equal(row, other.flip(1)) for row, other in zip(seen, before, strict=True)]
    same = [torch.equal(row, other) for row, other in zip(seen, before, strict=True)]
    assert all(a or b for a, b in zip(flipped, same, strict=True)) and 20 < sum(same) < 44
    assert torch.equal(seen, flipping(7)) and torch.equal(torch.cat([flipping(7, rank, 2) for rank in (0, 1)]), seen)


@pytest.mark.slow
def test_two_who_encode_one_store_share_the_work(store, vqvae_run, tmp_path):
    recorded = shutil.copytree(store, tmp_path / "store", ignore=shutil.ignore_patterns("codes"))
    code = (
        "import sys, pathlib, torch\n"
        "from worldmodel.episodes.encode import encode_store\n"
        "from worldmodel.episodes.store import EpisodeStore\n"
        "print(len(encode_store(EpisodeStore(sys.argv[1]), pathlib.Path(sys.argv[2]), torch.device('cpu'))))"
    )
    command = [sys.executable, "-c", code, str(recorded), str(vqvae_run)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["12", "12"]
