"""Playing the real environment, and recording it."""

from typing import Any

import numpy as np

from worldmodel import env_wrappers
from worldmodel.checks import check_seed
from worldmodel.episodes.recording import MAX_EPISODE_STEPS, Recording, describe, episode_seeds
from worldmodel.episodes.store import EpisodeStore
from worldmodel.player.film import Film
from worldmodel.player.sessions import HUMAN, Start, action_index, check_going
from worldmodel.player.view import View


class RecordSession:
    """A real environment, whose episodes go into a store in the format of :mod:`worldmodel.episodes.collect`.

    An episode is added when it ends; one that a new start or a close cuts off is added as truncated. Episode n starts
    from the seed that the scripted recorder would give it.

    Args:
        env: Gymnasium id, see :func:`worldmodel.env_wrappers.make_env`.
        store: folder of the store; empty to record nothing.
        seed: random seed of all episodes.
        provenance: who plays.

    Raises:
        ValueError: if the environment cannot be made, or the store holds episodes of another kind.
    """

    clips = 0
    takes_pictures = False
    agent = ""

    def __init__(
        self,
        env: str,
        env_kwargs: dict[str, Any],
        store: str = "",
        seed: int = 0,
        provenance: dict[str, Any] = HUMAN,
    ) -> None:
        check_seed(seed)
        env, self._seed = env_wrappers.canonical_id(env), seed
        self._env = env_wrappers.make_env(env, **env_kwargs)
        self.action_names = tuple(self._env.get_wrapper_attr("action_names"))
        self.rate = env_wrappers.frame_rate(self._env)
        provenance = {**provenance, "seed": seed, "max_episode_steps": MAX_EPISODE_STEPS}
        with env_wrappers.closed_on_error(self._env):
            self._schema = describe(self._env, env, env_kwargs, provenance)
            self._store = EpisodeStore.create(store, self._schema) if store else None
        self._recording: Recording | None = None
        self._view: View | None = None
        self._unrecorded = 0  # episodes started without a store

    @property
    def note(self) -> str:
        """What the store holds."""
        if self._store is None:
            return "not recorded"
        return f"recorded: {len(self._store)} episodes, {self._store.num_frames} frames"

    def start(self, start: Start) -> View:
        """Start the next episode; what only a dream has, a clip and a temperature, has no effect."""
        self._keep()
        self._view = None
        env_seed, _ = episode_seeds(self._seed, self._next_number())
        self._recording = Recording(self._env, env_seed)
        self._view = View(np.array(self._recording.observation))
        self.film = Film(self._view, self.rate, self._schema)
        return self._view

    def step(self, action: str) -> View:
        """Take an action by name; raises as :meth:`Session.step` does."""
        index, before = action_index(action, self.action_names), check_going(self._view)
        assert self._recording is not None
        reward = self._recording.step(index, MAX_EPISODE_STEPS)
        frame, end = np.array(self._recording.observation), end_of(self._recording)
        self._view = View(frame, before.step + 1, before.reward + reward, end=end)
        self.film.add(self._view, index, reward, not self._recording.has_latest_observation)
        if end:
            self._keep()
        return self._view

    def close(self) -> None:
        """Keep what was played and close the environment."""
        self._keep()
        self._view = None
        self._env.close()

    def _next_number(self) -> int:
        if self._store is not None:
            return max((entry.number for entry in self._store.entries), default=-1) + 1
        self._unrecorded += 1
        return self._unrecorded - 1

    def _keep(self) -> None:
        """Add the episode to the store, if it has a step."""
        recording, self._recording = self._recording, None
        if self._store is not None and recording is not None and len(recording):
            self._store.append(recording.episode())


def end_of(recording: Recording) -> str:
    """Return how an episode ended: terminated, truncated, or empty if it goes on."""
    return "terminated" if recording.terminated else "truncated" if recording.truncated else ""
