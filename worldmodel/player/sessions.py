"""What can be played: a session starts and steps, and returns a view of it each time. No web in here."""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from worldmodel.checks import check_seed, check_temperature
from worldmodel.episodes.segments import read_clip
from worldmodel.episodes.store import EpisodeStore
from worldmodel.models.config import NUM_CONTEXT_FRAMES
from worldmodel.models.dream_state import DreamState
from worldmodel.player.film import Film
from worldmodel.player.view import View
from worldmodel.suggest import unknown_name
from worldmodel.world_model import WorldModel

HUMAN = {"policy": "human"}  # provenance of what a person played


@dataclass(frozen=True)
class Start:
    """How a player wants to start.

    Attributes:
        seed: random seed; the same seed and actions give the same frames.
        temperature: sampling temperature of dreams.
        clip: index of the recorded clip to start from; by default, the seed chooses one.
        picture: frame (H, W, 3) uint8 to start from instead of a clip.

    Raises:
        ValueError: if the seed or the temperature is out of range, or the clip is no whole number.
    """

    seed: int = 0
    temperature: float = 1.0
    clip: int | None = None
    picture: np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_temperature(self.temperature)
        if self.clip is not None and type(self.clip) is not int:
            raise ValueError(f"clip must be a whole number, or left out for any clip, got {self.clip!r:.80}")


class Session(Protocol):
    """Something to play.

    Attributes:
        action_names: names of actions 0, 1, ….
        rate: steps per second of the environment itself.
        clips: number of recorded clips to start from; 0 if there are none to choose from.
        takes_pictures: whether it can start from a picture.
        agent: name of the agent that can choose actions, or empty.
    """

    action_names: tuple[str, ...]
    rate: float
    clips: int
    takes_pictures: bool
    agent: str

    @property
    def film(self) -> Film:
        """What was seen since the start."""
        ...

    @property
    def note(self) -> str:
        """One line about what is recorded, or empty."""
        ...

    def start(self, start: Start) -> View:
        """Start anew."""
        ...

    def step(self, action: str) -> View:
        """Take an action by name.

        Raises:
            ValueError: if there is no such action, or the episode is over.
        """
        ...

    def close(self) -> None:
        """Free what the session holds; closing twice is fine."""
        ...


def action_index(name: str, action_names: tuple[str, ...]) -> int:
    """Return the number of an action.

    Raises:
        ValueError: naming the actions, if there is no such action.
    """
    if name not in action_names:
        raise ValueError(unknown_name("action", f"{name:.80}", action_names))
    return action_names.index(name)


def check_going(view: View | None) -> View:
    """Return the latest view of a session that can step.

    Raises:
        ValueError: if it was not started, or its episode is over.
    """
    if view is None or view.end:
        state = "not started" if view is None else f"over ({view.end})"
        raise ValueError(f"the episode is {state}: start anew before the next step")
    return view


class Dream:
    """One dream with its own generator: the same frames as :meth:`WorldModel.imagine` for the same seed and actions.

    Args:
        frames: (n, H, W, 3) uint8, real frames to start from.
        actions: (n-1,) actions between them.
    """

    def __init__(self, world: WorldModel, frames: np.ndarray, actions: np.ndarray, start: Start) -> None:
        self._world, self._temperature = world, start.temperature
        self._generator = torch.Generator().manual_seed(start.seed)
        self._state: DreamState = world.start(frames[None], actions[None])
        self.frame = world.decode(self._state.latest_codes.cpu())[0].numpy()  # (H, W, 3) uint8

    def step(self, action: int) -> tuple[float, float]:
        """Take an action; return the expected reward and the probability of termination."""
        uniforms = self._world.uniforms([self._generator])
        step = self._world.step(self._state, [action], uniforms, self._temperature)
        self._state, self.frame = step.state, self._world.decode(step.codes.cpu())[0].numpy()
        return float(step.rewards), float(step.termination_probs)


class DreamSession:
    """A dream that ends at random, with the model's probability of it; the seed decides everything.

    Args:
        store: episodes to start from; by default the world's own clips.
        provenance: who plays, in a saved episode.

    Raises:
        ValueError: if the store has other actions than the world, or no episode of six frames or more.
    """

    takes_pictures = True
    agent = note = ""

    def __init__(
        self, world: WorldModel, store: EpisodeStore | None = None, provenance: dict[str, Any] = HUMAN
    ) -> None:
        self.world, self._store = world, store or EpisodeStore(world.clips_folder)
        self.action_names = world.action_names
        world.check_actions(self._store.schema.action_names)
        entries = [entry.number for entry in self._store.entries if entry.observations >= NUM_CONTEXT_FRAMES]
        if not entries:
            raise ValueError(f"{self._store.path} has no episode of {NUM_CONTEXT_FRAMES} frames to start from")
        self._numbers, self.clips = entries, len(entries)
        self.rate = world.frame_rate
        source = f"dream of {world.run.name}"
        self._schema = replace(self._store.schema, environment=source, kwargs={}, provenance=provenance)
        self._view: View | None = None

    def start(self, start: Start) -> View:
        """Start from a clip or a picture.

        Raises:
            ValueError: if there is no such clip, or the picture has another size than the world's frames.
        """
        frames, actions = self._first_frames(start)
        self._dream, self._ends = Dream(self.world, frames, actions, start), np.random.default_rng([start.seed, 1])
        self._view = View(self._dream.frame)
        self.film = Film(self._view, self.rate, self._schema)
        return self._view

    def step(self, action: str) -> View:
        """Take an action by name; raises as :meth:`Session.step` does."""
        index, before = action_index(action, self.action_names), check_going(self._view)
        reward, probability = self._dream.step(index)
        end = "terminated" if self._ends.random() < probability else ""
        self._view = View(self._dream.frame, before.step + 1, before.reward + reward, probability, end)
        self.film.add(self._view, index, reward)
        return self._view

    def close(self) -> None:
        """Do nothing: a dream holds nothing but memory."""

    def _first_frames(self, start: Start) -> tuple[np.ndarray, np.ndarray]:
        """Return real frames (n, H, W, 3) uint8 and the actions (n-1,) between them."""
        if start.picture is not None:
            expected = self._store.schema.observation_shape
            if start.picture.shape != expected:
                raise ValueError(f"the picture must be {expected} like the world's frames, got {start.picture.shape}")
            return start.picture[None], np.zeros(0, np.int64)
        clip = int(np.random.default_rng([start.seed, 0]).integers(self.clips)) if start.clip is None else start.clip
        if not 0 <= clip < self.clips:
            raise ValueError(f"clip must be from 0 to {self.clips - 1}, got {clip}")
        frames, actions = read_clip(self._store, self._numbers[clip], 0, NUM_CONTEXT_FRAMES)
        return frames.numpy(), actions.numpy()
