"""Train an agent in a dream: ``python -m agents.train --env.world runs/world --run runs/agent``."""

import os

from worldmodel.checks import check

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads: runners share the machine, one thread each
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import torch
from tqdm import tqdm

from agents import evaluate, rllib
from agents.network import Network, NetworkConfig
from agents.policy import Policy, read
from envs.dream import HORIZON
from worldmodel import checkpoint, config
from worldmodel.training import Log
from worldmodel.world_model import WorldModel


@dataclass(frozen=True)
class AgentConfig:
    """How long and how fast an agent learns.

    Attributes:
        steps: of the environment, in all.
        learning_rate: of Adam.
        gamma: by how much a reward counts less with every step that it is away.
        gae_lambda: of the generalised advantages (Schulman et al. 2016).
        entropy: weight of the policy's entropy: a larger one explores more.
        clip: how far PPO lets the policy's ratio leave 1.
        gradient_clip: largest gradient norm.
        batch: steps of the environment in an iteration.
        minibatch: steps in a gradient step.
        epochs: passes over a batch.
        num_envs: worlds that one runner plays side by side.
        runners: play in this process (0) or in this many Ray actors.
        gpus: that the learner has, 0 or 1; --env.device cuda moves the dreams there.
        evaluate_every: iterations between two evaluations in the real world; 0 for none.
        evaluation_episodes: in each.
        evaluation_greedy: evaluate with the likeliest action, and not one drawn by its probability.
        seed: of the first weights, the worlds and all sampling.
        allow_changes: let an existing run go on in another world or with another seed than it was begun with.
    """

    steps: int = 1_000_000
    learning_rate: float = 3e-4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    entropy: float = 0.01
    clip: float = 0.2
    gradient_clip: float = 0.5
    batch: int = 2048
    minibatch: int = 256
    epochs: int = 4
    num_envs: int = 16
    runners: int = 0
    gpus: int = 0
    evaluate_every: int = 20
    evaluation_episodes: int = 16
    evaluation_greedy: bool = False
    seed: int = 0
    allow_changes: bool = False

    def __post_init__(self) -> None:
        counts = ("steps", "batch", "minibatch", "epochs", "num_envs", "evaluation_episodes")
        weights = ("entropy", "runners", "gpus", "evaluate_every", "seed")
        check("train", self, counts, weights, ("learning_rate", "clip", "gradient_clip"), ("gae_lambda",))
        if not 0 <= self.gamma < 1:
            raise ValueError(f"train.gamma must be in [0, 1), got {self.gamma}")
        rows = self.num_envs * max(1, self.runners)
        if self.batch % rows or not self.minibatch <= self.batch:
            raise ValueError(
                f"train.batch must be a multiple of the {rows} worlds that are played side by side, "
                f"and no less than train.minibatch {self.minibatch}, got {self.batch}"
            )


def train(
    run: str,
    env: str = "envs:Dream-v0",
    env_kwargs: dict[str, Any] = {},
    algo: Literal["PPO"] = "PPO",
    model: NetworkConfig = NetworkConfig(),
    train: AgentConfig = AgentConfig(),
    init: str = "",
    real: str = "",
) -> None:
    """Train an agent with RLlib; an existing run is continued.

    Every so often the agent is evaluated in the real world that its dreams are of. With --loop, the program records,
    trains a world model and trains an agent, in rounds: see python -m agents.train --loop --help.

    Args:
        run: folder to write checkpoints, metrics and the agent itself into.
        env: envs:Dream-v0, or envs:Encoded-v0 for the real world seen through the same VQ-VAE.
        env_kwargs: what to make it with; --env.world runs/world is short for --env_kwargs.world runs/world.
        algo: RLlib's algorithm.
        model: sizes of the net.
        train: length and speed.
        init: run folder of an agent that sees the same codes, to begin with its weights.
        real: Gymnasium id of the real world to evaluate in; by default the one that the world model was recorded in, if
            that is of this package.
    """
    torch.set_num_threads(1)
    folder = Path(run).absolute()
    world, space = look(env, env_kwargs)
    data = describe(world, env, env_kwargs)
    named = real or env_kwargs.get("env", "")
    place = evaluate.real_world(data, named) if train.evaluate_every else None
    folder.mkdir(parents=True, exist_ok=True)
    with checkpoint.locked(folder):
        begin(folder, world, space, data, algo, model, train, init)
        learn(folder, env, env_kwargs, train, place)


def look(env: str, env_kwargs: dict[str, Any]) -> tuple[WorldModel, gym.Space]:
    """The world model behind an environment, and what that shows.

    Raises:
        ValueError: if there is no such environment, or no world model behind it.
    """
    if env not in evaluate.CODED:
        raise ValueError(f"--env must be one of {', '.join(evaluate.CODED)}, got {env!r}")
    try:
        one = gym.make(env, **env_kwargs)
    except TypeError as error:
        raise ValueError(f"cannot make --env {env} with {env_kwargs}: {error}") from error
    one.close()
    return one.get_wrapper_attr("world"), one.observation_space


def describe(world: WorldModel, env: str, env_kwargs: dict[str, Any]) -> dict[str, Any]:
    """What an agent's config.yaml says of where it learns, and of the real world behind that."""
    recorded = checkpoint.read_config(world.run)["data"]
    real = env_kwargs.get("env") or recorded["environment"]
    if env == evaluate.DREAM:
        env_kwargs = {"horizon": HORIZON, **env_kwargs}
    return {
        "env": env,
        "env_kwargs": env_kwargs,
        "history": env_kwargs.get("history", 1),
        "action_names": list(world.action_names),
        "environment": real,
        "kwargs": {
            **(recorded["kwargs"] if real == recorded["environment"] else {}),
            **(env_kwargs.get("env_kwargs") or {}),
        },
    }


def begin(
    run: Path,
    world: WorldModel,
    space: gym.Space,
    data: dict[str, Any],
    algo: str,
    model: NetworkConfig,
    train: AgentConfig,
    init: str,
) -> None:
    """Make an agent's run, with the VQ-VAE that it sees through and its first weights, or get one ready to go on."""
    codebook = world.vqvae.quantizer.codebook.detach().cpu() if space.dtype != "uint8" else None
    rewards = world.dynamics.config.reward_scale
    model = replace(
        model,
        codes=len(codebook) if codebook is not None else 0,
        shape=space.shape,
        actions=len(world.action_names),
        value_scale=model.value_scale or checkpoint.remembered(run, "value_scale") or rewards / (1 - train.gamma),
    )
    torch.manual_seed(train.seed)
    network = Network(model, codebook)
    if init and not (run / "model.safetensors").exists():
        if checkpoint.digest(Path(init) / "vqvae") != checkpoint.digest(world.run / "vqvae"):
            raise ValueError(f"--init {init} sees the codes of another VQ-VAE than the world {world.run}")
        theirs = config.build(NetworkConfig, read(Path(init))["model"], Path(init) / "config.yaml")
        if replace(theirs, value_scale=0.0) != replace(model, value_scale=0.0):
            raise ValueError(f"--init must be an agent with this one's net, {model}; {init} has {theirs}")
        checkpoint.load_weights(Path(init) / "model.safetensors", network)
    data = {**data, "algo": algo, "init": init}
    checkpoint.begin(run, "agent", model, train, data, held=True, policy="agents.policy:Policy")
    checkpoint.adopt(run, world.run / "vqvae")
    if not (run / "model.safetensors").exists():
        checkpoint.save_weights(run / "model.safetensors", network)


def learn(run: Path, env: str, env_kwargs: dict[str, Any], train: AgentConfig, real: "evaluate.Place | None") -> None:
    """Go on from the last checkpoint of a run until its agent has taken all its steps."""
    with rllib.started(run, env, env_kwargs, train) as algorithm:
        done = algorithm.resume()
        rows = checkpoint.read_metrics(run)
        if rows and not done:
            raise ValueError(f"{run} has taken {rows[-1]['step']} steps and lost its checkpoint; use another --run")
        log = Log(run, done)
        with tqdm(total=train.steps, initial=min(done, train.steps), unit="step", smoothing=0.05) as bar:
            while done < train.steps:
                iteration, taken, metrics = algorithm.iterate()
                done += taken
                log.write(done, "train", **metrics)
                bar.update(min(done, train.steps) - bar.n)
                bar.set_postfix_str(f"return {metrics.get('return', float('nan')):.4g}")
                last = done >= train.steps
                if real and (last or iteration % train.evaluate_every == 0):
                    policy = Policy.load(run, train.evaluation_greedy)
                    policy.network.load_state_dict(algorithm.weights())
                    results = evaluate.play(real, policy, train.evaluation_episodes, train.seed, "evaluate")
                    log.write(done, "real", **evaluate.summary(results))
                algorithm.save(done)
        log.writer.close()


if __name__ == "__main__":
    if "--loop" in sys.argv:
        from agents.loop import loop

        sys.argv.remove("--loop")
        config.run(loop)
    else:
        config.run(train)
