"""Episodes for the tests of stores."""

import numpy as np

from worldmodel.episodes.episode import Episode
from worldmodel.episodes.store import Schema

FRAMES = Schema((84, 84, 3), "uint8", ("left", "right"), "nowhere", {"level": 3}, {"seed": 0})
CODES = Schema((21, 21), "uint16", ("left", "right"), "nowhere")


def episode(steps: int, schema: Schema = FRAMES, final: bool = True, seed: int = 7) -> Episode:
    random = np.random.default_rng([steps, seed])
    limit = {"uint8": 256, "uint16": 512}[schema.observation_dtype]
    return Episode(
        random.integers(0, limit, (steps + final, *schema.observation_shape), schema.observation_dtype),
        random.integers(0, 2, steps),
        random.normal(size=steps),
        terminated=bool(seed % 2),
        truncated=not seed % 2,
        seed=seed,
    )


def same(one: Episode, other: Episode) -> bool:
    arrays = [(getattr(one, name), getattr(other, name)) for name in ("observations", "actions", "rewards")]
    facts = [(part.terminated, part.truncated, part.seed) for part in (one, other)]
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in arrays) and facts[0] == facts[1]
