"""The command line of every program: dataclass defaults < YAML files < flags."""

import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from functools import partialmethod
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import auto_cli, set_parsing_settings
from tqdm import tqdm

from worldmodel.suggest import unknown

T = TypeVar("T")
BAR = tqdm.__init__
TERMINATED = 128 + signal.SIGTERM  # what a shell calls it
SELDOM = 10.0  # seconds between two lines of a progress bar in a file
LARGEST = 100_000  # values in a YAML file, those counted again that it names again
SWITCHES = ("--help", "--print_config")  # jsonargparse's own, which take no value

set_parsing_settings(docstring_parse_attribute_docstrings=True, validate_defaults=True)


def run(program: Callable | dict[str, Callable], arguments: Sequence[str] | None = None) -> None:
    """Run a program, or one of several named ones, with what the command line gives its parameters.

    ``--config file.yaml`` may come anywhere and more than once: files are read first, in their order, so that flags
    win. ``--env.scenario x`` is short for ``--env_kwargs.scenario x``, ``--compare`` for ``--compare=true``; and
    ``--version`` alone says which one is installed.

    A mistake of the caller's, an exception that names it, is printed as one line and ends the process with 1; a flag
    that does not parse ends it with 2. Where the terminal is none, progress bars write a line every ten seconds.
    """
    heed_sigterm()
    if not sys.stderr.isatty():
        tqdm.__init__ = partialmethod(BAR, mininterval=SELDOM, delay=SELDOM)  # tqdm's own way to set defaults
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        print(f"worldmodel {version('worldmodel')}")
        return
    try:
        arguments = _files_first([_expand(argument) for argument in arguments])
        for given, following in pairwise([*arguments, "-"]):
            flag, equals, file = given.partition("=")
            if flag.startswith("--") and ((equals and not file) or (not equals and not following)):
                raise ValueError(f"{flag} is empty; leave it out, or give a value: is a variable of the shell not set?")
            if flag == "--config" and (path := Path(file or following)).is_file():
                read_yaml(path)
        auto_cli(program, args=arguments, as_positional=False, allow_abbrev=False)
    except (ValueError, OSError, ImportError, FloatingPointError, MemoryError, RecursionError, OverflowError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def heed_sigterm() -> None:
    """Let SIGTERM end the process as an exception does, which closes what is open; to be said again after ray.init."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))


def dump(**parts: Any) -> str:
    """Dataclasses and plain values as YAML, a section each."""
    plain = {name: asdict(part) if is_dataclass(part) else part for name, part in parts.items()}
    return yaml.safe_dump(plain, sort_keys=False)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        ValueError: naming the file, if it is damaged, or would be endless: a few lines can name a list of themselves.
    """
    try:
        text = path.read_text("utf-8")
        _expanded(yaml.compose(text, yaml.SafeLoader), {})
        return yaml.safe_load(text)
    except Exception as error:  # damage can make the parser raise anything
        raise ValueError(f"{path} is no YAML that can be used: {error}") from error


def _expanded(node: yaml.Node | None, sizes: dict[int, float]) -> float:
    """How many values there are in a part of a YAML file, if every alias is written out."""
    if id(node) not in sizes:
        sizes[id(node)] = float("inf")  # what it is if it comes again within itself
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        flat = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
        sizes[id(node)] = 1 + sum(_expanded(part, sizes) for part in flat)
        if sizes[id(node)] > LARGEST:
            raise OverflowError(f"it holds more than {LARGEST} values")
    return sizes[id(node)]


def build(kind: type[T], values: dict[str, Any], source: Path) -> T:
    """Make the dataclass ``kind`` from a section of the YAML file ``source``.

    Raises:
        ValueError: naming the file and the first key that ``kind`` does not have, with the nearest one it has, or whose
            value is of another type or out of range.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{source}: a {kind.__name__} must be settings by name, got {values!r:.80}")
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"{source}: {unknown(kind.__name__ + ' setting', str(name), hints)}")
        if not is_dataclass(hints[name]) and not _fits(value, hints[name]):
            expected = getattr(hints[name], "__name__", hints[name]) if not get_args(hints[name]) else hints[name]
            raise ValueError(f"{source}: {kind.__name__} {name} must be {expected}, got {value!r:.80}")
    nested = {name: build(hints[name], value, source) for name, value in values.items() if is_dataclass(hints[name])}
    try:
        return kind(**{**values, **nested})
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value that YAML gave is of a field's type; whole numbers are floats, too, and lists are tuples."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (tuple, list):
        fixed = origin is tuple and arguments[-1] is not ...
        right = isinstance(value, list | tuple) and (not fixed or len(value) == len(arguments))
        return right and all(_fits(item, arguments[0]) for item in value)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, int | float if hint is float else hint)


def _expand(argument: str) -> str:
    return "--env_kwargs." + argument[len("--env.") :] if argument.startswith("--env.") else argument


def _files_first(arguments: list[str]) -> list[str]:
    """Move ``--config`` options before all other flags, but behind the subcommand; a flag without a value is true."""
    files, rest = [], []
    for position, argument in enumerate(arguments):
        following = arguments[position + 1 : position + 2]
        alone = argument.startswith("--") and "=" not in argument and (not following or following[0].startswith("--"))
        if argument.startswith("--config") or arguments[position - 1 : position] == ["--config"]:
            files.append(argument)
        elif alone and argument not in SWITCHES:
            rest.append(f"{argument}=true")
        else:
            rest.append(argument)
    subcommand = 1 if rest and not rest[0].startswith("-") else 0
    return rest[:subcommand] + files + rest[subcommand:]
