"""Discrete world models: VQ-VAE codes, exact autoregressive priors, and dreams you can steer.

Importing this package loads no torch: the names below are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldmodel.episodes.store import EpisodeStore
    from worldmodel.models.vqvae import VQVAE
    from worldmodel.shipped import shipped_worlds
    from worldmodel.world_model import WorldModel

    load = WorldModel.load
    __version__: str

__all__ = ["VQVAE", "EpisodeStore", "WorldModel", "__version__", "load", "shipped_worlds"]
_MODULES = {
    "EpisodeStore": "worldmodel.episodes.store",
    "VQVAE": "worldmodel.models.vqvae",
    "WorldModel": "worldmodel.world_model",
    "shipped_worlds": "worldmodel.shipped",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name == "__version__":
        return import_module("importlib.metadata").version("worldmodel")
    if name == "load":
        return import_module("worldmodel.world_model").WorldModel.load
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'worldmodel' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
