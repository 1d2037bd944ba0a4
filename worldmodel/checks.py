"""Range checks of settings, with messages that name the setting and the range."""

from collections.abc import Iterable
from numbers import Integral, Real

MAX_WIDTH, WIDTH_SUFFIXES = 1 << 16, ("_channels", "_dim", "_units")
MAX_DEPTH, DEPTH_SUFFIXES = 1000, ("_layers", "_blocks", "_downsamples")  # each layer takes time to build
MAX_THREADS = 1024
FLOAT_LIMIT = 1e18  # its square is still a float32
SEED_LIMIT = 2**40  # generators take any seed below it, and also with the small numbers that are added to it


def check_seed(seed: int) -> None:
    """Check that ``seed`` is an integer in [0, 2**40).

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"seed must be a whole number from 0 to {SEED_LIMIT - 1}, got {seed!r}")


def check_ranges(
    section: str,
    settings: object,
    counts: Iterable[str] = (),
    non_negative: Iterable[str] = (),
    positive: Iterable[str] = (),
    fractions: Iterable[str] = (),
) -> None:
    """Check that the settings of a dataclass are in range; NaN never is.

    Widths, depths, ``threads`` and ``seed`` must also stay below the limits of this module.

    Args:
        section: section of the configuration for messages, such as ``"train"``.
        settings: dataclass instance to check.
        counts: names of settings that must be 1 or more.
        non_negative: names of settings that must be 0 or more.
        positive: names of settings that must be more than 0.
        fractions: names of settings that must be in [0, 1].

    Raises:
        ValueError: naming the first setting that is out of range, and its range.
    """
    for suffixes, limit in ((WIDTH_SUFFIXES, MAX_WIDTH), (DEPTH_SUFFIXES, MAX_DEPTH), (("threads",), MAX_THREADS)):
        for name, value in vars(settings).items():
            if name.endswith(suffixes) and value > limit:
                raise ValueError(f"{section}.{name} must be {limit} or less, got {value}")
    if not 0 <= (seed := getattr(settings, "seed", 0)) < SEED_LIMIT:
        raise ValueError(f"{section}.seed must be from 0 to {SEED_LIMIT - 1}, got {seed}")
    rules = (
        (counts, lambda value: value >= 1, "1 or more"),
        (non_negative, lambda value: 0 <= value < FLOAT_LIMIT, "0 or more"),
        (positive, lambda value: 0 < value < FLOAT_LIMIT, "more than 0"),
        (fractions, lambda value: 0 <= value <= 1, "in [0, 1]"),
    )
    for names, is_valid, expected in rules:
        for name in names:
            if not is_valid(value := getattr(settings, name)):
                expected = f"below {FLOAT_LIMIT:.0e}" if value >= FLOAT_LIMIT else expected
                raise ValueError(f"{section}.{name} must be {expected}, got {value}")


def check_threads(threads: int) -> None:
    """Check that ``threads`` is a whole number from 1 to MAX_THREADS.

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(threads, Integral) or isinstance(threads, bool) or not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"threads must be a whole number from 1 to {MAX_THREADS}, got {threads!r}")


def check_temperature(temperature: float) -> None:
    """Check that ``temperature`` is a number of 0 or more.

    Raises:
        ValueError: if it is negative, too large for a float32, or not a number.
    """
    if not isinstance(temperature, Real) or isinstance(temperature, bool) or not 0 <= float(temperature) < FLOAT_LIMIT:
        raise ValueError(f"temperature must be a number of 0 or more, got {temperature}")
