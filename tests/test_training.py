"""Training resumes where it was stopped, whatever stopped it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import worldmodel.train.dynamics as train_dynamics
from tests.conftest import PRIOR_SIZES, VQVAE_SIZES, sliding_stripes, train_config
from worldmodel import checkpoint, shipped, tensor_io, training
from worldmodel.episodes.store import EpisodeStore
from worldmodel.models.dynamics import Dynamics
from worldmodel.train.dynamics import dynamics, reward_rms
from worldmodel.train.vqvae import vqvae
from worldmodel.world_model import WorldModel


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def interrupt_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loop stop when it has taken so many steps."""
    whole, calls = training._update_average, []

    def failing(*arguments) -> None:
        whole(*arguments)
        calls.append(1)
        if len(calls) == steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "_update_average", failing)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", ["vqvae", "dynamics"])
@pytest.mark.slow
def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(
    kind, optimizer, store, vqvae_run, tmp_path, monkeypatch
):
    settings = replace(train_config(12), optimizer=optimizer)

    def train(run: Path) -> None:
        if kind == "vqvae":
            vqvae(str(run), str(store), model=VQVAE_SIZES, train=settings, batch_size=8, mirror=True)
        else:
            dynamics(str(store), str(vqvae_run), str(run), PRIOR_SIZES, settings, batch_size=2, seq_length=6)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole)
    with monkeypatch.context() as patched:
        interrupt_after(7, patched)
        with pytest.raises(KeyboardInterrupt):
            train(parts)
    assert tensor_io.read_step(parts / "train.safetensors") == 4
    train(parts)
    assert lines(parts) == lines(whole)
    for name in ("train.safetensors", "model.safetensors"):
        mine, theirs = (tensor_io.read_tensors(run / name) for run in (parts, whole))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.slow
def test_a_run_killed_in_the_middle_goes_on(store, tmp_path):
    command = [sys.executable, "-m", "worldmodel.train", "vqvae", "--store", str(store), "--run", str(tmp_path / "run")]
    command += [
        "--model.hidden_channels",
        "16",
        "--train.steps",
        "400",
        "--train.evaluate_every",
        "5",
        "--train.threads",
        "1",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    saved = tmp_path / "run" / "train.safetensors"
    while not saved.exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reached = tensor_io.read_step(saved)
    assert 5 <= reached < 400
    subprocess.run([*command, "--train.steps", str(reached + 5)], check=True, capture_output=True)
    assert tensor_io.read_step(saved) == reached + 5
    steps = [line["step"] for line in lines(tmp_path / "run") if line["part"] == "held_out"]
    assert steps == sorted(set(steps))


def test_a_run_that_is_older_than_a_setting_goes_on(store, vqvae_run, tmp_path):
    shutil.copytree(vqvae_run, tmp_path / "run")
    values = yaml.safe_load((vqvae_run / "config.yaml").read_text())
    del values["model"]["quantizer"]["kind"], values["model"]["num_downsamples"]
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(values))
    vqvae(str(tmp_path / "run"), str(store), model=VQVAE_SIZES, train=train_config(13), batch_size=8)
    assert tensor_io.read_step(tmp_path / "run/train.safetensors") == 13


@pytest.mark.slow
def test_a_run_finds_its_store_from_any_folder(store, vqvae_run, tmp_path, monkeypatch):
    monkeypatch.chdir(store.parent)
    dynamics(
        store.name, str(vqvae_run), str(tmp_path / "run"), PRIOR_SIZES, train_config(1), batch_size=2, seq_length=6
    )
    monkeypatch.chdir(tmp_path)
    assert WorldModel.load(tmp_path / "run").clips_folder == store


def test_a_run_folder_holds_what_is_needed_to_use_it(world_run):
    config = yaml.safe_load((world_run / "config.yaml").read_text())
    assert config["kind"] == "dynamics"
    assert config["data"]["action_names"] == ["left", "stay", "right"]
    assert checkpoint.load_dynamics(world_run).config.num_actions == 3
    assert checkpoint.load_vqvae(world_run / "vqvae").quantizer.config.codebook_size == 16
    assert {path.suffix for path in world_run.rglob("*") if path.is_file()} <= {
        ".yaml",
        ".lock",
        ".safetensors",
        ".jsonl",
        ".png",
    } | {path.suffix for path in (world_run / "tensorboard").iterdir()}


def test_held_out_metrics_and_pictures_are_written(vqvae_run, world_run):
    assert {"psnr", "perplexity", "codes_used"} <= lines(vqvae_run)[-1].keys()
    assert {"bits_per_code", "bits_per_code_shuffled", "reward_error"} <= lines(world_run)[-1].keys()
    assert (vqvae_run / "pictures" / "0000012.png").exists()
    assert (world_run / "pictures" / "0000008.png").exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_named(world_run, tmp_path, damage):
    run = tmp_path / "run"
    shutil.copytree(world_run, run)
    path = run / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 0x10  # in a weight
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flipped" else data[: len(data) // 2])
    with pytest.raises((ValueError, FileNotFoundError), match=r"model\.safetensors"):
        checkpoint.load_dynamics(run)


def test_weights_of_another_size_are_refused(world_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(world_run, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["ar_channels"] = 12
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="does not fit the model"):
        checkpoint.load_dynamics(run)
    config["model"]["ar_chanels"] = config["model"].pop("ar_channels")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"unknown DynamicsConfig setting 'ar_chanels': .* did you mean 'ar_channels'"):
        checkpoint.load_dynamics(run)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"embed_dim": 60_000, "num_heads": 1}, "does not fit the model that config.yaml beside it describes"),
        ({"embed_dim": 10**12, "num_heads": 1}, "model.embed_dim must be 65536 or less, got 1000000000000"),
        ({"codebook_size": 10**15}, "does not fit the model"),
        ({"num_layers": 10**9}, "model.num_layers must be 1000 or less, got 1000000000"),
        ({"embed_dim": "24"}, "DynamicsConfig embed_dim must be int, got '24'"),
    ],
)
def test_sizes_that_would_take_all_memory_are_compared_with_the_weights_first(setting, message, world_run, tmp_path):
    run = shutil.copytree(world_run, tmp_path / "run")
    values = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**values, "model": {**values["model"], **setting}}))
    with pytest.raises(ValueError, match=message):
        checkpoint.load_dynamics(run)


@pytest.mark.slow
def test_a_run_goes_on_when_the_store_has_grown(store, tmp_path):
    run, grown = tmp_path / "run", tmp_path / "store"
    shutil.copytree(store, grown)
    vqvae(str(run), str(grown), model=VQVAE_SIZES, train=train_config(2), batch_size=8)
    EpisodeStore(grown).append(sliding_stripes(99))
    vqvae(str(run), str(grown), model=VQVAE_SIZES, train=train_config(4), batch_size=8)
    assert tensor_io.read_step(run / "train.safetensors") == 4


@pytest.mark.slow
def test_a_prior_grows_from_a_shallower_one_and_begins_as_it(store, world_run, vqvae_run, tmp_path):
    deeper, other_seed = replace(PRIOR_SIZES, num_layers=2), replace(train_config(1), seed=5)
    dynamics(str(store), str(vqvae_run), str(tmp_path / "run"), deeper, other_seed, 2, 6, init=str(world_run))
    small, large = checkpoint.load_dynamics(world_run), checkpoint.load_dynamics(tmp_path / "run")
    assert len(large.blocks) == 2
    assert torch.allclose(large.embedding.weight, small.embedding.weight, atol=1e-2)
    fresh = Dynamics(large.config)
    fresh.grow_from(small)
    codes, actions = torch.randint(16, (2, 5, 6, 6)), torch.randint(3, (2, 5))
    condition = fresh.predict(codes, actions).condition
    assert torch.allclose(condition, small.predict(codes, actions).condition, atol=1e-6)
    rescaled = Dynamics(replace(large.config, reward_scale=7.0, termination_pos_weight=3.0))
    rescaled.grow_from(small)
    for mine, expected in zip(rescaled.predict(codes, actions), small.predict(codes, actions), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-4)
    condition.square().mean().backward()
    assert fresh.blocks[1].over_time.weight.grad.abs().sum() > 0, "what begins as nothing learns"


def test_a_prior_starts_from_a_shipped_world(store, world_run, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "PRETRAINED", world_run.parent)
    run, name = tmp_path / "run", world_run.name
    dynamics(str(store), name, str(run), PRIOR_SIZES, train_config(1), 2, 6, init=name)
    mine, shipped_one = checkpoint.load_dynamics(run), checkpoint.load_dynamics(world_run)
    torch.testing.assert_close(mine.embedding.weight, shipped_one.embedding.weight, atol=1e-2, rtol=0)
    assert tensor_io.digest(run / "vqvae") == tensor_io.digest(world_run / "vqvae")


def test_reward_scale_is_their_root_mean_square(store):
    rewards = np.concatenate([episode.rewards for episode in EpisodeStore(store)])
    assert reward_rms(EpisodeStore(store)) == pytest.approx(np.sqrt(np.mean(rewards**2)))


def test_a_run_of_a_relative_path_goes_on(store, tmp_path, monkeypatch):
    monkeypatch.chdir(store.parent)
    vqvae(str(tmp_path / "run"), store.name, model=VQVAE_SIZES, train=train_config(1), batch_size=4)
    vqvae(str(tmp_path / "run"), str(store), model=VQVAE_SIZES, train=train_config(2), batch_size=4)


def test_training_ends_with_a_line_that_says_how_good_it_is(store, tmp_path, capsys):
    run = tmp_path / "run"
    vqvae(str(run), str(store), model=VQVAE_SIZES, train=train_config(2), batch_size=4)
    last = [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "psnr" in row][-1]
    assert (
        capsys.readouterr().out.splitlines()[-1].startswith(f"{run}: 2 steps; held out: psnr {last['psnr']:.4g}, ssim")
    )


def test_a_store_that_is_not_there_is_told_how_to_record_one(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"nope holds no store.json; record one with python -m worldmodel.collect"
    ):
        vqvae(str(tmp_path / "run"), "nope")


def test_a_digest_names_which_weights_are_whose(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    one, other = torch.ones(2), torch.zeros(2)
    digests = []
    for tensors in ({"a": one, "b": other}, {"a": other, "b": one}, {"a": one, "c": other}):
        tensor_io.write_tensors(run / "model.safetensors", tensors)
        digests.append(tensor_io.digest(run))
    assert len(set(digests)) == 3


@pytest.mark.slow
def test_a_resumed_run_remembers_where_its_weights_came_from(store, vqvae_run, world_run, tmp_path):
    run, origin = tmp_path / "run", str(world_run)
    dynamics(str(store), str(vqvae_run), str(run), PRIOR_SIZES, train_config(1), 2, 6, init=origin)
    dynamics(str(store), str(vqvae_run), str(run), PRIOR_SIZES, train_config(2), 2, 6)
    assert checkpoint.read_config(run)["data"]["init"] == origin


def test_a_picture_shows_no_frame_beyond_an_episode(store, vqvae_run, tmp_path, monkeypatch):
    shown, draw = [], train_dynamics.dream_over_truth
    monkeypatch.setattr(train_dynamics, "NUM_SHOWN", 40)  # episodes have 21 frames
    monkeypatch.setattr(
        train_dynamics, "dream_over_truth", lambda world, *clip: shown.append(clip) or draw(world, *clip)
    )
    dynamics(str(store), str(vqvae_run), str(tmp_path / "run"), PRIOR_SIZES, train_config(1), 2, 6)
    assert {(len(codes), len(actions)) for codes, actions in shown} == {(21, 20)}
