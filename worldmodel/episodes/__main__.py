"""Look after a store: ``python -m worldmodel.episodes {info,verify,import,export} --store stores/doom``."""

from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from worldmodel import config
from worldmodel.episodes.formats import foreign
from worldmodel.episodes.store import EpisodeStore


def info(store: str) -> None:
    """Say what a store holds: its world, how much of it, how the episodes ended and which actions were taken.

    Args:
        store: folder of recorded episodes.
    """
    episodes = EpisodeStore(store)
    schema, entries, count = episodes.schema, episodes.entries, max(1, len(episodes))
    steps, size = sum(entry.steps for entry in entries), sum(entry.bytes for entry in entries)
    one = int(np.prod(schema.observation_shape)) * np.dtype(schema.observation_dtype).itemsize
    taken = np.zeros(len(schema.action_names), np.int64)
    for entry in tqdm(entries, unit="episode", leave=False):
        taken += np.bincount(episodes.steps(entry.number)[0], minlength=len(taken))
    facts = {
        **asdict(schema),
        "mean return": f"{sum(entry.episode_return for entry in entries) / count:.4g}",
        "mean steps": f"{steps / count:.1f}",
        "terminated": sum(entry.terminated for entry in entries),
        "truncated": sum(entry.truncated for entry in entries),
        "reproducible": f"{sum(entry.reproducible for entry in entries)} by their seeds and actions",
        "bytes": f"{size:,}, {size / max(1, one * episodes.frames):.3f} of the raw {one * episodes.frames:,}",
    }
    print(f"{store}: {len(episodes)} episodes, {episodes.frames} frames, {steps} steps")
    for name, value in facts.items():
        print(f"  {name:18} {_listed(value)}")
    print("actions")
    for name, number in zip(schema.action_names, taken.tolist(), strict=True):
        print(f"  {name:18} {number:9} {number / max(1, steps):6.1%}")


def verify(store: str) -> None:
    """Check every episode file of a store against its checksum; the damaged ones are named, and make the exit code 1.

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
    strangers = sorted(path.name for path in (episodes.path / "episodes").iterdir() if path.name not in known)
    if strangers:
        print(
            f"{len(strangers)} files in {episodes.path / 'episodes'} are not in the index, such as {strangers[0]}: "
            "leftovers of a killed run, which nothing reads"
        )
    if damaged:
        raise ValueError(
            f"{damaged} of {len(episodes)} episodes of {store} are damaged; "
            f"the other {len(episodes) - damaged} can be read"
        )
    print(f"{store}: all {len(episodes)} episodes are whole")


def import_(store: str, source: str, format: Literal["npz", "minari"] = "npz", env: str = "") -> None:
    """Copy episodes from elsewhere into a store; run it again to continue, or after more were added.

    An episode is known by the name of its file, or its number in the Minari dataset, and by what it holds: one that is
    in the store already is left out, a new one gets the next number. A file holds an episode under the keys frames or
    observations (T or T+1, H, W, C) uint8, actions (T,), rewards (T,), terminated and truncated (one for the episode,
    or one a step), and may have seed, action_names, level and fps.

    Args:
        store: folder to copy into.
        source: a folder of .npz files, or the id of a Minari dataset on this machine.
        format: of the source.
        env: Gymnasium id of the world that the episodes are from; by default what the source says.
    """
    found = {"npz": foreign.npz, "minari": foreign.from_minari}[format](source, env)
    episodes = EpisodeStore.create(store, found.schema)
    known = dict(entry.source.rsplit(" ", 1) for entry in episodes.entries if entry.source)
    older = [entry.number for entry in episodes.entries if not entry.source]  # of a store from before sources had names
    unnamed = Counter(episodes.read(number).fingerprint for number in tqdm(older, desc="compare", disable=not older))
    before = len(episodes)
    for number, name in enumerate(tqdm(found.names, unit="episode")):
        episode = found.read(number)
        fingerprint = episode.fingerprint
        if known.get(name, fingerprint) != fingerprint:
            raise ValueError(
                f"{name} of {source} is not what it was when {store} took it; import what changed into a new --store"
            )
        if name not in known and unnamed[fingerprint]:
            unnamed[fingerprint] -= 1
        elif name not in known:
            episodes.append(episode, f"{name} {fingerprint}")
    new = len(episodes) - before
    print(
        f"{store}: {len(episodes)} episodes, {episodes.frames} frames; {new} of the source's {len(found.names)} are new"
    )


def export(store: str, name: str, pad: bool = False) -> None:
    """Write a store as a Minari dataset, losslessly; import --format minari gives the same episodes back.

    Args:
        store: folder of recorded episodes.
        name: id of the new dataset, NAMESPACE/NAME-v0; it goes where MINARI_DATASETS_PATH says, or ~/.minari/datasets.
        pad: repeat the last frame of episodes whose world drew none after the last action; Minari wants one.
    """
    episodes = EpisodeStore(store)
    if not len(episodes):
        raise ValueError(f"{store} holds no episodes to export")
    folder = foreign.to_minari(episodes, name, pad, partial(tqdm, unit="episode"))
    print(f"{folder}: {len(episodes)} episodes; open them with minari.load_dataset({name!r})")


def _listed(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    config.run({"info": info, "verify": verify, "import": import_, "export": export})
