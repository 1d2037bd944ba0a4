"""Runs, stores and agents written before format 2, whose names were others: they load, go on and mean the same."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from agents.policy import Policy
from worldmodel import checkpoint, renamed, tensor_io
from worldmodel.episodes.collect import collect
from worldmodel.episodes.store import EpisodeStore
from worldmodel.images.generator import ImageGenerator
from worldmodel.models.config import DynamicsConfig
from worldmodel.train.dynamics import dynamics
from worldmodel.train_config import TrainConfig
from worldmodel.world_model import WorldModel

WRITTEN = Path(__file__).parent / "format1"  # by the version before, with tiny sizes
SIZES = {"context_length": 4, "embed_dim": 8, "num_heads": 2, "num_layers": 1, "motion_channels": 6, "motion_layers": 2}


@pytest.fixture
def old(tmp_path) -> Path:
    folder = tmp_path / "old"
    shutil.copytree(WRITTEN, folder)
    for path in folder.rglob("config.yaml"):
        path.write_text(path.read_text().replace("FOLDER", str(folder)))
    return folder


def test_an_old_world_dreams_what_it_dreamed(old):
    expected = json.loads((old / "expected.json").read_text())
    world = WorldModel.load(old / "world")
    frames, actions = world.clip(0)
    dream = world.imagine(world.start(frames, actions), torch.tensor([[0, 1, 2, 2, 0]]), seed=3)
    assert (
        dream[0] == torch.tensor(expected["dream"])
    ).double().mean() > 0.9  # all, but for another machine's rounding
    brightness = world.decode(dream[0]).double().mean((1, 2, 3))
    torch.testing.assert_close(brightness, torch.tensor(expected["frames"]).double(), atol=2.0, rtol=0)


def test_an_old_agent_acts_as_it_did(old):
    frames, _ = WorldModel.load(old / "world").clip(0)
    policy = Policy.load(old / "agent")
    policy.start(5)
    assert [policy.act(frame) for frame in frames[0].numpy()] == json.loads((old / "expected.json").read_text())[
        "actions"
    ]


def test_an_old_prior_of_pictures_draws(old):
    generator = ImageGenerator.load(old / "pixelcnn")
    assert generator.generate(torch.zeros(2, dtype=torch.int64)).shape == (2, 24, 24, 3)


@pytest.mark.slow
def test_an_old_training_goes_on_and_is_written_in_the_names_of_today(old):
    sizes = DynamicsConfig(**SIZES, ar_channels=8, ar_layers=2)
    train = TrainConfig(steps=6, warmup_steps=2, log_every=2, evaluate_every=4, ema_decay=0.5, threads=1)
    run = old / "world"
    with pytest.raises(ValueError, match="was begun with batch_size 2, got 3"):
        dynamics(str(old / "store"), str(run / "vqvae"), str(run), sizes, train, batch_size=3, seq_length=6)
    dynamics(str(old / "store"), str(run / "vqvae"), str(run), sizes, train, batch_size=2, seq_length=6)
    assert tensor_io.read_step(run / "train.safetensors") == 6
    values = yaml.safe_load((run / "config.yaml").read_text())
    assert values["format"] == renamed.FORMAT and values["kind"] == "dynamics"
    assert values["model"]["embed_dim"] == 8 and values["train"]["ema_decay"] == 0.5


def test_an_old_recording_goes_on(old):
    collect(str(old / "recorded"), "tests.tiny_world:Tiny-v0", episodes=3, max_episode_steps=6)
    assert len(EpisodeStore(old / "recorded")) == 3
    with pytest.raises(ValueError, match="max_episode_steps"):
        collect(str(old / "recorded"), "tests.tiny_world:Tiny-v0", episodes=4, max_episode_steps=7)


def test_a_run_of_a_later_format_is_refused(old):
    path = old / "world" / "config.yaml"
    path.write_text(f"format: {renamed.FORMAT + 1}\n{path.read_text()}")
    with pytest.raises(ValueError, match="has format 3, this version reads 1 and 2; upgrade worldmodel"):
        checkpoint.read_config(old / "world")


def test_names_of_today_are_not_renamed_again():
    values = {"format": 2, "kind": "dynamics", "model": {"context_length": 4, "noise": 1}, "data": {"length": 3}}
    assert renamed.upgrade_config(values) == values
    assert renamed.upgrade_config({"kind": "prior", "model": {"width": 8}, "data": {}})["model"] == {"embed_dim": 8}
