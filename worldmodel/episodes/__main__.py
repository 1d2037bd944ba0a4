"""Manage a store: ``python -m worldmodel.episodes {info,verify,import,export} --store stores/doom``."""

from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from worldmodel import cli, env_wrappers
from worldmodel.episodes.formats import minari, npz, stores, video
from worldmodel.episodes.store import EpisodeStore


def info(store: str) -> None:
    """Print a summary of a store: environment, size, returns, episode ends and action frequencies.

    Args:
        store: folder of recorded episodes.
    """
    episodes = EpisodeStore(store)
    schema, entries, count = episodes.schema, episodes.entries, max(1, len(episodes))
    steps, size = sum(entry.steps for entry in entries), sum(entry.bytes for entry in entries)
    raw_size = (
        int(np.prod(schema.observation_shape)) * np.dtype(schema.observation_dtype).itemsize * episodes.num_frames
    )
    action_counts = np.zeros(len(schema.action_names), np.int64)
    for entry in tqdm(entries, unit="episode", leave=False):
        action_counts += np.bincount(episodes.steps(entry.number)[0], minlength=len(action_counts))
    facts = {
        **asdict(schema),
        "mean return": f"{sum(entry.episode_return for entry in entries) / count:.4g}",
        "mean steps": f"{steps / count:.1f}",
        "terminated": sum(entry.terminated for entry in entries),
        "truncated": sum(entry.truncated for entry in entries),
        "reproducible": f"{sum(entry.reproducible for entry in entries)} by their seeds and actions",
        "bytes": f"{size:,}, {size / max(1, raw_size):.3f} of the raw {raw_size:,}",
    }
    print(f"{store}: {len(episodes)} episodes, {episodes.num_frames} frames, {steps} steps")
    for name, value in facts.items():
        print(f"  {name:18} {_format(value)}")
    print("actions")
    for name, number in zip(schema.action_names, action_counts.tolist(), strict=True):
        print(f"  {name:18} {number:9} {number / max(1, steps):6.1%}")


def verify(store: str) -> None:
    """Check every episode file of a store against its checksum, list damaged files, and exit with code 1 if any.

    Args:
        store: folder of recorded episodes.
    """
    episodes = EpisodeStore(store)
    damaged = 0
    for _, problem in tqdm(episodes.verify(), total=len(episodes), unit="episode"):
        if problem:
            damaged += 1
            tqdm.write(problem)
    known = {Path(entry.file).name for entry in episodes.entries}
    unindexed = sorted(path.name for path in (episodes.path / "episodes").iterdir() if path.name not in known)
    if unindexed:
        print(
            f"{len(unindexed)} files in {episodes.path / 'episodes'} are not in the index, such as {unindexed[0]}: "
            "leftovers of a killed run, which can be ignored"
        )
    if damaged:
        raise ValueError(
            f"{damaged} of {len(episodes)} episodes of {store} are damaged; "
            f"the other {len(episodes) - damaged} can be read"
        )
    print(f"{store}: all {len(episodes)} episodes are intact")


def import_(store: str, source: str, format: Literal["npz", "minari", "video", "store"] = "npz", env: str = "") -> None:
    """Copy episodes in another format, or of another store, into a store; run it again to continue, or to import more.

    Episodes are identified by their file name, or their number in a dataset or store, and their content; those already
    in the store are skipped. An .npz file holds one episode under the keys frames or observations (T or T+1, H, W, C)
    uint8, actions (T,), rewards (T,), terminated and truncated (one for the episode, or one per step), and optionally
    seed, action_names, level and fps.

    Args:
        store: folder to copy into.
        source: a folder of .npz files, a folder of videos with tables of actions, the id of a Minari dataset, or
            another store.
        format: format of the source: npz, minari, video or store.
        env: Gymnasium id of the episodes' environment; by default the id in the source.
    """
    importers = {
        "npz": npz.from_npz,
        "minari": minari.from_minari,
        "video": video.from_video,
        "store": stores.from_store,
    }
    found = importers[format](source, env_wrappers.canonical_id(env))
    episodes = EpisodeStore.create(store, found.schema)
    sources = {entry.source for entry in episodes.entries}
    names = {origin.rpartition(" ")[0] for origin in sources}
    older = [entry.number for entry in episodes.entries if not entry.source]  # or imported by an old version
    unnamed = Counter(episodes.read(number).fingerprint for number in tqdm(older, desc="compare", disable=not older))
    before = len(episodes)
    for number, name in enumerate(tqdm(found.names, unit="episode")):
        episode = found.read(number)
        fingerprint = episode.fingerprint
        if f"{name} {fingerprint}" in sources:
            continue
        if name in names and not found.names_repeat:
            raise ValueError(
                f"{name} of {source} has changed since it was imported into {store}; import it into a new --store"
            )
        if unnamed[fingerprint]:
            unnamed[fingerprint] -= 1
        else:
            episodes.append(episode, f"{name} {fingerprint}")
    new = len(episodes) - before
    total = f"{len(episodes)} episodes, {episodes.num_frames} frames"
    print(f"{store}: {total}; {new} of the source's {len(found.names)} are new")


def export(store: str, name: str, pad: bool = False) -> None:
    """Write a store as a Minari dataset, losslessly; import --format minari gives the same episodes back.

    Minari has no place for the objects in view that an environment reports; they are left out.

    Args:
        store: folder of recorded episodes.
        name: id of the new dataset, NAMESPACE/NAME-v0, in MINARI_DATASETS_PATH or ~/.minari/datasets.
        pad: repeat the last frame of episodes that have none after the last action, because Minari needs one.
    """
    episodes = EpisodeStore(store)
    if not len(episodes):
        raise ValueError(f"{store} holds no episodes to export")
    folder = minari.to_minari(episodes, name, pad, partial(tqdm, unit="episode"))
    print(f"{folder}: {len(episodes)} episodes; open them with minari.load_dataset({name!r})")


def _format(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    cli.run({"info": info, "verify": verify, "import": import_, "export": export})
