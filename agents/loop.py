"""Alternate between recording, world model and agent training: ``python -m agents.train --loop --run runs/loop``."""

import csv
import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agents.config import AgentConfig, NetworkConfig
from worldmodel.episodes.collect import collect as collect_episodes
from worldmodel.episodes.recording import MAX_EPISODE_STEPS
from worldmodel.episodes.store import EpisodeStore
from worldmodel.files import write_atomically
from worldmodel.models.config import DynamicsConfig, VQVAEConfig
from worldmodel.shipped import find_world
from worldmodel.train_config import TrainConfig


@dataclass(frozen=True)
class CollectStage:
    """Settings of the recording in each round; see ``python -m worldmodel.collect --help``.

    Attributes:
        env: Gymnasium id of the real environment.
        env_kwargs: arguments of the environment.
        episodes: number of episodes that the agent of the last round plays in each later round.
        first_episodes: number of episodes in the first round.
        first_policy: policy of the first round: sticky, random, mixed, a shipped agent by name, or the run folder of
            one.
        epsilon: fraction of steps in which the sticky policy overrules the agent.
        max_episode_steps: steps after which an episode is cut off.
        seed: seed of the environments and the policies; round n uses seed + n.
        workers: number of Ray actors that record; 0 for this process.
    """

    env: str = "envs:Doom-v0"
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    episodes: int = 200
    first_episodes: int = 200
    first_policy: str = "sticky"
    epsilon: float = 0.1
    max_episode_steps: int = MAX_EPISODE_STEPS
    seed: int = 0
    workers: int = 0


@dataclass(frozen=True)
class VQVAEStage:
    """Settings of the VQ-VAE; see ``python -m worldmodel.train vqvae --help``.

    Attributes:
        model: sizes of the VQ-VAE.
        train: settings of the training.
        batch_size: frames per batch.
        rounds: number of rounds that train a new VQ-VAE; later rounds keep the last one, and start the dynamics model
            and the agent from the weights of the round before.
    """

    model: VQVAEConfig = field(default_factory=VQVAEConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    batch_size: int = 32
    rounds: int = 1


@dataclass(frozen=True)
class DynamicsStage:
    """Settings of the dynamics model in every round; see ``python -m worldmodel.train dynamics --help``.

    Attributes:
        model: sizes of the dynamics model.
        train: settings of the training.
        batch_size: segments of episodes per batch.
        seq_length: frames per segment.
    """

    model: DynamicsConfig = field(default_factory=DynamicsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    batch_size: int = 2
    seq_length: int = 10


@dataclass(frozen=True)
class AgentStage:
    """Settings of the agent in every round; see ``python -m agents.train --help``.

    Attributes:
        env_kwargs: arguments of the dream, such as its horizon; the world is the round's own.
        model: sizes of the agent's network.
        train: settings of the training.
        evaluation_episodes: real episodes to evaluate each round's agent on; they are not trained on, and not counted.
    """

    env_kwargs: dict[str, Any] = field(default_factory=dict)
    model: NetworkConfig = field(default_factory=NetworkConfig)
    train: AgentConfig = field(default_factory=AgentConfig)
    evaluation_episodes: int = 100


def read_table(path: Path) -> list[dict[str, Any]]:
    """Return the rounds of a loop: rows with ``real_steps``, ``return``, ``low`` and ``high``, and others.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    try:
        rows = json.loads(path.read_text("utf-8"))
        for value in (row[key] for row in rows for key in ("real_steps", "return", "low", "high")):
            float(value)  # raises an error if it is no number
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); restore it, or use another --run") from error
    return rows


def loop(
    run: str,
    rounds: int = 3,
    world: str = "",
    collect: CollectStage = CollectStage(),
    vqvae: VQVAEStage = VQVAEStage(),
    dynamics: DynamicsStage = DynamicsStage(),
    agent: AgentStage = AgentStage(),
) -> None:
    """Record episodes, train a world model on all of them, train an agent in its dreams, record with that agent, ….

    Run it again to continue where it was stopped. The real return of each round's agent and the number of real steps
    recorded until then are printed, and written to table.json and table.csv.

    Args:
        run: folder for everything: store/ with all episodes, rounds/1/ with the store and the runs of round 1.
        rounds: number of rounds.
        world: name of a shipped world, or run folder of a dynamics model, that the first round trains further. All
            rounds then keep its VQ-VAE. By default, everything is trained from nothing.
        collect: settings of the recording.
        vqvae: settings of the VQ-VAE.
        dynamics: settings of the dynamics model.
        agent: settings of the agent.
    """
    if rounds < 1 or vqvae.rounds < 1:
        raise ValueError(f"rounds and vqvae.rounds must be 1 or more, got {rounds} and {vqvae.rounds}")
    folder = Path(run)
    table = folder / "table.json"
    rows = read_table(table) if table.exists() else []
    for number in range(len(rows) + 1, rounds + 1):
        rows.append(run_round(folder, number, world, collect, vqvae, dynamics, agent))
        write_atomically(table, json.dumps(rows, indent=1).encode())
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(folder / "table.csv", text.getvalue().encode())
    print(f"{'round':>5} {'real steps':>10} {'return':>8}  {'95% interval':18} random")
    for row in rows:
        interval = f"[{row['low']:.4g}, {row['high']:.4g}]"
        print(f"{row['round']:5} {row['real_steps']:10} {row['return']:8.4g}  {interval:18} {row['random']:.4g}")


def run_round(
    folder: Path,
    number: int,
    world: str,
    collect: CollectStage,
    vqvae: VQVAEStage,
    dynamics: DynamicsStage,
    agent: AgentStage,
) -> dict[str, float]:
    """Run the steps of a round that are not done yet, and return its row of the table."""
    from agents import rollouts
    from agents.policy import Policy, read_agent_config
    from agents.training import train as train_agent
    from worldmodel.train.dynamics import dynamics as train_dynamics
    from worldmodel.train.vqvae import vqvae as train_vqvae

    this_round, last_round = folder / "rounds" / str(number), folder / "rounds" / str(number - 1)
    collect_episodes(
        str(this_round / "store"),
        collect.env,
        collect.env_kwargs,
        episodes=collect.first_episodes if number == 1 else collect.episodes,
        workers=collect.workers,
        policy=collect.first_policy if number == 1 else str(last_round / "agent"),
        epsilon=0.0 if number == 1 else collect.epsilon,
        seed=collect.seed + number,
        max_episode_steps=collect.max_episode_steps,
    )
    earlier = sum(len(EpisodeStore(folder / "rounds" / str(past) / "store")) for past in range(1, number))
    store = append_episodes(folder / "store", this_round / "store", earlier)
    same_codes = number > 1 and (bool(world) or number > vqvae.rounds)  # the last round's models are trained further
    if world:
        vqvae_run = find_world(world) / "vqvae"
    else:
        vqvae_run = folder / "rounds" / str(min(number, vqvae.rounds)) / "vqvae"
        if not same_codes:
            sizes, settings = vqvae.model, vqvae.train
            train_vqvae(str(vqvae_run), str(store.path), model=sizes, train=settings, batch_size=vqvae.batch_size)
    earlier_world = str(last_round / "prior") if same_codes else str(find_world(world)) if world else ""
    train_dynamics(
        str(store.path),
        str(vqvae_run),
        str(this_round / "prior"),
        dynamics.model,
        dynamics.train,
        batch_size=dynamics.batch_size,
        seq_length=dynamics.seq_length,
        init=earlier_world,
    )
    dream = {**agent.env_kwargs, "world": str(this_round / "prior")}
    train_agent(
        str(this_round / "agent"),
        env_kwargs=dream,
        model=agent.model,
        train=replace(agent.train, seed=agent.train.seed + number),
        init=str(last_round / "agent") if same_codes else "",
        real=collect.env,
    )
    real_env = rollouts.make_real_env(read_agent_config(this_round / "agent")["data"], collect.env)
    policy = Policy.load(this_round / "agent", agent.train.evaluation_greedy)
    players = {"agent": policy, "random": rollouts.RandomPolicy(policy.action_names, policy.action_repeat)}
    agent_scores, random_scores = (
        rollouts.summary(rollouts.play_episodes(real_env, player, agent.evaluation_episodes, collect.seed, name))
        for name, player in players.items()
    )
    steps = sum(entry.steps for entry in store.entries)
    counts = {"round": number, "real_steps": steps, "real_episodes": len(store)}
    return {**counts, **agent_scores, "random": random_scores["return"]}


def append_episodes(target: Path, source: Path, first: int) -> EpisodeStore:
    """Copy episodes 0, 1, … of a store into another as ``first``, ``first + 1``, …, unless they are there already."""
    new = EpisodeStore(source)
    store = EpisodeStore.create(target, new.schema.with_provenance(rounds="the stores of rounds/"))
    for entry in new.entries:
        if first + entry.number not in store:
            store.add_to_index(store.write(first + entry.number, new.read(entry.number)))
    return store
