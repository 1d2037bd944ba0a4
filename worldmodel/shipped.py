"""What comes with the package, by name: worlds, agents, voices, translators. No torch, so that listing is quick."""

import sys
from pathlib import Path

from worldmodel.suggest import unknown_name

PRETRAINED = Path(__file__).parent / "pretrained"
AGENTS = PRETRAINED / "agents"
DEFAULT_WORLD = "lab-seekavoid"


def names(shipped: Path) -> list[str]:
    """Return the names of the models in a folder of shipped models, sorted."""
    return sorted(path.parent.name for path in shipped.glob("*/config.yaml"))


def find(what: str, name: str | Path, shipped: Path) -> Path:
    """Return the folder of a shipped model, or of a run; a name alone is that of the shipped one, if there is one.

    Raises:
        FileNotFoundError: if there is none; the message lists the names and the nearest one.
    """
    local, is_name = Path(name), Path(name).name == str(name)
    if is_name and (shipped / name / "config.yaml").is_file():
        if (local / "config.yaml").is_file():
            print(f"note: {name} is the shipped {what}; for the folder, give ./{name}", file=sys.stderr)
        return shipped / name
    if (local / "config.yaml").is_file():
        return local
    raise FileNotFoundError(unknown_name(what, str(name), ["the folder of a run", *names(shipped)]))


def shipped_worlds() -> list[str]:
    """Return the names of the worlds that come with the package, sorted."""
    return names(PRETRAINED)


def find_world(world: str | Path) -> Path:
    """Return the folder of a shipped world or of a run; raises as :func:`find` does."""
    return find("world", world, PRETRAINED)


def stable_name(world: str) -> str:
    """Return a name of a world that holds in any folder: a shipped one's as it is, a run's absolute path."""
    folder = find_world(world)
    return world if folder.parent == PRETRAINED else str(folder.absolute())


def find_vqvae(vqvae: str | Path) -> Path:
    """Return the folder of a VQ-VAE: a run, or the VQ-VAE in a world; raises as :func:`find` does."""
    folder = find("VQ-VAE", vqvae, PRETRAINED)
    return folder / "vqvae" if (folder / "vqvae").is_dir() else folder


def find_agent(agent: str | Path) -> Path:
    """Return the folder of a shipped agent or of a run; raises as :func:`find` does."""
    return find("agent", agent, AGENTS)
