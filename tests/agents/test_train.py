"""Agents learn in dreams, act without Ray as they did with it, and are measured in the real world."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from agents.config import AgentConfig, NetworkConfig
from agents.evaluate import evaluate
from agents.network import Network
from agents.policy import Policy, read_agent_config
from agents.rllib import check_vectorized
from agents.rollouts import make_evaluation_env
from agents.training import train
from envs.encoded import EncodedEnv
from tests.conftest import PRIOR_SIZES, VQVAE_SIZES, train_config
from tests.tiny_world import TinyWorld
from worldmodel import checkpoint
from worldmodel.episodes.collect import add_exploration, collect
from worldmodel.episodes.store import EpisodeStore
from worldmodel.renamed import MODELS
from worldmodel.train.dynamics import dynamics
from worldmodel.train.vqvae import vqvae

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]
OLD_NAMES = {new: old for old, new in MODELS["agent"].items()}
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


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def agent(tiny_world, tmp_path_factory) -> Path:
    """An agent for that world, evaluated in it while it learnt."""
    run = tmp_path_factory.mktemp("agents") / "tiny"
    env = {"world": str(tiny_world), "horizon": 12, "history": 2}
    train(str(run), env_kwargs=env, model=SIZES, train=replace(SETTINGS, evaluate_every=1), real=TINY)
    return run


def lines(run: Path, part: str) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["part"] == part]


@pytest.mark.parametrize("history", [1, 3])
@pytest.mark.parametrize("codes", [16, 0])
def test_a_net_sees_codes_or_frames_one_or_several_alone_or_in_rllib(codes, history, tmp_path):
    from gymnasium.spaces import Box, Discrete
    from ray.rllib.core.columns import Columns

    from agents.rllib_module import AgentModule
    from worldmodel.tensor_io import save_weights

    shape = (history,) * (history > 1) + (21, 21) if codes else (84, 84, 3 * history)
    space = Box(0, 15 if codes else 255, shape, np.int32 if codes else np.uint8)
    sizes = replace(SIZES, codebook_size=codes, observation_shape=shape, num_actions=5, value_scale=7.0)
    network = Network(sizes)
    batch = torch.from_numpy(np.stack([space.sample() for _ in range(3)]))
    logits, values = network(batch)
    assert logits.shape == (3, 5) and values.shape == (3,)
    save_weights(tmp_path / "model.safetensors", network)
    module = AgentModule(
        observation_space=space,
        action_space=Discrete(5),
        model_config={"network": vars(sizes), "weights": str(tmp_path / "model.safetensors")},
    )
    for forward in (module.forward_inference, module.forward_exploration, module.forward_train):
        torch.testing.assert_close(forward({Columns.OBS: batch})[Columns.ACTION_DIST_INPUTS], logits)
    torch.testing.assert_close(module.compute_values({Columns.OBS: batch}), values)


def test_an_agent_learns_in_a_dream_which_action_is_rewarded(stripes_agent, world_run):
    returns = [row["return"] for row in lines(stripes_agent, "train")]
    assert np.mean(returns[-2:]) > 1.15 * np.mean(returns[:2])
    policy = Policy.load(stripes_agent)
    policy.start(0)
    seen = np.random.default_rng(0).integers(0, 16, (100, 6, 6)).astype(np.int32)
    assert np.mean([policy.choose(observation) == 2 for observation in seen]) > 0.7


def test_an_agent_acts_without_ray_as_it_does_in_rllib(stripes_agent):
    from ray.rllib.core.columns import Columns
    from ray.rllib.core.rl_module.rl_module import RLModule

    (last,) = (stripes_agent / "checkpoint").iterdir()
    module = RLModule.from_checkpoint(last / "learner_group" / "learner" / "rl_module" / "default_policy")
    seen = torch.randint(16, (50, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    logits = module.forward_inference({Columns.OBS: seen})[Columns.ACTION_DIST_INPUTS]
    policy = Policy.load(stripes_agent, greedy=True)
    torch.testing.assert_close(policy.network(seen)[0], logits, rtol=0, atol=0)
    assert [policy.choose(observation) for observation in seen.numpy()] == logits.argmax(1).tolist()


def test_using_an_agent_loads_no_ray(agent):
    load = f"from agents import rollouts; from agents.policy import Policy; Policy.load({str(agent)!r})"
    code = f"import sys; {load}; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("observation", ["codes", "frame"])
def test_an_agent_sees_of_a_real_frame_what_encoded_worlds_show(tiny_world, tmp_path, observation):
    settings = {"world": str(tiny_world), "observation": observation, "history": 2}
    train(
        str(tmp_path / "run"),
        env_kwargs={**settings, "horizon": 8},
        model=SIZES,
        train=replace(SETTINGS, total_timesteps=16, batch_size=16, num_envs=2),
    )
    policy, encoded, real = Policy.load(tmp_path / "run"), EncodedEnv(env=TINY, **settings), TinyWorld()
    for seed in (1, 2):
        policy.start(seed)
        shown, frame = encoded.reset(seed=seed)[0], real.reset(seed=seed)[0]
        for action in (1, 0, 2):
            np.testing.assert_array_equal(policy.observe(frame), shown)
            shown, frame = encoded.step(action)[0], real.step(action)[0]


def test_an_old_agent_that_names_its_algorithm_is_read_and_trained_further(tiny_world, tmp_path):
    run, env = tmp_path / "run", {"world": str(tiny_world), "horizon": 8}
    train(str(run), "envs:worldmodel/Dream-v0", env, model=SIZES, train=SETTINGS)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["data"]["env"], config["data"]["algo"]) == ("envs:Dream-v0", "PPO")
    old = {**config, "model": {OLD_NAMES.get(name, name): value for name, value in config["model"].items()}}
    (run / "config.yaml").write_text(yaml.safe_dump({name: old[name] for name in old if name != "format"}))
    train(str(run), env_kwargs=env, model=SIZES, train=replace(SETTINGS, total_timesteps=96))
    assert yaml.safe_load((run / "config.yaml").read_text())["model"] == config["model"]
    assert lines(run, "train")[-1]["step"] >= 96


def test_an_environment_that_does_not_step_as_a_vector_is_refused():
    runner = SimpleNamespace(env=SimpleNamespace(unwrapped=TinyWorld()))
    group = SimpleNamespace(foreach_env_runner=lambda function: [function(runner)])
    with pytest.raises(RuntimeError, match=r"with tests.tiny_world:TinyWorld, expected envs.dream:DreamVectorEnv"):
        check_vectorized(SimpleNamespace(env_runner_group=group), "envs:Dream-v0")


def test_training_is_measured_in_the_real_world(agent):
    assert [row["step"] for row in lines(agent, "real")] == [row["step"] for row in lines(agent, "train")]
    assert all(0 <= row["return"] <= 12 and row["steps"] == 12 for row in lines(agent, "real"))
    assert list((agent / "tensorboard").iterdir())


def test_a_run_goes_on_where_it_was(tiny_world, tmp_path):
    run, env = tmp_path / "run", {"world": str(tiny_world), "horizon": 8}
    train(str(run), env_kwargs=env, model=SIZES, train=SETTINGS)
    before = (run / "metrics.jsonl").read_text()
    (run / "checkpoint" / ".9999").mkdir()  # left by a kill
    train(str(run), env_kwargs=env, model=SIZES, train=replace(SETTINGS, total_timesteps=128))
    assert (run / "metrics.jsonl").read_text().startswith(before)
    steps = [row["step"] for row in lines(run, "train")]
    assert steps == sorted(set(steps)) and len(steps) == 4 and steps[-1] >= 128
    (last,) = (run / "checkpoint").iterdir()
    assert last.name == str(steps[-1])
    train(str(run), env_kwargs=env, model=SIZES, train=replace(SETTINGS, total_timesteps=128))  # nothing is left to do
    assert [row["step"] for row in lines(run, "train")] == steps


def test_the_real_world_trains_through_the_same_program(tiny_world, tmp_path):
    env = {"world": str(tiny_world), "env": TINY, "horizon": 8}
    train(str(tmp_path / "run"), "envs:Encoded-v0", env, model=SIZES, train=replace(SETTINGS, evaluate_every=9))
    assert lines(tmp_path / "run", "train") and lines(tmp_path / "run", "real")


@pytest.mark.parametrize(
    ("runners", "accident", "message"),
    [
        (0, "breaks", "an environment failed: RuntimeError: the world broke after 9 steps"),
        (1, "breaks", "an environment failed: RuntimeError: the world broke after 9 steps"),
        (1, "dies", "a runner died"),
    ],
)
def test_a_world_that_breaks_or_a_runner_that_is_killed_is_an_error(tiny_world, tmp_path, runners, accident, message):
    accident = {"breaks": 9} if accident == "breaks" else {"dies": str(tmp_path / "killed")}
    env = {"world": str(tiny_world), "env": TINY, "env_kwargs": accident, "horizon": 90}
    settings = replace(SETTINGS, num_env_runners=runners, num_envs=1, total_timesteps=1000, batch_size=64)
    with pytest.raises(ChildProcessError, match=message):
        train(str(tmp_path / "run"), "envs:Encoded-v0", env, model=SIZES, train=settings)


def test_evaluation_plays_the_agent_beside_random_actions_and_keeps_the_returns(agent, tmp_path, capsys):
    for name in ("one", "two"):
        evaluate(str(agent), TINY, episodes=3, out=str(tmp_path / name), video=str(tmp_path / "film.gif"))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{TINY}, 3 episodes of 12 steps at most"
    assert printed[1].startswith("agent   return") and printed[2].startswith("random  return") and "±" in printed[1]
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one", "two"))
    assert one == two and len(one["agent"]["returns"]) == len(one["random"]["returns"]) == 3
    assert (tmp_path / "film.gif").stat().st_size > 0


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


def test_evaluation_plays_in_the_agents_own_dream(agent, capsys):
    evaluate(str(agent), "envs:Dream-v0", episodes=1, horizon=5)
    assert "envs:Dream-v0, 1 episodes of 5 steps at most" in capsys.readouterr().out


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


def test_an_agent_of_several_frames_from_before_they_lay_in_the_channels_acts_as_it_did(tmp_path):
    new = NetworkConfig(conv_channels=8, hidden_units=16, observation_shape=(84, 84, 6), num_actions=3)
    assert NetworkConfig(conv_channels=8, hidden_units=16, observation_shape=(2, 84, 84, 3), num_actions=3) == new


def test_sigterm_ends_training_without_a_crash_and_the_run_goes_on(tiny_world, tmp_path):
    flags = ["--env.world", str(tiny_world), "--env.horizon=8", "--run", str(tmp_path / "run")]
    sizes = ["--model.conv_channels=8", "--model.hidden_units=32", "--train.total_timesteps=100_000"]
    sizes += ["--train.batch_size=32", "--train.minibatch_size=16", "--train.evaluate_every=0", "--train.num_envs=4"]
    command = [sys.executable, "-m", "agents.train", *flags, *sizes]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run").glob("checkpoint/[0-9]*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors and "abort" not in errors.lower()
    (last,) = (tmp_path / "run" / "checkpoint").glob("[0-9]*")
    assert int(last.name) >= 32


def test_what_is_no_agent_or_fits_no_agent_is_refused(agent, stripes_agent, world_run, tiny_world, tmp_path):
    run, world = str(tmp_path / "run"), {"world": str(world_run), "horizon": 5}
    with pytest.raises(ValueError, match="must be the run of an agent, it is that of a dynamics"):
        evaluate(str(world_run))
    with pytest.raises(FileNotFoundError, match="the run of no agent; train one"):
        evaluate(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="sticky, random, mixed or the run folder of an agent"):
        collect(str(tmp_path / "store"), TINY, episodes=1, policy=str(world_run))
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
