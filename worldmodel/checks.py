"""Settings that must lie in a range, and what to say when one does not."""

from collections.abc import Iterable
from numbers import Integral

DEPTHS, DEEPEST = ("layers", "blocks", "motion_layers", "residual_blocks", "halvings"), 1000  # each takes time to build


WIDTHS, WIDEST = ("width", "hidden", "residual_hidden", "motion", "dim", "channels", "skip"), 1 << 16
THREADS = 1024
LARGEST = 1e18  # number that a float32 still squares
SEEDS = 2**40  # that a generator takes, with what is added to them


def check_seed(seed: int) -> None:
    """Refuse what is no seed.

    Raises:
        ValueError: if it is not in [0, 2**40).
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= seed < SEEDS:
        raise ValueError(f"seed must be a whole number from 0 to {SEEDS - 1}, got {seed!r}")


def check(
    section: str,
    settings: object,
    counts: Iterable[str] = (),
    weights: Iterable[str] = (),
    positive: Iterable[str] = (),
    shares: Iterable[str] = (),
) -> None:
    """Refuse settings that make no sense; not-a-number never does.

    Args:
        section: of the configuration that they stand in, such as ``"train"``.
        counts: names of those that must be 1 or more.
        weights: 0 or more.
        positive: more than 0.
        shares: in [0, 1].

    Raises:
        ValueError: naming the first that is not, and what it should be.
    """
    wide = [name for name in WIDTHS if getattr(settings, name, 0) > WIDEST]
    if wide:
        raise ValueError(f"{section}.{wide[0]} must be {WIDEST} or less, got {getattr(settings, wide[0])}")
    deep = [name for name in DEPTHS if getattr(settings, name, 0) > DEEPEST]
    if deep:
        raise ValueError(f"{section}.{deep[0]} must be {DEEPEST} or less, got {getattr(settings, deep[0])}")
    if getattr(settings, "threads", 0) > THREADS:
        raise ValueError(f"{section}.threads must be {THREADS} or less, got {settings.threads}")
    if not 0 <= (seed := getattr(settings, "seed", 0)) < SEEDS:
        raise ValueError(f"{section}.seed must be from 0 to {SEEDS - 1}, got {seed}")
    rules = (
        (counts, lambda value: value >= 1, "1 or more"),
        (weights, lambda value: 0 <= value < LARGEST, "0 or more"),
        (positive, lambda value: 0 < value < LARGEST, "more than 0"),
        (shares, lambda value: 0 <= value <= 1, "in [0, 1]"),
    )
    for names, right, expected in rules:
        for name in names:
            if not right(value := getattr(settings, name)):
                expected = f"below {LARGEST:.0e}" if value >= LARGEST else expected
                raise ValueError(f"{section}.{name} must be {expected}, got {value}")
