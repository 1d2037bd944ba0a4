"""A tiny world that can be played in reality, and agents that were trained in dreams of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agents.config import AgentConfig, NetworkConfig
from agents.training import train
from tests.conftest import PRIOR_SIZES, VQVAE_SIZES, train_config
from worldmodel.episodes.collect import collect
from worldmodel.train.dynamics import dynamics
from worldmodel.train.vqvae import vqvae

TINY = "tests.tiny_world:Tiny-v0"
SIZES = NetworkConfig(conv_channels=8, hidden_units=32)
SETTINGS = AgentConfig(
    total_timesteps=64,
    batch_size=32,
    minibatch_size=16,
    update_epochs=1,
    num_envs=4,
    evaluate_every=0,
    evaluation_episodes=2,
)


@pytest.fixture(scope="session")
def stripes_agent(world_run, tmp_path_factory) -> Path:
    """An agent that has learnt for a few thousand steps in dreams of stripes, where action 2 is rewarded."""
    run = tmp_path_factory.mktemp("agents") / "stripes"
    settings = AgentConfig(
        total_timesteps=6000,
        batch_size=512,
        minibatch_size=128,
        learning_rate=1e-3,
        gamma=0.8,
        ent_coef=0.0,
        evaluate_every=0,
    )
    train(str(run), env_kwargs={"world": str(world_run), "horizon": 10}, model=SIZES, train=settings)
    return run


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory) -> Path:
    """A world model of the moving square, which can be played in reality, too."""
    folder = tmp_path_factory.mktemp("tiny")
    collect(str(folder / "store"), TINY, episodes=6)
    vqvae(str(folder / "vqvae"), str(folder / "store"), model=VQVAE_SIZES, train=train_config(4), batch_size=4)
    dynamics(
        str(folder / "store"),
        str(folder / "vqvae"),
        str(folder / "world"),
        PRIOR_SIZES,
        train_config(2),
        2,
        seq_length=4,
    )
    return folder / "world"


@pytest.fixture(scope="session")
def agent(tiny_world, tmp_path_factory) -> Path:
    """An agent for that world, evaluated in it while it learnt."""
    run = tmp_path_factory.mktemp("agents") / "tiny"
    env = {"world": str(tiny_world), "horizon": 12, "history": 2}
    train(str(run), env_kwargs=env, model=SIZES, train=replace(SETTINGS, evaluate_every=1), real=TINY)
    return run


def lines(run: Path, part: str) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["part"] == part]
