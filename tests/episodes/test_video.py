"""Videos with a table of actions beside them, imported as episodes."""

import csv
import json
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from worldmodel.env_wrappers import resize_frame
from worldmodel.episodes import __main__ as episodes
from worldmodel.episodes.formats.video import from_video
from worldmodel.episodes.store import EpisodeStore


def frames(count: int, side: int = 96) -> np.ndarray:
    """Flat frames of a brightness that tells their number."""
    return np.stack([np.full((side, side, 3), 20 + 15 * number, np.uint8) for number in range(count)])


def film(path: Path, count: int, rows: list[dict], side: int = 96) -> Path:
    iio.imwrite(path, frames(count, side), fps=8, codec="libx264", macro_block_size=1)
    if rows:
        with path.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def test_videos_are_imported_with_their_actions_rewards_and_ends(tmp_path):
    film(tmp_path / "9.mp4", 6, [{"action": name, "reward": 0.5} for name in ("left", "right", "left", "jump", "left")])
    film(tmp_path / "10.mp4", 4, [])
    lines = [{"action": "jump", "terminated": number == 3} for number in range(4)]
    (tmp_path / "10.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for _ in range(2):  # the second import has nothing to add
        episodes.import_(str(tmp_path / "store"), str(tmp_path), format="video", env="Game-v0")
    store = EpisodeStore(tmp_path / "store")
    first, second = store
    assert len(store) == 2 and store.schema.action_names == ("jump", "left", "right")
    assert store.schema.environment == "Game-v0"
    assert first.actions.tolist() == [1, 2, 1, 0, 1] and first.rewards.tolist() == [0.5] * 5
    assert first.has_final_observation and not second.has_final_observation
    assert (first.terminated, first.truncated) == (False, True) and (second.terminated, second.truncated) == (
        True,
        False,
    )
    expected = np.stack([resize_frame(frame, 84, 84) for frame in frames(6)])
    assert first.observations.shape == (6, 84, 84, 3)
    assert np.abs(first.observations.astype(int) - expected).max() <= 3, "every frame once, in order"


def test_a_table_from_a_spreadsheet_is_read(tmp_path):
    film(tmp_path / "1.mp4", 3, [])
    rows = "action, reward, terminated\nleft, 0.5, false\nright, 2, TRUE\n"
    (tmp_path / "1.csv").write_text(rows, encoding="utf-8-sig")
    episodes.import_(str(tmp_path / "store"), str(tmp_path), format="video", env="Game-v0")
    (episode,) = EpisodeStore(tmp_path / "store")
    assert episode.rewards.tolist() == [0.5, 2.0] and episode.terminated


def test_numbered_actions_are_all_numbers_up_to_the_largest(tmp_path):
    film(tmp_path / "a.mp4", 3, [{"action": 0}, {"action": 4}, {"action": 2}])
    source = from_video(str(tmp_path))
    assert source.schema.action_names == ("0", "1", "2", "3", "4")
    assert source.read(0).actions.tolist() == [0, 4, 2]


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "a.mp4 has no table of actions beside it; expected a.csv or .jsonl"),
        ([{"key": "w"}] * 3, "a.csv is no table of actions: step 0 has no action; expected a column named action"),
        ([{"action": "w", "reward": "much"}] * 3, "a.csv is no table of actions: could not convert"),
        ([{"action": "w", "terminated": "perhaps"}] * 3, "terminated and truncated must be true or false"),
        ([{"action": "w"}] * 5, "a.mp4 has 3 frames, its table 5 steps; expected as many frames, or one more"),
        ([{"action": "w", "terminated": 1}] * 3, "terminated is true at step 0 of 3"),
        ([{"action": 5000}] * 3, "has action 5000; numbers must be below 4096"),
    ],
)
def test_a_video_that_does_not_fit_its_table_is_named(tmp_path, rows, message):
    film(tmp_path / "a.mp4", 3, rows)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        from_video(str(tmp_path)).read(0)


def test_a_damaged_video_is_named(tmp_path):
    film(tmp_path / "a.mp4", 3, [{"action": "w"}] * 3).write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"a.mp4 is no video that can be read"):
        from_video(str(tmp_path)).read(0)
    with pytest.raises(FileNotFoundError, match=r"holds no .mp4 files"):
        from_video(str(tmp_path / "nothing"))
