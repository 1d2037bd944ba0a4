"""List the worlds that come with the package: ``python -m worldmodel.worlds``."""

from worldmodel import checkpoint, config
from worldmodel.episodes.store import EpisodeStore
from worldmodel.world_model import find, names


def worlds() -> None:
    """Print each shipped world's name, what it is, its actions, and the clips that dreams can begin from."""
    for name in names():
        folder = find(name)
        values, clips = checkpoint.read_config(folder), EpisodeStore(folder / "context")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"{name}  {size / 1e6:.1f} MB  {values.get('about', '')}".rstrip())
        print(f"    actions: {', '.join(values['data']['action_names'])}")
        print(f"    clips: {len(clips)} of {min(entry.observations for entry in clips.entries)} frames or more")


if __name__ == "__main__":
    config.run(worlds)
