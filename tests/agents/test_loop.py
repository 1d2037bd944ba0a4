"""The loop of recording, dreaming and learning goes on where it was stopped."""

import csv
import json
from dataclasses import replace

import pytest

from agents.config import AgentConfig, NetworkConfig
from agents.loop import AgentStage, CollectStage, DynamicsStage, VQVAEStage, loop
from tests.conftest import PRIOR_SIZES, VQVAE_SIZES, train_config
from worldmodel.episodes.store import EpisodeStore
from worldmodel.tensor_io import digest
from worldmodel.train.dynamics import dynamics

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]
STAGES = {
    "collect": CollectStage(
        env="tests.tiny_world:Tiny-v0", episodes=2, first_episodes=4, epsilon=0.2, max_episode_steps=12
    ),
    "vqvae": VQVAEStage(VQVAE_SIZES, train_config(2), batch_size=4),
    "dynamics": DynamicsStage(PRIOR_SIZES, train_config(2), batch_size=2, seq_length=4),
    "agent": AgentStage(
        {"horizon": 6},
        NetworkConfig(conv_channels=8, hidden_units=16),
        AgentConfig(total_timesteps=16, batch_size=16, minibatch_size=8, update_epochs=1, num_envs=2, evaluate_every=0),
        evaluation_episodes=2,
    ),
}


def test_each_round_records_with_the_agent_of_the_last_and_a_stopped_one_goes_on(tmp_path, monkeypatch, capsys):
    run = tmp_path / "loop"

    def stop(*arguments, **settings):
        raise KeyboardInterrupt

    loop(str(run), rounds=1, **STAGES)
    (first,) = json.loads((run / "table.json").read_text())
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("agents.training.train", stop)
        loop(str(run), rounds=2, **STAGES)
    recorded = (run / "store" / "index.jsonl").read_text()
    loop(str(run), rounds=2, **STAGES)
    assert (run / "store" / "index.jsonl").read_text() == recorded
    rows = json.loads((run / "table.json").read_text())
    assert rows[0] == first and [row["round"] for row in rows] == [1, 2]
    assert [row["real_episodes"] for row in rows] == [4, 6] and rows[0]["real_steps"] < rows[1]["real_steps"]
    second = EpisodeStore(run / "rounds" / "2" / "store").schema.provenance
    assert second["policy"] == "agents.policy:Policy" and second["epsilon"] == 0.2
    assert not (run / "rounds" / "2" / "vqvae").exists()
    with open(run / "table.csv") as file:
        assert [row["round"] for row in csv.DictReader(file)] == ["1", "2"]
    assert capsys.readouterr().out.splitlines()[-2].split()[:2] == ["1", str(rows[0]["real_steps"])]


def test_a_loop_goes_on_from_a_world(tiny_world, tmp_path, monkeypatch):
    run, begun = tmp_path / "loop", []

    def train_dynamics(store, vqvae, target, *settings, init, **more):
        begun.append((vqvae, init))
        dynamics(store, vqvae, target, *settings, init=init, **more)

    monkeypatch.setattr("worldmodel.train.dynamics.dynamics", train_dynamics)
    stages = {**STAGES, "collect": replace(STAGES["collect"], first_policy="random")}
    loop(str(run), rounds=2, world=str(tiny_world), **stages)
    vqvae = str(tiny_world / "vqvae")
    assert begun == [(vqvae, str(tiny_world)), (vqvae, str(run / "rounds" / "1" / "prior"))]
    assert digest(run / "rounds" / "2" / "agent" / "vqvae") == digest(tiny_world / "vqvae")
    assert EpisodeStore(run / "rounds" / "1" / "store").schema.provenance["policy"] == "random"
    assert not list(run.glob("rounds/*/vqvae"))


def test_a_loop_of_no_rounds_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"rounds and vqvae.rounds must be 1 or more, got 0 and 1"):
        loop(str(tmp_path), rounds=0)
    with pytest.raises(ValueError, match="got 1 and 0"):
        loop(str(tmp_path), rounds=1, vqvae=replace(STAGES["vqvae"], rounds=0))
