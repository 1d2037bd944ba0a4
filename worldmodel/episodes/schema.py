"""What a store says about its episodes: the schema that all share, and the index entry of each."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, get_type_hints

MAX_OBSERVATION_SIZE = 2**24  # array elements
DTYPES = ("uint8", "uint16")


@dataclass(frozen=True)
class Schema:
    """Properties shared by all episodes of a store.

    Attributes:
        observation_shape: shape of one observation, such as (84, 84, 3) for frames or (21, 21) for codes.
        observation_dtype: numpy dtype name of the observations, such as ``"uint8"``.
        action_names: names of actions 0, 1, ….
        environment: Gymnasium id, or another source of the episodes.
        kwargs: arguments of the environment.
        provenance: how the data was made: seeds, policy, versions.
    """

    observation_shape: tuple[int, ...]
    observation_dtype: str
    action_names: tuple[str, ...]
    environment: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in (("observation_shape", int), ("action_names", str)):
            given = getattr(self, name)
            values = () if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)  # lists in JSON
            if {type(value) for value in values} != {kind}:
                raise ValueError(f"{name} must be a list of {kind.__name__}, got {given!r:.80}")
            object.__setattr__(self, name, values)
        for name, kind in (("environment", str), ("kwargs", dict), ("provenance", dict)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} must be {kind.__name__}, got {getattr(self, name)!r:.80}")
        if min(self.observation_shape) < 1 or prod(self.observation_shape) > MAX_OBSERVATION_SIZE:
            raise ValueError(f"no observation has the shape {self.observation_shape}")
        if self.observation_dtype not in DTYPES:
            raise ValueError(
                f"observation_dtype must be one of {', '.join(DTYPES)}, got {self.observation_dtype!r:.80}"
            )

    def with_provenance(self, **provenance: Any) -> "Schema":
        """Return the schema of a store that is made from stores of this one; their ``render_fps`` stays."""
        kept = {name: value for name, value in self.provenance.items() if name == "render_fps"}
        return replace(self, provenance={**provenance, **kept})

    def with_rate_of(self, other: "Schema") -> "Schema":
        """Return this schema with the ``render_fps`` of another if either lacks it, as those of older stores do."""
        if all("render_fps" in schema.provenance for schema in (self, other)):
            return self
        provenance = {name: value for name, value in self.provenance.items() if name != "render_fps"}
        return replace(self, provenance=other.with_provenance(**provenance).provenance)


@dataclass(frozen=True)
class Entry:
    """One line of a store's index, about one episode.

    Attributes:
        number: number of the episode in the store.
        episode_return: sum of the rewards.
        bytes: size of the episode file.
        source: name and fingerprint of an imported episode at its source; empty otherwise.
        reproducible: see :class:`worldmodel.episodes.episode.Episode`.

    Raises:
        ValueError: if a value has the wrong type or is impossible.
    """

    number: int
    steps: int
    observations: int
    terminated: bool
    truncated: bool
    seed: int
    episode_return: float
    bytes: int
    sha256: str
    source: str = ""
    reproducible: bool = True

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Entry).items():
            value = getattr(self, name)
            if type(value) is not kind and (kind, type(value)) != (float, int):
                raise ValueError(f"{name} must be {kind.__name__}, got {value!r:.80}")
        if max(self.number, self.bytes, self.steps, abs(self.seed)) >= 2**63 or not abs(self.episode_return) < 1e300:
            raise ValueError("a number is too large")
        if self.number < 0 or self.bytes < 0 or self.steps < 1 or self.observations - self.steps not in (0, 1):
            raise ValueError(f"no episode has number {self.number}, {self.steps} steps, {self.observations} frames")
        object.__setattr__(self, "reproducible", self.reproducible and self.seed >= 0)  # older indices say True

    @property
    def file(self) -> str:
        """Path of the episode file in the store."""
        return episode_file(self.number)


def episode_file(number: int) -> str:
    """Return the path in a store of the file of an episode."""
    return f"episodes/{number:06d}.safetensors"
