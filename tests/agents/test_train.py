"""Agents learn in dreams, act without Ray as they did with it, and are measured in the real world."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from agents.config import NetworkConfig
from agents.network import Network
from agents.policy import Policy, read_agent_config
from agents.rllib import check_vectorized
from agents.rollouts import make_evaluation_env
from agents.training import train
from envs.encoded import EncodedEnv
from tests.agents.conftest import SETTINGS, SIZES, TINY, lines
from tests.tiny_world import TinyWorld
from worldmodel.renamed import MODELS
from worldmodel.tensor_io import read_tensors, write_tensors

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]
OLD_NAMES = {new: old for old, new in MODELS["agent"].items()}


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


@pytest.mark.parametrize("terminated", [False, True])
def test_a_truncated_dream_is_worth_the_value_of_its_last_observation_and_a_terminated_one_nothing_more(
    stripes_agent, world_run, terminated
):
    from gymnasium.spaces import Box, Discrete
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

    from agents.rllib import ppo_config

    train = replace(SETTINGS, gamma=0.9, gae_lambda=1.0)
    space, actions = Box(0, 15, (6, 6), np.int32), Discrete(3)
    settings = ppo_config(stripes_agent, "envs:Dream-v0", {"world": str(world_run)}, train)
    learner = settings.build_learner(spaces={"__all__": (space, actions), "default_policy": (space, actions)})
    seen = [np.full((6, 6), code, np.int32) for code in (3, 1, 7)]
    episode = SingleAgentEpisode(
        observations=seen,
        actions=[0, 1],
        rewards=[1.0, 2.0],
        extra_model_outputs={"action_dist_inputs": [np.zeros(3, np.float32)] * 2},
        terminated=terminated,
        truncated=not terminated,
        observation_space=space,
        action_space=actions,
        len_lookback_buffer=0,
    )
    batch = learner._learner_connector(
        rl_module=learner.module, batch={}, episodes=[episode], shared_data={}, explore=False
    )
    value = Policy.load(stripes_agent).network(torch.from_numpy(seen[-1])[None])[1].item()
    last = 0.0 if terminated else value
    targets = batch["default_policy"]["value_targets"][:2]
    torch.testing.assert_close(targets, torch.tensor([1 + 0.9 * (2 + 0.9 * last), 2 + 0.9 * last]))


def test_using_an_agent_loads_no_ray(agent):
    load = f"from agents import rollouts; from agents.policy import Policy; Policy.load({str(agent)!r})"
    code = f"import sys; {load}; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("observation", ["codes", "frame"])
def test_an_agent_sees_of_a_real_frame_what_encoded_worlds_show(tiny_world, tmp_path, observation, monkeypatch):
    settings = {"world": str(tiny_world), "observation": observation, "history": 2}
    train(
        str(tmp_path / "run"),
        env_kwargs={**settings, "horizon": 8},
        model=SIZES,
        train=replace(SETTINGS, total_timesteps=16, batch_size=16, num_envs=2),
    )
    policy, encoded, real = Policy.load(tmp_path / "run"), EncodedEnv(env=TINY, **settings), TinyWorld()
    seen: list[np.ndarray] = []
    monkeypatch.setattr(policy, "choose", lambda observation: seen.append(observation) or 0)
    for seed in (1, 2):
        policy.start(seed)
        shown, frame = encoded.reset(seed=seed)[0], real.reset(seed=seed)[0]
        for action in (1, 0, 2):
            policy.act(frame)
            np.testing.assert_array_equal(seen[-1], shown)
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


def test_a_run_finds_its_world_from_any_folder_and_goes_on_if_it_named_none(tiny_world, tmp_path, monkeypatch):
    run, env, more = tmp_path / "run", {"world": tiny_world.name, "horizon": 8}, replace(SETTINGS, total_timesteps=96)
    monkeypatch.chdir(tiny_world.parent)
    train(str(run), env_kwargs=env, model=SIZES, train=SETTINGS)
    monkeypatch.chdir(tmp_path)
    trained = read_agent_config(run)
    assert trained["data"]["env_kwargs"]["world"] == str(tiny_world)
    make_evaluation_env(trained["data"], "envs:Dream-v0")
    del trained["data"]["env_kwargs"]["world"]  # a run of earlier versions in the default world
    (run / "config.yaml").write_text(yaml.safe_dump({**trained, "data": dict(trained["data"])}))
    train(str(run), env_kwargs={**env, "world": str(tiny_world)}, model=SIZES, train=more)


def test_a_run_that_was_killed_between_its_checkpoint_and_its_weights_has_both(tiny_world, tmp_path):
    run, env = tmp_path / "run", {"world": str(tiny_world), "horizon": 8}
    train(str(run), env_kwargs=env, model=SIZES, train=SETTINGS)
    weights = (run / "model.safetensors").read_bytes()
    old = {name: torch.zeros_like(tensor) for name, tensor in read_tensors(run / "model.safetensors").items()}
    write_tensors(run / "model.safetensors", old)
    train(str(run), env_kwargs=env, model=SIZES, train=SETTINGS)  # nothing is left to do
    assert (run / "model.safetensors").read_bytes() == weights


def test_a_run_that_was_stopped_in_its_first_evaluation_begins_again(tiny_world, tmp_path, monkeypatch):
    run, env, settings = tmp_path / "run", {"world": str(tiny_world), "horizon": 8}, replace(SETTINGS, evaluate_every=1)

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("agents.rollouts.play_episodes", stop)
        with pytest.raises(KeyboardInterrupt):
            train(str(run), env_kwargs=env, model=SIZES, train=settings, real=TINY)
    assert len(lines(run, "train")) == 1 and not lines(run, "real")
    train(str(run), env_kwargs=env, model=SIZES, train=settings, real=TINY)
    steps = [row["step"] for row in lines(run, "train")]
    assert steps == sorted(set(steps)) == [row["step"] for row in lines(run, "real")]
    assert steps[-1] >= 64


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
