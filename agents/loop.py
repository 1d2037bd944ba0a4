"""Record, dream, learn, record with what was learnt: ``python -m agents.train --loop --config … --run runs/loop``."""

import csv
import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agents import evaluate
from agents.network import NetworkConfig
from agents.policy import Policy, read
from agents.train import AgentConfig
from agents.train import train as train_agent
from worldmodel.collect import collect as record
from worldmodel.episodes.store import EpisodeStore
from worldmodel.files import write_atomically
from worldmodel.models.dynamics import DynamicsConfig
from worldmodel.models.vqvae import VQVAEConfig
from worldmodel.train.programs import prior as train_prior
from worldmodel.train.programs import vqvae as train_vqvae
from worldmodel.training import TrainConfig


@dataclass(frozen=True)
class CollectStage:
    """What a round records.

    Attributes:
        env: Gymnasium id of the real world.
        env_kwargs: what to make it with.
        episodes: that the agent plays in a round.
        first: that the sticky policy plays in the first round.
        explore: share of the steps in which the agent is overruled by the sticky policy.
        longest: steps after which an episode is cut off.
        seed: of the worlds and the policies; each round has its own.
        workers: record in the program's own process (0) or in this many Ray actors.
    """

    env: str = "envs:Doom-v0"
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    episodes: int = 200
    first: int = 200
    explore: float = 0.1
    longest: int = 4000
    seed: int = 0
    workers: int = 0


@dataclass(frozen=True)
class VQVAEStage:
    """How the VQ-VAE learns; see ``python -m worldmodel.train vqvae --help``.

    Attributes:
        model: sizes.
        train: length and speed.
        batch: frames in a batch.
        rounds: in how many rounds one is trained anew; later ones keep the codes, and go on with prior and agent.
    """

    model: VQVAEConfig = field(default_factory=VQVAEConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    batch: int = 32
    rounds: int = 1


@dataclass(frozen=True)
class PriorStage:
    """How the prior learns, in every round; see ``python -m worldmodel.train prior --help``.

    Attributes:
        model: sizes.
        train: length and speed.
        batch: stretches of episodes in a batch.
        length: frames of a stretch.
    """

    model: DynamicsConfig = field(default_factory=DynamicsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    batch: int = 2
    length: int = 10


@dataclass(frozen=True)
class AgentStage:
    """How the agent learns in the dream, in every round; see ``python -m agents.train --help``.

    Attributes:
        env_kwargs: of the dream, such as its horizon; the world is that of the round.
        model: sizes.
        train: length and speed.
        evaluated: real episodes that a round's agent is measured by; they are not learnt from, and not counted.
    """

    env_kwargs: dict[str, Any] = field(default_factory=dict)
    model: NetworkConfig = field(default_factory=NetworkConfig)
    train: AgentConfig = field(default_factory=AgentConfig)
    evaluated: int = 100


def loop(
    run: str,
    rounds: int = 3,
    collect: CollectStage = CollectStage(),
    vqvae: VQVAEStage = VQVAEStage(),
    prior: PriorStage = PriorStage(),
    agent: AgentStage = AgentStage(),
) -> None:
    """Record, train a world model on all that was recorded, train an agent in its dreams, record with that agent, ….

    Run it again to go on at the step where it was stopped. The real return that each round reached, beside the real
    steps that it took until then, is printed, and kept as table.json and table.csv.

    Args:
        run: folder for all of it: store/ with all episodes, rounds/1/ with the store and the runs of a round.
        rounds: how often.
        collect: what a round records.
        vqvae: how the VQ-VAE learns.
        prior: how the prior learns.
        agent: how the agent learns.
    """
    if rounds < 1 or vqvae.rounds < 1:
        raise ValueError(f"rounds and vqvae.rounds must be 1 or more, got {rounds} and {vqvae.rounds}")
    folder = Path(run)
    table = folder / "table.json"
    rows = json.loads(table.read_text("utf-8")) if table.exists() else []
    for number in range(len(rows) + 1, rounds + 1):
        rows.append(one_round(folder, number, collect, vqvae, prior, agent))
        write_atomically(table, json.dumps(rows, indent=1).encode())
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(folder / "table.csv", text.getvalue().encode())
    print(f"{'round':>5} {'real steps':>10} {'return':>8}  95 % of means      at random")
    for row in rows:
        between = f"[{row['low']:.4g}, {row['high']:.4g}]"
        print(f"{row['round']:5} {row['real_steps']:10} {row['return']:8.4g}  {between:18} {row['random']:.4g}")


def one_round(
    folder: Path, number: int, collect: CollectStage, vqvae: VQVAEStage, prior: PriorStage, agent: AgentStage
) -> dict[str, float]:
    """Do what of a round is not done yet, and say what its agent is worth."""
    here, before = folder / "rounds" / str(number), folder / "rounds" / str(number - 1)
    record(
        str(here / "store"),
        collect.env,
        collect.env_kwargs,
        episodes=collect.first if number == 1 else collect.episodes,
        workers=collect.workers,
        policy="sticky" if number == 1 else str(before / "agent"),
        explore=0.0 if number == 1 else collect.explore,
        seed=collect.seed + number,
        longest=collect.longest,
    )
    earlier = sum(len(EpisodeStore(folder / "rounds" / str(past) / "store")) for past in range(1, number))
    store = merge(folder / "store", here / "store", earlier)
    seen = folder / "rounds" / str(min(number, vqvae.rounds)) / "vqvae"
    if number <= vqvae.rounds:
        train_vqvae(str(seen), str(store.path), model=vqvae.model, train=vqvae.train, batch=vqvae.batch)
    same = number > vqvae.rounds  # the codes mean what they meant a round before
    train_prior(
        str(store.path),
        str(seen),
        str(here / "prior"),
        prior.model,
        prior.train,
        batch=prior.batch,
        length=prior.length,
        init=str(before / "prior") if same else "",
    )
    dream = {**agent.env_kwargs, "world": str(here / "prior")}
    train_agent(
        str(here / "agent"),
        env_kwargs=dream,
        model=agent.model,
        train=replace(agent.train, seed=agent.train.seed + number),
        init=str(before / "agent") if same else "",
        real=collect.env,
    )
    place = evaluate.real_world(read(here / "agent")["data"], collect.env)
    policy = Policy.load(here / "agent", agent.train.evaluation_greedy)
    players = {"agent": policy, "random": evaluate.RandomPolicy(policy.action_names)}
    agents, others = (
        evaluate.summary(evaluate.play(place, player, agent.evaluated, collect.seed, name))
        for name, player in players.items()
    )
    steps = sum(entry.steps for entry in store.entries)
    return {"round": number, "real_steps": steps, "real_episodes": len(store), **agents, "random": others["return"]}


def merge(target: Path, source: Path, first: int) -> EpisodeStore:
    """Copy episodes 0, 1, … of one store into another as ``first``, ``first + 1``, …, those that it lacks."""
    new = EpisodeStore(source)
    there = EpisodeStore.create(target, replace(new.schema, provenance={"rounds": "the stores of rounds/"}))
    for entry in new.entries:
        if first + entry.number not in there:
            there.record(there.write(first + entry.number, new.read(entry.number)))
    return there
