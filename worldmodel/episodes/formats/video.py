"""Import episodes from folders of videos, each with a table of actions beside it."""

import csv
import json
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np

from worldmodel.env_wrappers import FRAME_SIZE, resize_frame
from worldmodel.episodes.episode import Episode
from worldmodel.episodes.formats.source import MAX_UNNAMED_ACTIONS, Source, ended_by, natural_key
from worldmodel.episodes.store import Schema

TABLES = (".csv", ".jsonl")
FLAGS = {"1": True, "true": True, "0": False, "false": False, "": False}


def from_video(folder: str, env: str = "") -> Source:
    """Return the episodes of a folder of ``NAME.mp4`` files, each with ``NAME.csv`` or ``NAME.jsonl`` beside it.

    A table has one row per step, with the column ``action`` (a name, or a number from 0) and optionally ``reward``
    (0 if absent), ``terminated`` and ``truncated`` (true in the last row at most; an episode that neither ends is
    truncated). A video has one frame per step, or one more: the frame after the last action. Frames are scaled to
    84×84 as ``collect`` scales them.

    Raises:
        FileNotFoundError: if there are no videos, or one has no table.
        ValueError: naming the file that is damaged, or does not fit its table.
    """
    videos = sorted(Path(folder).glob("*.mp4"), key=lambda path: natural_key(path.name))
    if not videos:
        raise FileNotFoundError(f"{folder} holds no .mp4 files; give a folder of videos with a table of actions each")
    tables = [_read_table(video) for video in videos]
    names = _action_names(videos, tables)
    schema = Schema(
        observation_shape=(FRAME_SIZE, FRAME_SIZE, 3),
        observation_dtype="uint8",
        action_names=tuple(names),
        environment=env or "unknown",
        provenance={"imported": Path(folder).resolve().name},
    )

    def read(number: int) -> Episode:
        video, rows = videos[number], tables[number]
        try:
            # The stubs leave out this plugin.
            with iio.imopen(video, "r", plugin="FFMPEG") as file:  # pyright: ignore[reportCallIssue, reportArgumentType]
                decoded = file.iter(output_params=["-fps_mode", "passthrough"])  # no frame is repeated or left out
                frames = [resize_frame(frame, FRAME_SIZE, FRAME_SIZE) for frame in decoded]
        except Exception as error:  # damage can make the decoder raise anything; its last line says what
            reason = (str(error).splitlines() or [type(error).__name__])[-1]
            raise ValueError(f"{video} is no video that can be read: {reason}") from error
        if len(frames) - len(rows) not in (0, 1):
            raise ValueError(
                f"{video} has {len(frames)} frames, its table {len(rows)} steps; expected as many frames, or one more"
            )
        try:
            terminated = ended_by("terminated", np.array([row["terminated"] for row in rows]))
            truncated = ended_by("truncated", np.array([row["truncated"] for row in rows]))
            actions = np.array([names.index(row["action"]) for row in rows])
            rewards = np.array([row["reward"] for row in rows])
            return Episode(np.stack(frames), actions, rewards, terminated, truncated or not terminated)
        except ValueError as error:
            raise ValueError(f"{video} is no episode: {error}") from error

    return Source(schema, [video.name for video in videos], read)


def _read_table(video: Path) -> list[dict[str, Any]]:
    """Return a row per step: ``action`` str, ``reward`` float, ``terminated`` and ``truncated`` bool."""
    path = next((video.with_suffix(suffix) for suffix in TABLES if video.with_suffix(suffix).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{video} has no table of actions beside it; expected {video.stem}.csv or .jsonl")
    rows: list[dict[str, Any]] = []
    try:
        text = path.read_text("utf-8-sig")
        lines = text.splitlines()
        table = (
            csv.DictReader(lines, skipinitialspace=True)
            if path.suffix == ".csv"
            else map(json.loads, filter(str.strip, lines))
        )
        for row in table:
            if str(row.get("action") if row.get("action") is not None else "").strip() == "":
                raise ValueError(f"step {len(rows)} has no action; expected a column named action")
            flags = [FLAGS.get(str(row.get(name) or "").strip().lower()) for name in ("terminated", "truncated")]
            if None in flags:
                raise ValueError(f"step {len(rows)}: terminated and truncated must be true or false, got {row}")
            rows.append(
                {
                    "action": str(row["action"]).strip(),
                    "reward": float(row.get("reward") or 0),
                    "terminated": flags[0],
                    "truncated": flags[1],
                }
            )
    except (ValueError, TypeError, AttributeError, csv.Error, RecursionError) as error:
        raise ValueError(f"{path} is no table of actions: {error}") from error
    if not rows:
        raise ValueError(f"{path} is no table of actions: it has no rows")
    return rows


def _action_names(videos: list[Path], tables: list[list[dict[str, Any]]]) -> list[str]:
    """Return the names of all actions: sorted, or all numbers up to the largest where all actions are numbers."""
    found = {row["action"] for rows in tables for row in rows}
    if not all(name.isascii() and name.isdecimal() for name in found):
        return sorted(found)
    largest = max(int(name[:20]) for name in found)
    if largest >= MAX_UNNAMED_ACTIONS:
        raise ValueError(f"{videos[0].parent} has action {largest}; numbers must be below {MAX_UNNAMED_ACTIONS}")
    return [str(number) for number in range(largest + 1)]
