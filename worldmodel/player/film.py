"""The last minutes of a session, as a GIF, an MP4, or an episode of a store."""

import io
import tempfile
import zipfile
from collections import deque
from pathlib import Path

import numpy as np

from worldmodel import media
from worldmodel.episodes.episode import Episode
from worldmodel.episodes.store import EpisodeStore, Schema
from worldmodel.player.view import View
from worldmodel.suggest import unknown_name

MAX_FILM_STEPS = 1050  # two minutes of Doom, 22 MB of memory
CONTENT_TYPES = {"gif": "image/gif", "mp4": "video/mp4", "episode": "application/zip"}


class Film:
    """The last steps since a start; older ones are dropped.

    Args:
        view: what the player saw at the start.
        rate: steps per second at which the film plays.
        schema: schema of a saved episode.
    """

    def __init__(self, view: View, rate: float, schema: Schema) -> None:
        self._views: deque[View] = deque([view], MAX_FILM_STEPS + 1)
        self._steps: deque[tuple[int, float]] = deque(maxlen=MAX_FILM_STEPS)  # action and reward
        self._rate, self._schema = rate, schema
        self._has_last_frame = True

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self._steps)

    def add(self, view: View, action: int, reward: float, is_placeholder: bool = False) -> None:
        """Add what the player saw after an action, and its reward.

        Args:
            is_placeholder: whether the real frame repeats the one before, because the environment drew none.
        """
        self._views.append(view)
        self._has_last_frame = not is_placeholder
        self._steps.append((action, reward))

    def save(self, kind: str) -> bytes:
        """Return the film as the bytes of a file.

        Args:
            kind: gif, mp4, or episode for a zip file that holds a store of one episode.

        Raises:
            ValueError: for another kind, or an episode without a step.
        """
        if kind not in CONTENT_TYPES:
            raise ValueError(unknown_name("kind of film", f"{kind:.80}", CONTENT_TYPES))
        with tempfile.TemporaryDirectory(prefix="worldmodel-film-") as folder:
            if kind == "episode":
                return self._zip_store(Path(folder))
            path = Path(folder) / f"film.{kind}"
            media.write(path, np.stack([_beside(view) for view in self._views]), self._rate)
            return path.read_bytes()

    def _zip_store(self, folder: Path) -> bytes:
        """Write a store of one episode, of the real frames if there are any, and return it as a zip file."""
        if not self._steps:
            raise ValueError("an episode has one step or more: play before you save one")
        frames = np.stack([view.frame if view.truth is None else view.truth for view in self._views])
        frames, end = frames if self._has_last_frame else frames[:-1], self._views[-1].end
        actions, rewards = (np.array(column) for column in zip(*self._steps, strict=True))
        store = EpisodeStore.create(folder / "episode", self._schema)
        store.append(Episode(frames, actions, rewards.astype(np.float64), end == "terminated", end != "terminated"))
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(store.path.rglob("*")):
                file.write(path, path.relative_to(folder))
        return archive.getvalue()


def _beside(view: View) -> np.ndarray:
    """Return the frame, with the real one at its right if there is one."""
    return view.frame if view.truth is None else np.concatenate([view.frame, view.truth], 1)
