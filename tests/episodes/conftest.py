"""A store for the tests of stores."""

from pathlib import Path

import pytest

from tests.episodes.made import FRAMES, episode
from worldmodel.episodes.store import EpisodeStore


@pytest.fixture
def filled(tmp_path: Path) -> EpisodeStore:
    """Six episodes of frames."""
    made = EpisodeStore.create(tmp_path / "filled", FRAMES)
    for seed in range(6):
        made.append(episode(17, seed=seed))
    return made
