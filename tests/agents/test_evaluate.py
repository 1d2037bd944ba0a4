"""Agents are measured in the real game and in their dreams, recorded, filmed and shared."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import gymnasium as gym
import imageio.v3 as iio
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from agents.evaluate import evaluate
from agents.plot import plot, read_returns
from agents.policy import Policy, read_agent_config
from agents.release import release
from agents.rollouts import RandomPolicy, ScriptedPolicy, make_evaluation_env, play_episodes
from agents.training import train
from envs.encoded import EncodedEnv
from tests.agents.conftest import SETTINGS, SIZES, TINY, lines
from tests.tiny_world import TinyWorld
from worldmodel import checkpoint, shipped
from worldmodel.episodes.collect import add_exploration, check_agent, collect
from worldmodel.episodes.store import EpisodeStore
from worldmodel.models.vqvae import VQVAE
from worldmodel.world_model import WorldModel

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]


def test_evaluation_plays_the_agent_beside_random_actions_and_keeps_the_returns(agent, tmp_path, capsys):
    for name in ("one", "two"):
        evaluate(str(agent), TINY, episodes=3, out=str(tmp_path / name), video=str(tmp_path / "film.gif"))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{TINY}, 3 episodes of 12 steps at most"
    assert printed[1].startswith("agent   return") and printed[2].startswith("random  return") and "±" in printed[1]
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one", "two"))
    assert one == two and len(one["agent"]["returns"]) == len(one["random"]["returns"]) == 3
    assert (tmp_path / "film.gif").stat().st_size > 0


def test_random_actions_are_held_as_long_as_the_agents():
    def act(action_repeat: int) -> list[int]:
        player = RandomPolicy(("left", "stay", "right"), action_repeat)
        player.start(0)
        return [player.act(np.zeros((8, 8, 3), np.uint8)) for _ in range(12)]

    every, held = act(1), act(3)
    assert held == [action for action in every[:4] for _ in range(3)] and len(set(every[:4])) > 1


def test_an_agent_holds_its_actions_on_frames(world_run):
    policy, frames, seen = coded_policy(world_run, action_repeat=3)
    assert [policy.act(frame) for frame in frames] == [1, 1, 1, 2, 2, 2, 3]
    np.testing.assert_array_equal(seen, policy.vqvae.encode(torch.from_numpy(frames[::3])))


def test_an_agent_sees_its_last_frames_and_encodes_each_once(world_run, monkeypatch):
    policy, frames, seen = coded_policy(world_run, history=3)
    codes, encoded = policy.vqvae.encode(torch.from_numpy(frames)), []
    monkeypatch.setattr(policy.vqvae, "encode", lambda part: (encoded.append(len(part)), VQVAE.encode(vqvae, part))[1])
    vqvae = policy.vqvae
    for frame in frames:
        policy.act(frame)
    assert encoded == [1] * len(frames)
    for last, observation in enumerate(seen):
        np.testing.assert_array_equal(observation, codes[[max(0, last - 2), max(0, last - 1), last]])
    policy.start(0)
    policy.act(frames[5])
    np.testing.assert_array_equal(seen[-1], codes[[5, 5, 5]])


def coded_policy(world_run, **settings) -> tuple[Policy, np.ndarray, list[np.ndarray]]:
    """An agent that counts its choices, frames to act on, and the list of what it sees."""
    network = SimpleNamespace(config=SimpleNamespace(codebook_size=16))
    policy, seen = Policy(network, WorldModel.load(world_run).vqvae, ("a", "b"), **settings), []
    policy.choose = lambda observation: seen.append(observation) or len(seen)
    return policy, np.random.default_rng(0).integers(0, 256, (7, 24, 24, 3), np.uint8), seen


def test_a_script_of_actions_is_evaluated_beside_the_agent(agent, tmp_path, capsys):
    player = ScriptedPolicy(("left", "stay", "right"), "right:2,left", action_repeat=2)
    player.start(0)
    assert [player.act(np.zeros((8, 8, 3), np.uint8)) for _ in range(10)] == [2, 2, 2, 2, 0, 0, 2, 2, 2, 2]
    evaluate(str(agent), TINY, episodes=2, script="forward", out=str(tmp_path / "out"))
    assert capsys.readouterr().out.splitlines()[3].startswith("script  return 12 ±"), "every step forward is rewarded"
    scores = json.loads((tmp_path / "out").read_text())
    assert scores["actions"] == "forward" and scores["script"]["returns"] == [12, 12]
    with pytest.raises(ValueError, match="unknown action 'fly': expected one of noop"):
        evaluate(str(agent), TINY, script="fly")


def test_evaluation_names_the_world_that_the_agent_learnt_of(agent, tmp_path):
    evaluate(str(agent), TINY, episodes=1, out=str(tmp_path / "out"))
    data = read_agent_config(agent)["data"]
    assert json.loads((tmp_path / "out").read_text())["env_kwargs"] == data["kwargs"]
    settings = {"temperature": 1.3, "context": 5, "termination_cost": 9.0, "starts_near_termination": 0.5}
    trained = {**data, "env": "envs:Dream-v0", "env_kwargs": {**data["env_kwargs"], **settings}}
    dream = make_evaluation_env(trained, "envs:Dream-v0").env.unwrapped._dream
    assert (dream.temperature, dream.context, dream.horizon) == (1.3, 5, data["env_kwargs"]["horizon"])
    assert not dream.termination_cost and not dream.starts_near_termination, "they only help training"


def test_short_dreams_do_not_shorten_the_evaluation(tiny_world, tmp_path):
    run, settings = tmp_path / "run", replace(SETTINGS, evaluate_every=1, evaluation_episodes=2, evaluation_horizon=9)
    train(str(run), env_kwargs={"world": str(tiny_world), "horizon": 5}, model=SIZES, train=settings, real=TINY)
    assert {row["steps"] for row in lines(run, "real")} == {9}
    data = read_agent_config(run)["data"]
    assert make_evaluation_env(data, TINY).horizon == 9 and make_evaluation_env(data, TINY, horizon=7).horizon == 7
    del data["evaluation_horizon"]  # agents of earlier versions
    assert make_evaluation_env(data, TINY).horizon == 5


def test_actions_are_held_in_a_dream_and_each_of_its_frames_is_a_step(agent):
    made = make_evaluation_env(read_agent_config(agent)["data"], "envs:Dream-v0", {"action_repeat": 3}, horizon=7)
    player = RandomPolicy(made.env.get_wrapper_attr("action_names"))
    held_by_env = made._replace(env=gym.make("envs:Dream-v0", **made.env_kwargs), action_repeat=1)
    per_frame, per_action = (play_episodes(env, player, 20, seed=0) for env in (made, held_by_env))
    returns = [result.episode_return for result in per_action]
    assert [result.episode_return for result in per_frame] == pytest.approx(returns)
    assert [-(-result.steps // 3) for result in per_frame] == [result.steps for result in per_action]
    assert 3 < max(result.steps for result in per_frame) <= 7
    with pytest.raises(ValueError, match="action_repeat must be a whole number of 1 or more, got 0"):
        make_evaluation_env(read_agent_config(agent)["data"], "envs:Dream-v0", {"action_repeat": 0})


def test_a_film_shows_the_game_and_the_agents_dream_side_by_side(agent, tmp_path):
    evaluate(str(agent), TINY, episodes=1, video=str(tmp_path / "game.gif"))
    evaluate(str(agent), TINY, episodes=1, video=str(tmp_path / "both.gif"), dream_beside=True)
    game, both = (iio.imread(tmp_path / f"{name}.gif") for name in ("game", "both"))
    height, width = game.shape[1:3]
    assert both.shape[1:3] == (height, 2 * width) and len(both) >= len(game)
    assert (both[0, :, :width] != both[0, :, width:]).any()
    evaluate(str(agent), TINY, episodes=1, horizon=4, video=str(tmp_path / "short.gif"), dream_beside=True)
    assert len(iio.imread(tmp_path / "short.gif")) == 4
    with pytest.raises(ValueError, match="--dream_beside needs a --video"):
        evaluate(str(agent), TINY, episodes=1, dream_beside=True)


def test_an_agent_that_is_shared_plays_as_before_without_its_run(agent, tiny_world, tmp_path, monkeypatch):
    shared = tmp_path / "agents" / "tiny"
    release(str(agent), str(tiny_world), str(shared), "plays a tiny game")
    assert not (shared / "vqvae").exists() and str(tmp_path) not in (shared / "config.yaml").read_text()
    monkeypatch.setattr(shipped, "AGENTS", tmp_path / "agents")
    before, after = Policy.load(agent), Policy.load("tiny")
    frame = np.random.default_rng(0).integers(0, 256, (84, 84, 3), np.uint8)
    for policy in (before, after):
        policy.start(3)
    assert [before.act(frame) for _ in range(20)] == [after.act(frame) for _ in range(20)]
    evaluate("tiny", TINY, episodes=1)
    collect(str(tmp_path / "store"), TINY, episodes=1, policy="tiny")
    monkeypatch.setattr("agents.training.run_training", lambda *arguments: None)
    train(
        str(tmp_path / "run"),
        env_kwargs={"world": str(tiny_world), "horizon": 12, "history": 2},
        model=SIZES,
        train=SETTINGS,
        init="tiny",
    )
    assert Policy.load(tmp_path / "run").act(frame) == Policy.load("tiny").act(frame)
    with pytest.raises(ValueError, match="sees the codes of another VQ-VAE"):
        release(str(agent), "doom-take-cover", str(tmp_path / "other"), "")


def test_evaluation_plays_in_the_agents_own_dream(agent, capsys):
    with pytest.raises(ValueError, match=r"cannot make --env envs:Dream-v0 with .*'tempratur'"):
        evaluate(str(agent), "envs:Dream-v0", {"tempratur": 2}, episodes=1)
    evaluate(str(agent), "envs:Dream-v0", episodes=1, horizon=5)
    assert "envs:Dream-v0, 1 episodes of 5 steps at most" in capsys.readouterr().out


def test_an_agent_of_codes_is_not_evaluated_on_the_codes_of_another_vqvae(agent, tiny_world, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_world, other)
    weights = load_file(other / "vqvae" / "model.safetensors")
    save_file(
        {**weights, "quantizer.codebook": weights["quantizer.codebook"] + 1}, other / "vqvae" / "model.safetensors"
    )
    with pytest.raises(ValueError, match=r"sees the codes of another VQ-VAE than that of the world .*other"):
        evaluate(str(agent), "envs:Dream-v0", {"world": str(other)}, episodes=1, horizon=5)


def test_an_agent_records_the_same_episodes_twice(agent, tmp_path):
    stores = [tmp_path / name for name in ("one", "two")]
    for store in stores:
        collect(str(store), TINY, episodes=3, policy=str(agent), max_episode_steps=15, epsilon=0.3)
    one, two = ([entry.sha256 for entry in EpisodeStore(store).entries] for store in stores)
    assert one == two
    assert EpisodeStore(stores[0]).schema.provenance["policy"] == "agents.policy:Policy"
    with pytest.raises(ValueError, match="holds episodes with provenance"):
        collect(str(stores[0]), TINY, episodes=4, policy="sticky", max_episode_steps=15)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_an_agent_is_overruled_in_the_share_of_steps_that_was_asked_for(share):
    class Stubborn:
        def act(self, frame):
            return 3

    choose = add_exploration(Stubborn(), share, ("a", "b", "c"), np.random.default_rng(0))
    taken = [choose(np.zeros(1)) for _ in range(20_000)]
    assert np.mean([action != 3 for action in taken]) == pytest.approx(share, abs=0.03)


def test_no_module_is_imported_because_a_file_names_it(agent, stripes_agent, tiny_world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as python -m has it
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('was_here').touch()\nclass World: pass\n")
    theirs = tmp_path / "theirs"
    shutil.copytree(agent, theirs)
    text = (theirs / "config.yaml").read_text()
    (theirs / "config.yaml").write_text(
        text.replace("policy: agents.policy:Policy", "policy: evil:World").replace(TINY, "evil:World-v0")
    )
    with pytest.raises(ValueError, match=r"names the environment evil:World-v0.* --env evil:World-v0"):
        evaluate(str(theirs), episodes=1)
    with pytest.raises(ValueError, match=r"of the class evil:World, expected agents.*--policy_class evil:World"):
        collect("store", TINY, episodes=1, policy=str(theirs))
    with pytest.raises(
        ValueError, match=r"names the environment tests.tiny_world:Tiny-v0.* --real tests.tiny_world:Tiny-v0"
    ):
        train("run", env_kwargs={"world": str(tiny_world)}, train=replace(SETTINGS, evaluate_every=1))
    with pytest.raises(
        ValueError, match=r"names the environment tests.tiny_world:Tiny-v0.* env=tests.tiny_world:Tiny-v0"
    ):
        EncodedEnv(str(tiny_world))
    assert not (tmp_path / "was_here").exists()
    with pytest.raises(ValueError, match="--policy_class evil:World cannot be imported"):
        collect("store", TINY, episodes=1, policy=str(theirs), policy_class="evil:World")  # which has no load
    assert (tmp_path / "was_here").exists(), "the user named it"


def test_what_is_no_agent_or_fits_no_agent_is_refused(agent, stripes_agent, world_run, tiny_world, tmp_path):
    run, world = str(tmp_path / "run"), {"world": str(world_run), "horizon": 5}
    with pytest.raises(ValueError, match="must be the run of an agent, it is that of a dynamics"):
        evaluate(str(world_run))
    with pytest.raises(FileNotFoundError, match="unknown agent"):
        evaluate(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"sticky, random, mixed.* or the run folder of an agent"):
        collect(str(tmp_path / "store"), TINY, episodes=1, policy=str(world_run))
    policy = Policy.load(agent)
    assert policy.frame_shape == TinyWorld().observation_space.shape
    with pytest.raises(ValueError, match=r"acts on frames \(84, 84, 3\), the environment has \(24, 24, 3\)"):
        check_agent(policy, "tiny", policy.action_names, (24, 24, 3))
    with pytest.raises(ValueError, match="knows the actions"):
        evaluate(str(stripes_agent), TINY)
    with pytest.raises(ValueError, match="knows the actions"):
        collect(str(tmp_path / "store"), TINY, episodes=1, policy=str(stripes_agent))
    with pytest.raises(ValueError, match=r"cannot make --env stripes.*train.evaluate_every 0"):
        train(run, env_kwargs=world, train=replace(SETTINGS, evaluate_every=1))
    with pytest.raises(ValueError, match=r"sees the codes of another VQ-VAE"):
        train(run + "2", env_kwargs=world, train=SETTINGS, init=str(agent))
    with pytest.raises(ValueError, match=r"--env must be one of envs:Dream-v0, envs:Encoded-v0, got 'CartPole-v1'"):
        train(run, "CartPole-v1")
    with pytest.raises(ValueError, match=r"train.gamma must be in \[0, 1\), got 1.0"):
        replace(SETTINGS, gamma=1.0)
    with pytest.raises(ValueError, match="--init must be an agent with the same network"):
        train(
            run + "3",
            env_kwargs={"world": str(tiny_world), "horizon": 12},
            model=SIZES,
            train=SETTINGS,
            init=str(agent),
        )
    with pytest.raises(ValueError, match="multiple of the 4 environments"):
        replace(SETTINGS, batch_size=33)
    with checkpoint.locked(agent), pytest.raises(ValueError, match="another process is training"):
        train(str(agent), env_kwargs={"world": str(tiny_world), "horizon": 12, "history": 2}, model=SIZES, real=TINY)


def test_an_agent_that_starts_from_another_expects_the_same_returns(agent, tiny_world, tmp_path, monkeypatch):
    monkeypatch.setattr("agents.training.run_training", lambda *arguments: None)
    old = Policy.load(agent).network
    env, run = {"world": str(tiny_world), "horizon": 12, "history": 2}, tmp_path / "run"
    model = replace(SIZES, value_scale=3 * old.config.value_scale)
    train(str(run), env_kwargs=env, model=model, train=replace(SETTINGS, evaluate_every=0), init=str(agent))
    new = Policy.load(run).network
    codes = torch.randint(16, (4, *old.config.observation_shape))
    assert new.config.value_scale == 3 * old.config.value_scale
    torch.testing.assert_close(new(codes), old(codes))


def test_an_encoded_environment_of_other_observations_is_refused(agent):
    with pytest.raises(ValueError, match=r"observes \(2, .*, envs:Dream-v0 shows \("):
        evaluate(str(agent), "envs:Dream-v0", {"history": 1}, episodes=1, horizon=2)


def test_returns_are_plotted_against_real_steps(agent, tiny_world, tmp_path):
    real, dreamed = tmp_path / "real", str(agent)
    env = {"world": str(tiny_world), "env": TINY, "horizon": 8, "action_repeat": 2}
    train(str(real), "envs:Encoded-v0", env, model=SIZES, train=replace(SETTINGS, evaluate_every=1))
    rows = read_returns(real)
    assert [row["real_steps"] for row in rows] == [2 * row["step"] for row in lines(real, "real")] and len(rows) > 1
    (tmp_path / "loop").mkdir()
    table = [{"real_steps": 100 * number, "return": 1.0, "low": 0.5, "high": 2.0} for number in (1, 2)]
    (tmp_path / "loop" / "table.json").write_text(json.dumps(table))
    out = tmp_path / "plots" / "returns.svg"
    (tmp_path / "scores.json").write_text(json.dumps({"agent": {"return": 3.0, "low": 2.0, "high": 4.0}}))
    runs = f"{real},{tmp_path / 'loop'},{dreamed},{tmp_path / 'scores.json'}"
    plot(runs, str(out), real_steps="64,70", labels="game,loop,dream,file")
    text = out.read_text()
    assert all(f"<!-- {name} -->" in text for name in ("game", "loop", "dream", "file"))
    for name, content in (
        ("none", {"agent": {}}),
        ("null", {"agent": {"return": None, "low": 1, "high": 2}}),
        ("list", [1]),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "table.json").write_text('[{"return": "x"}]')
    (tmp_path / "dreams.json").write_text(json.dumps({"agent": {"return": 3.0}, "env": "envs:Dream-v0"}))
    for arguments, message in (
        ({"runs": str(tmp_path / "dreams.json")}, "has returns of dreams; plots are of real returns"),
        ({"runs": dreamed}, "has no real steps of its own: --real_steps must say"),
        ({"runs": str(tmp_path / "damaged")}, r"table.json is damaged \(KeyError\('real_steps'\)\); restore it"),
        *(({"runs": str(tmp_path / f"{name}.json")}, "must be a file that") for name in ("none", "null", "list")),
        ({"runs": str(tmp_path / "loop" / "table.json")}, "must be a file that agents.evaluate --out wrote"),
        ({"runs": dreamed, "labels": "a,b", "real_steps": "5"}, "--labels must be one for each of 1 runs, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            plot(out=str(tmp_path / "none.png"), **arguments)
    with pytest.raises(FileNotFoundError, match="is the folder of no agent and no loop"):
        plot(str(tmp_path), str(tmp_path / "none.png"))
    assert not (tmp_path / "none.png").exists()
