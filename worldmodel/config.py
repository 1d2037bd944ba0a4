"""The command line of every program: dataclass defaults < YAML files < flags."""

import os
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

from worldmodel.suggest import unknown_name

T = TypeVar("T")
BAR = tqdm.__init__
SIGTERM_EXIT_CODE = 128 + signal.SIGTERM  # the shell's convention
LOG_INTERVAL = 10.0  # seconds between two lines of a progress bar that is not on a terminal
MAX_YAML_VALUES = 100_000  # in a file, with aliases expanded
SWITCHES = ("--help", "--print_config")  # flags of jsonargparse that take no value

set_parsing_settings(docstring_parse_attribute_docstrings=True, validate_defaults=True)


def run(program: Callable | dict[str, Any], arguments: Sequence[str] | None = None) -> None:
    """Run a program, or one of several subcommands, with parameters from the command line.

    ``--config file.yaml`` may be given anywhere and more than once: files are read first, in order, so that flags
    override them. ``--env.scenario x`` is short for ``--env_kwargs.scenario x``, and ``--compare`` for
    ``--compare=true``. ``--version`` prints the installed version.

    An error that the user can mend is printed as one line, and the process exits with 1; a flag that cannot be parsed
    makes it exit with 2. With the environment variable ``WORLDMODEL_TRACEBACK`` set, the traceback is shown as well.
    Without a terminal, progress bars write a line every ten seconds.
    """
    exit_on_sigterm()
    if not sys.stderr.isatty():
        defaults = partialmethod(BAR, mininterval=LOG_INTERVAL, delay=LOG_INTERVAL)
        tqdm.__init__ = defaults  # pyright: ignore[reportAttributeAccessIssue]  # tqdm's own way to set defaults
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
        auto_cli(program, args=arguments, prog=_program_name(), as_positional=False, allow_abbrev=False)
    except (ValueError, OSError, ImportError, FloatingPointError, MemoryError, RecursionError, OverflowError) as error:
        if os.environ.get("WORLDMODEL_TRACEBACK"):
            raise
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _program_name() -> str:
    """Return what the user typed before the flags, for usage lines: argparse would print ``__main__.py``."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if sys.argv[0].startswith("worldmodel ") or spec is None:
        return Path(sys.argv[0]).name
    return f"python -m {spec.name.removesuffix('.__main__')}"


def exit_on_sigterm() -> None:
    """Make SIGTERM raise SystemExit, so that open files and processes are closed. Call again after ``ray.init``."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(SIGTERM_EXIT_CODE))


def dump(**parts: Any) -> str:
    """Return dataclasses and plain values as YAML, one section each."""
    plain = {
        name: asdict(part) if is_dataclass(part) and not isinstance(part, type) else part
        for name, part in parts.items()
    }
    return yaml.safe_dump(plain, sort_keys=False)


def read_yaml(path: Path) -> Any:
    """Return the contents of a YAML file.

    Raises:
        ValueError: naming the file, if it is damaged, or endless: an alias may point to a list that contains it.
    """
    try:
        text = path.read_text("utf-8")
        _expanded(yaml.compose(text, yaml.SafeLoader), {})
        return yaml.safe_load(text)
    except Exception as error:  # damage can make the parser raise anything
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error


def _expanded(node: yaml.Node | None, sizes: dict[int, float]) -> float:
    """Return the number of values in a part of a YAML file with all aliases expanded."""
    if id(node) not in sizes:
        sizes[id(node)] = float("inf")  # for a node within itself
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        flat = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
        sizes[id(node)] = 1 + sum(_expanded(part, sizes) for part in flat)
        if sizes[id(node)] > MAX_YAML_VALUES:
            raise OverflowError(f"it holds more than {MAX_YAML_VALUES} values")
    return sizes[id(node)]


def build(kind: type[T], values: dict[str, Any], source: Path) -> T:
    """Make the dataclass ``kind`` from a section of the YAML file ``source``.

    Raises:
        ValueError: naming the file and the first key that is unknown (with the nearest known one), has a value of
            another type, or is out of range.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{source}: a {kind.__name__} must be settings by name, got {values!r:.80}")
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"{source}: {unknown_name(kind.__name__ + ' setting', str(name), hints)}")
        if not is_dataclass(hints[name]) and not _fits(value, hints[name]):
            expected = getattr(hints[name], "__name__", hints[name]) if not get_args(hints[name]) else hints[name]
            raise ValueError(f"{source}: {kind.__name__} {name} must be {expected}, got {value!r:.80}")
    nested = {name: build(hints[name], value, source) for name, value in values.items() if is_dataclass(hints[name])}
    try:
        return kind(**{**values, **nested})
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a YAML value has a field's type. Integers pass as floats, and lists as tuples."""
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
    """Move ``--config`` before all other flags, after the subcommand; write out ``=true`` for flags without a value."""
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
