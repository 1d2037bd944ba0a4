"""What all sections are told, and the real frames that they share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.benchmarks.timing import Stopwatch
from worldmodel.episodes.store import EpisodeStore
from worldmodel.world_model import WorldModel

CONTEXT = 6  # real frames that a dream begins with


@dataclass(frozen=True)
class Settings:
    """What to measure, and how often.

    Attributes:
        world: whose speed is measured.
        store: recorded episodes to read; a few of ``env`` are recorded if not given.
        env: Gymnasium id of the world to record.
        rounds: of every measurement.
        batches: sizes of the batches of dreams.
        threads: that the largest batch of dreams is measured with, beside one.
    """

    world: WorldModel
    store: str
    env: str
    rounds: int
    batches: tuple[int, ...]
    threads: int

    @property
    def watch(self) -> Stopwatch:
        """A stopwatch for the world's device."""
        return Stopwatch(self.world.device)


def clip(world: WorldModel) -> tuple[Tensor, Tensor]:
    """The first frames (CONTEXT, H, W, 3) uint8 of the world's own clips, and the actions between them."""
    clips = EpisodeStore(world.clips)
    number = clips.entries[0].number
    frames = torch.from_numpy(clips.observations(number, 0, CONTEXT).copy())
    return frames, torch.from_numpy(clips.steps(number)[0][: CONTEXT - 1].copy())


def parameters(world: WorldModel) -> dict[str, int]:
    """How many weights the parts of a world have, the codebook among them."""
    count = {part: sum(p.numel() for p in getattr(world, part).parameters()) for part in ("vqvae", "dynamics")}
    if "codebook" in dict(world.vqvae.quantizer.named_buffers()):  # a moving average, and no parameter to torch
        count["vqvae"] += world.vqvae.quantizer.codebook.numel()
    return count
