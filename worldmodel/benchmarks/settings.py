"""Settings that all sections share."""

from dataclasses import dataclass

from worldmodel.benchmarks.timing import Stopwatch
from worldmodel.world_model import WorldModel


@dataclass(frozen=True)
class Settings:
    """What to measure and how often.

    Attributes:
        world: world model to measure.
        store: folder of recorded episodes to read; if empty, a few of ``env`` are recorded.
        env: Gymnasium id of the environment to record.
        rounds: number of timed rounds.
        batches: batch sizes of dreams.
        threads: number of threads that the largest batch of dreams is also timed with.
    """

    world: WorldModel
    store: str
    env: str
    rounds: int
    batches: tuple[int, ...]
    threads: int

    @property
    def stopwatch(self) -> Stopwatch:
        """A stopwatch for the device of the world."""
        return Stopwatch(self.world.device)


def count_parameters(world: WorldModel) -> dict[str, int]:
    """Return the number of parameters of the VQ-VAE and of the dynamics model, including the codebook."""
    count = {part: sum(p.numel() for p in getattr(world, part).parameters()) for part in ("vqvae", "dynamics")}
    if "codebook" in dict(world.vqvae.quantizer.named_buffers()):  # a moving average, not a torch parameter
        count["vqvae"] += world.vqvae.quantizer.codebook.numel()
    return count
