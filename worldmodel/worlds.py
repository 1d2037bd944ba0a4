"""List the worlds that come with the package: ``python -m worldmodel.worlds``."""

from worldmodel import cli
from worldmodel.episodes.store import EpisodeStore
from worldmodel.shipped import find_world, shipped_worlds


def worlds() -> None:
    """Print each shipped world's name, size, description, actions, and number of starting clips."""
    from worldmodel import checkpoint

    for name in shipped_worlds():
        folder = find_world(name)
        values, clips = checkpoint.read_config(folder), EpisodeStore(folder / "context")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"{name}  {size / 1e6:.1f} MB  {values.get('about', '')}".rstrip())
        print(f"    actions: {', '.join(values['data']['action_names'])}")
        print(f"    clips: {len(clips)} of {min(entry.observations for entry in clips.entries)} frames or more")


if __name__ == "__main__":
    cli.run(worlds)
