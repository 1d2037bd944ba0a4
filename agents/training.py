"""Train an agent with PPO in the dreams of a world model."""

import os
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: each runner has one thread
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
from tqdm import tqdm

from agents.config import AgentConfig, NetworkConfig
from worldmodel import config, env_wrappers

if TYPE_CHECKING:
    from agents import rollouts
    from worldmodel.world_model import WorldModel


def train(
    run: str,
    env: str = "envs:Dream-v0",
    env_kwargs: dict[str, Any] = {},
    model: NetworkConfig = NetworkConfig(),
    train: AgentConfig = AgentConfig(),
    init: str = "",
    real: str = "",
) -> None:
    """Train an agent with RLlib's PPO, or continue an existing run.

    The agent is evaluated regularly in the real environment behind its dreams. With --loop, the program records
    episodes, trains a world model and trains an agent, in rounds: see python -m agents.train --loop --help.

    Args:
        run: run folder for the agent, its checkpoints and metrics.
        env: Gymnasium id of the training environment: envs:Dream-v0 for dreams, or envs:Encoded-v0 for the real
            environment, encoded by the same VQ-VAE.
        env_kwargs: arguments of the environment; --env.world runs/world is short for --env_kwargs.world runs/world.
        model: sizes of the agent's network.
        train: settings of the training.
        init: name of a shipped agent, or run folder of one, with the same VQ-VAE, whose weights to start from.
        real: Gymnasium id of the real environment to evaluate in; by default the one that the world model was recorded
            in, if it is part of this package.
    """
    import torch

    from agents import rollouts
    from worldmodel import checkpoint

    torch.set_num_threads(1)
    folder, env = Path(run).absolute(), env_wrappers.canonical_id(env)
    if isinstance(env_kwargs.get("env"), str):
        env_kwargs = {**env_kwargs, "env": env_wrappers.canonical_id(env_kwargs["env"])}
    world, space = inspect_env(env, env_kwargs)
    data = describe_env(world, env, env_kwargs, train.evaluation_horizon)
    real_env = rollouts.make_real_env(data, real or env_kwargs.get("env", "")) if train.evaluate_every else None
    folder.mkdir(parents=True, exist_ok=True)
    with checkpoint.locked(folder):
        begin_run(folder, world, space, data, model, train, init)
        run_training(folder, env, env_kwargs, train, real_env)


def inspect_env(env: str, env_kwargs: dict[str, Any]) -> "tuple[WorldModel, gym.Space]":
    """Return the world model of an environment and its observation space.

    Raises:
        ValueError: if there is no such environment, or it has no world model.
    """
    from agents import rollouts

    if env not in rollouts.ENCODED_ENVS:
        raise ValueError(f"--env must be one of {', '.join(rollouts.ENCODED_ENVS)}, got {env!r}")
    made = rollouts.make_encoded_env(env, env_kwargs)
    made.close()
    return made.get_wrapper_attr("world"), made.observation_space


def describe_env(
    world: "WorldModel", env: str, env_kwargs: dict[str, Any], evaluation_horizon: int = 0
) -> dict[str, Any]:
    """Return the data section of an agent's config.yaml: its environment, and the real one behind that."""
    from agents import rollouts
    from envs.dream import DEFAULT_HORIZON
    from worldmodel import checkpoint, env_wrappers, shipped

    recorded = checkpoint.read_config(world.run)["data"]
    real = env_kwargs.get("env") or recorded["environment"]
    env_kwargs = {"world": shipped.DEFAULT_WORLD, **env_kwargs}
    env_kwargs["world"] = shipped.stable_name(env_kwargs["world"])
    if "store" in env_kwargs:
        env_kwargs["store"] = checkpoint.absolute(env_kwargs["store"])
    if env == rollouts.DREAM_ENV:
        env_kwargs = {"horizon": DEFAULT_HORIZON, **env_kwargs}
    return {
        "env": env,
        "env_kwargs": env_kwargs,
        "evaluation_horizon": evaluation_horizon or env_kwargs.get("horizon", 0),
        "history": env_kwargs.get("history", 1),
        "action_repeat": env_kwargs.get("action_repeat", 1),
        "action_names": list(world.action_names),
        "environment": real,
        "kwargs": {**env_wrappers.recorded_kwargs(real, recorded), **(env_kwargs.get("env_kwargs") or {})},
    }


def begin_run(
    run: Path,
    world: "WorldModel",
    space: gym.Space,
    data: dict[str, Any],
    model: NetworkConfig,
    train: AgentConfig,
    init: str,
) -> None:
    """Create an agent's run folder with its VQ-VAE and initial weights, or prepare an existing one to continue."""
    import torch

    from agents.network import Network
    from agents.policy import read_agent_config, vqvae_folder
    from worldmodel import checkpoint, tensor_io
    from worldmodel.shipped import find_agent

    codebook = world.vqvae.quantizer.codebook.detach().cpu() if space.dtype != "uint8" else None
    rewards = world.dynamics.config.reward_unit * data["action_repeat"]
    model = replace(
        model,
        codebook_size=len(codebook) if codebook is not None else 0,
        observation_shape=space.shape,
        num_actions=len(world.action_names),
        value_scale=model.value_scale or checkpoint.measured_value(run, "value_scale") or rewards / (1 - train.gamma),
    )
    torch.manual_seed(train.seed)
    network = Network(model, codebook)
    if init and not (run / "model.safetensors").exists():
        earlier = find_agent(init)
        if tensor_io.digest(vqvae_folder(earlier)) != tensor_io.digest(world.run / "vqvae"):
            raise ValueError(f"--init {init} sees the codes of another VQ-VAE than the world {world.run}")
        other = config.build(NetworkConfig, read_agent_config(earlier)["model"], earlier / "config.yaml")
        if replace(other, value_scale=0.0) != replace(model, value_scale=0.0):
            raise ValueError(f"--init must be an agent with the same network, {model}; {init} has {other}")
        tensor_io.load_weights(earlier / "model.safetensors", network)
        with torch.no_grad():  # so that it expects the same returns, in units of the new scale
            for parameter in network.value.parameters():
                parameter *= other.value_scale / model.value_scale
    data = {**data, "algo": "PPO", "init": init}
    if (run / "config.yaml").exists() and "world" not in read_agent_config(run)["data"].get("env_kwargs", {}):
        data["env_kwargs"] = {name: data["env_kwargs"][name] for name in data["env_kwargs"] if name != "world"}
    checkpoint.begin_run(
        run, "agent", model, train, data, world.run / "vqvae", held=True, policy="agents.policy:Policy"
    )
    if not (run / "model.safetensors").exists():
        tensor_io.save_weights(run / "model.safetensors", network)


def run_training(
    run: Path, env: str, env_kwargs: dict[str, Any], train: AgentConfig, real_env: "rollouts.EvaluationEnv | None"
) -> None:
    """Train from a run's last checkpoint to ``total_timesteps``, and evaluate in ``real_env`` unless it is None."""
    from agents import rllib, rollouts
    from agents.policy import Policy
    from worldmodel import checkpoint
    from worldmodel.training import MetricsLog

    with rllib.start_algorithm(run, env, env_kwargs, train) as algorithm:
        done = algorithm.resume()  # environment steps
        steps = {row["step"] for row in checkpoint.read_metrics(run)}
        if len(steps) > 1 and not done:  # a single one: stopped before the first save
            raise ValueError(f"{run} has taken {max(steps)} steps and lost its checkpoint; use another --run")
        log = MetricsLog(run, done)
        with tqdm(
            total=train.total_timesteps, initial=min(done, train.total_timesteps), unit="step", smoothing=0.05
        ) as bar:
            while done < train.total_timesteps:
                iteration, taken, metrics = algorithm.train_iteration()
                done += taken
                log.write(done, "train", **metrics)
                bar.update(min(done, train.total_timesteps) - bar.n)
                bar.set_postfix_str(f"return {metrics.get('return', float('nan')):.4g}")
                last = done >= train.total_timesteps
                if real_env and (last or iteration % train.evaluate_every == 0):
                    policy = Policy.load(run, train.evaluation_greedy)
                    policy.network.load_state_dict(algorithm.weights())
                    results = rollouts.play_episodes(
                        real_env, policy, train.evaluation_episodes, train.seed, "evaluate"
                    )
                    log.write(done, "real", **rollouts.summary(results))
                algorithm.save(done)
        log.writer.close()
