"""Import from another store, to merge several into one."""

from dataclasses import replace
from pathlib import Path

from worldmodel.episodes.formats.source import Source
from worldmodel.episodes.store import EpisodeStore


def from_store(folder: str, env: str = "") -> Source:
    """Return the episodes of a store, named by its folder and their numbers there.

    How a store was recorded does not matter: stores of different policies and seeds can be merged into a new one, if
    they have the same environment, arguments and actions.

    Raises:
        FileNotFoundError: if there is no such store.
    """
    store = EpisodeStore(folder)
    numbers, name = [entry.number for entry in store.entries], Path(folder).resolve().name
    schema = store.schema.with_provenance(merged="other stores, by source")
    schema = replace(schema, environment=env or schema.environment)
    names = [f"{name}/{number}" for number in numbers]
    return Source(schema, names, lambda index: store.read(numbers[index]), names_repeat=True)
