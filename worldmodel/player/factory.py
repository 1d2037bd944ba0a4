"""Which sessions a server offers, as the command line says."""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from worldmodel import checkpoint
from worldmodel.episodes.collect import load_policy
from worldmodel.episodes.store import EpisodeStore
from worldmodel.models.config import Precision
from worldmodel.player.beside import BesideSession
from worldmodel.player.record import RecordSession
from worldmodel.player.sessions import HUMAN, DreamSession, Session
from worldmodel.player.watch import WatchedSession
from worldmodel.shipped import DEFAULT_WORLD, find_world, shipped_worlds
from worldmodel.suggest import unknown_name
from worldmodel.world_model import WorldModel

MAX_LOADED_WORLDS = 4


@dataclass(frozen=True)
class SessionFactory:
    """Opens sessions: dreams, dreams beside the truth, or the real environment.

    A page chooses among :attr:`worlds` by name; paths come from the command line alone.

    Args:
        world: name of a shipped world or folder of a run.
        store: folder of episodes to dream from; with an environment but not beside, the store to record into.
        beside: play the real environment beside the dream.
        env: Gymnasium id of the environment to play; beside, by default the one that the world was trained on.
        env_kwargs: arguments of the environment.
        seed: random seed of recorded episodes.
        device: device of the worlds.
        precision: number format of the worlds.
        agent: name of a shipped agent, or run folder of one, that plays while the player holds no key.

    Raises:
        ValueError: if the settings contradict each other.
        FileNotFoundError: if there is no such world or store.
    """

    world: str = DEFAULT_WORLD
    store: str = ""
    beside: bool = False
    env: str = ""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "cpu"
    precision: Precision = "float32"
    agent: str = ""

    def __post_init__(self) -> None:
        if self.beside and self.store:
            raise ValueError("--beside starts from the real environment, got --store as well; leave one of them out")
        if self.env_kwargs and not (self.env or self.beside):
            raise ValueError("--env.NAME needs an environment: give its id as --env, or --beside")
        if self.mode != "record":
            find_world(self.world)
        if self.mode == "dream" and self.store:
            EpisodeStore(self.store)
        object.__setattr__(self, "_load", lru_cache(MAX_LOADED_WORLDS)(self._load_world))

    @property
    def mode(self) -> str:
        """What is played: dream, beside or record."""
        return "beside" if self.beside else "record" if self.env else "dream"

    @property
    def max_sessions(self) -> int:
        """How many sessions there can be at once: a store is recorded by one player."""
        return 1 if self.mode == "record" and self.store else 1000

    @cached_property
    def worlds(self) -> dict[str, str]:
        """One line about each world that a page can choose, by name; the first is the one of the command line."""
        if self.mode == "record":
            return {self.env: ""}
        first = Path(self.world).name if self.world not in shipped_worlds() else self.world
        paths = {first: find_world(self.world), **{name: find_world(name) for name in shipped_worlds()}}
        paths[first] = find_world(self.world)  # a run may have the name of a shipped world
        return {name: checkpoint.read_config(path).get("about", "") for name, path in paths.items()}

    def open(self, world: str = "") -> Session:
        """Open a session in a world of :attr:`worlds`, by default the first.

        Raises:
            ValueError: if there is no such world, or its environment cannot be made.
        """
        first = next(iter(self.worlds))
        world = world or first
        if world not in self.worlds:
            raise ValueError(unknown_name("world", f"{world:.80}", self.worlds))
        # each session has an agent of its own, which has seen its frames
        policy, provenance = load_policy(self.agent, epsilon=0.0) if self.agent else (None, {})
        players = {"policy": "human+agent", "weights": provenance["weights"]} if policy else HUMAN
        session = self._open(world, world == first, players)
        if policy is None or (world != first and tuple(policy.action_names) != tuple(session.action_names)):
            return session  # the page also offers worlds that the agent cannot play
        try:
            return WatchedSession(session, policy, Path(self.agent).name)
        except ValueError:
            session.close()
            raise

    def _open(self, world: str, is_first: bool, players: dict[str, Any]) -> Session:
        if self.mode == "record":
            return RecordSession(self.env, self.env_kwargs, self.store, self.seed, players)
        model = self._load(self.world if is_first else world)  # pyright: ignore[reportAttributeAccessIssue]
        if self.mode == "beside":
            return BesideSession(model, self.env, self.env_kwargs, players)
        return DreamSession(model, EpisodeStore(self.store) if self.store and is_first else None, players)

    def _load_world(self, world: str) -> WorldModel:
        """Load a world, and take the first step, which is slow because it sets everything up."""
        model = WorldModel.load(world, self.device, precision=self.precision)
        nothing = torch.zeros(1, *model.dynamics.config.grid)
        state = model.start_from_codes(nothing[None].long(), torch.zeros(1, 0, dtype=torch.int64))
        model.decode(model.step(state, [0], nothing).codes.cpu())
        return model
