"""The command line of every program: dataclass defaults < YAML files < flags."""

import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from functools import partialmethod, wraps
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import auto_cli, set_parsing_settings
from tqdm import tqdm

from worldmodel.config import read_yaml

BAR = tqdm.__init__
SIGTERM_EXIT_CODE = 128 + signal.SIGTERM  # the shell's convention
LOG_INTERVAL = 10.0  # seconds between two lines of a progress bar that is not on a terminal
USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, MemoryError, RecursionError, OverflowError)
OUT_OF_MEMORY = ("can't allocate memory", "out of memory")  # in messages of torch's RuntimeError
SWITCHES = ("--help", "--print_config")  # flags of jsonargparse that take no value

set_parsing_settings(docstring_parse_attribute_docstrings=True, validate_defaults=True)


def run(program: Callable | dict[str, Any], arguments: Sequence[str] | None = None) -> None:
    """Run a program, or one of several subcommands, with parameters from the command line.

    ``--config file.yaml`` may be given anywhere and more than once: files are read first, in order, so that flags
    override them. ``--env.scenario x`` is short for ``--env_kwargs.scenario x``, and ``--compare`` for
    ``--compare=true``. ``--version`` prints the installed version.

    An error that the user can mend is printed as one line, and the process exits with 1; a flag that cannot be parsed
    makes it exit with 2. With the environment variable ``WORLDMODEL_TRACEBACK`` set, the traceback is shown as well.
    Without a terminal, progress bars write a line every ten seconds. A path may begin with ``~``, also in a file.
    """
    exit_on_sigterm()
    if not sys.stderr.isatty():
        defaults = partialmethod(BAR, mininterval=LOG_INTERVAL, delay=LOG_INTERVAL)
        tqdm.__init__ = defaults  # pyright: ignore[reportAttributeAccessIssue]  # tqdm's own way to set defaults
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        with output_may_close():
            print(f"worldmodel {version('worldmodel')}")
        return
    try:
        chosen = program.get(next(iter(arguments), "")) if isinstance(program, dict) else program
        arguments = _files_first([_expand(argument) for argument in arguments], chosen)
        for given, following in pairwise([*arguments, "-"]):
            flag, equals, file = given.partition("=")
            if flag.startswith("--") and ((equals and not file) or (not equals and not following)):
                raise ValueError(f"{flag} is empty; leave it out, or give a value: is a variable of the shell not set?")
            if flag == "--config" and (path := Path(file or following).expanduser()).is_file():
                _check_sections(path, read_yaml(path), _parameter_types(chosen))
        arguments = _join_nested(arguments, chosen)
        program = _expands_home(program)
        with output_may_close():
            auto_cli(program, args=arguments, prog=_program_name(), as_positional=False, allow_abbrev=False)
    except Exception as error:
        no_memory = isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)
        if os.environ.get("WORLDMODEL_TRACEBACK") or not (no_memory or isinstance(error, USER_ERRORS)):
            raise
        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()  # so that the error begins a line
        advice = "not enough memory; make the model, the batch or the images smaller: " if no_memory else ""
        print(f"error: {advice}{' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


@contextmanager
def output_may_close() -> Iterator[None]:
    """Exit quietly if whoever reads the standard output closes it early, such as ``head``."""
    try:
        yield
        if sys.stdout is not None:  # as it is if it was closed before
            sys.stdout.flush()
    except BrokenPipeError:
        assert sys.stdout is not None  # it has been written to
        output = select.poll()
        output.register(sys.stdout, select.POLLERR)
        if not output.poll(0):  # another pipe has broken
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is not written at exit
        sys.exit(128 + signal.SIGPIPE)


def exit_on_sigterm() -> None:
    """Make SIGTERM raise SystemExit, so that open files and processes are closed. Call again after ``ray.init``."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(SIGTERM_EXIT_CODE))


def _program_name() -> str:
    """Return what the user typed before the flags, for usage lines: argparse would print ``__main__.py``."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if sys.argv[0].startswith("worldmodel ") or spec is None:
        return Path(sys.argv[0]).name
    return f"python -m {spec.name.removesuffix('.__main__')}"


def _files_first(arguments: list[str], program: Callable | None) -> list[str]:
    """Move ``--config`` before all other flags, after the subcommand; write out ``=true`` for flags without a value.

    Raises:
        ValueError: if such a flag is known to need another value.
    """
    files, rest = [], []
    for position, argument in enumerate(arguments):
        following = arguments[position + 1 : position + 2]
        alone = argument.startswith("--") and "=" not in argument and (not following or following[0].startswith("--"))
        if argument.startswith("--config") or arguments[position - 1 : position] == ["--config"]:
            files.append(argument)
        elif alone and argument not in SWITCHES:
            if not _may_be_true(argument, program):
                raise ValueError(f"{argument} needs a value")
            rest.append(f"{argument}=true")
        else:
            rest.append(argument)
    subcommand = 1 if rest and not rest[0].startswith("-") else 0
    return rest[:subcommand] + files + rest[subcommand:]


def _may_be_true(flag: str, program: Callable | None) -> bool:
    """Return whether a flag can be meant as ``=true``, which is so unless its type is known and not bool."""
    kind: Any = program
    for name in flag.removeprefix("--").split("."):
        kind = _parameter_types(kind).get(name)
    return kind is None or bool in (kind, *get_args(kind))


def _join_nested(arguments: list[str], program: Callable | None) -> list[str]:
    """Join flags for one dictionary in a dictionary, of which jsonargparse would keep only the last.

    ``--env_kwargs.config.a 1 --env_kwargs.config.b 2`` becomes ``--env_kwargs.config={"a": 1, "b": 2}``. Keys that a
    configuration file gives are kept.
    """
    joined: dict[str, dict[str, Any]] = {}
    files, rest, remaining = [], [], iter(arguments)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        name, keys = _split_nested(flag, program)
        if not keys:
            files += [value] if flag == "--config" and equals else []
            files += [argument] if rest[-1:] == ["--config"] else []
            rest.append(argument)
            continue
        values = joined.setdefault(name, _read_section(files, name))
        for key in keys[:-1]:
            values[key] = values[key] if isinstance(values.get(key), dict) else {}
            values = values[key]
        values[keys[-1]] = _parse_value(value if equals else next(remaining, ""))
    return rest + [f"--{name}={json.dumps(values, default=str)}" for name, values in joined.items()]


def _parse_value(text: str) -> Any:
    """Return what YAML makes of a flag's value, or the text itself if that is not YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _split_nested(flag: str, program: Callable | None) -> tuple[str, list[str]]:
    """Split a flag that goes into a dictionary in a dictionary into the latter's name and its keys."""
    kind: Any = program
    names = flag.removeprefix("--").split(".")
    for depth, name in enumerate(names, 1):
        kind = _parameter_types(kind).get(name)
        if dict in (get_origin(part) for part in (kind, *get_args(kind))):
            return ".".join(names[: depth + 1]), names[depth + 1 :]
    return flag, []


def _read_section(files: list[str], name: str) -> dict[str, Any]:
    """Return the dictionary of that dotted name in YAML files, of which later ones override earlier ones."""
    section: dict[str, Any] = {}
    for file in files:
        values = read_yaml(Path(file).expanduser())
        for key in name.split("."):
            values = values.get(key) if isinstance(values, dict) else None
        section |= values if isinstance(values, dict) else {}
    return section


def _expand(argument: str) -> str:
    return "--env_kwargs." + argument[len("--env.") :] if argument.startswith("--env.") else argument


def _expands_home(program: Callable | dict[str, Any]) -> Any:
    """Return programs that expand a ``~`` at the beginning of their arguments, which no shell does after ``=``."""
    if isinstance(program, dict):
        return {name: _expands_home(part) for name, part in program.items()}

    def expand(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: expand(part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(expand, value))
        if is_dataclass(value) and not isinstance(value, type):
            changed = {name: expand(part) for name, part in vars(value).items()}
            return value if changed == vars(value) else replace(value, **changed)
        return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value

    @wraps(program)
    def call(**arguments: Any) -> Any:
        return program(**expand(arguments))

    return call


def _check_sections(path: Path, values: Any, types: dict[str, Any], section: str = "") -> None:
    """Check that a YAML file has settings by name wherever a dataclass is expected.

    Raises:
        ValueError: naming the file and the section.
    """
    for name, value in values.items() if isinstance(values, dict) else ():
        kind = types.get(name)
        if is_dataclass(kind):
            if not isinstance(value, dict | str):  # the name of another file
                raise ValueError(
                    f"{path}: {section}{name} must be settings by name, got {value!r:.80}; or leave it out"
                )
            _check_sections(path, value, _parameter_types(kind), f"{section}{name}.")


def _parameter_types(kind: Any) -> dict[str, Any]:
    """Return the types of a program's parameters, or of a dataclass's fields, as far as they are known."""
    try:
        return get_type_hints(kind)
    except (NameError, TypeError):
        return {}
