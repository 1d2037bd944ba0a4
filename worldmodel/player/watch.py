"""An agent that plays, in whatever session, while the player holds no key."""

import numpy as np

from worldmodel import checkpoint
from worldmodel.episodes.collect import Policy, check_agent
from worldmodel.player.film import Film
from worldmodel.player.sessions import Session, Start
from worldmodel.player.view import View
from worldmodel.shipped import DEFAULT_WORLD, find_agent

AGENT = "agent"  # the action that leaves the choice to the agent


class WatchedSession:
    """A session in which an agent chooses the action of each step called ``agent``.

    The agent sees every frame, even those on which the player overrides it. Beside the real environment, it sees the
    real frames.

    Raises:
        ValueError: if the agent has other actions than the session, or, at a start, acts on frames of another size.
    """

    def __init__(self, session: Session, policy: Policy, agent: str) -> None:
        check_agent(policy, agent, session.action_names)
        self._session, self._policy, self.agent = session, policy, agent
        self.action_names, self.rate, self.clips = session.action_names, session.rate, session.clips
        self.takes_pictures = session.takes_pictures

    @property
    def film(self) -> Film:
        """What was seen since the start."""
        return self._session.film

    @property
    def note(self) -> str:
        """One line about what is recorded, or empty."""
        return self._session.note

    def start(self, start: Start) -> View:
        """Start anew; the seed is also that of the agent's choices."""
        self._policy.start(start.seed)
        self._view = self._session.start(start)
        check_agent(self._policy, self.agent, self.action_names, self._seen.shape)
        return self._view

    def step(self, action: str) -> View:
        """Take an action by name, or the agent's; raises as :meth:`Session.step` does."""
        chosen = self.action_names[self._policy.act(self._seen)]
        view = self._session.step(chosen if action == AGENT else action)
        self._view = view._replace(chosen=chosen) if action == AGENT else view
        return self._view

    @property
    def _seen(self) -> np.ndarray:
        """The frame (H, W, 3) uint8 that the agent sees: beside a dream, the real one."""
        return self._view.frame if self._view.truth is None else self._view.truth

    def close(self) -> None:
        """Close the session."""
        self._session.close()


def world_of(agent: str) -> str:
    """Return the name or folder of the world that an agent was trained in.

    Raises:
        FileNotFoundError: if there is no such agent.
        ValueError: if it is no agent.
    """
    values = checkpoint.read_config(find_agent(agent))
    if values["kind"] != "agent":
        raise ValueError(f"--agent must be the run of an agent, {agent} is a run of kind {values['kind']}")
    return values.get("world") or values["data"].get("env_kwargs", {}).get("world") or DEFAULT_WORLD
