"""The house rules that a machine can check."""

import ast
import inspect
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints
from unittest.mock import patch

import docstring_parser
import pytest

import worldmodel
from worldmodel import cli
from worldmodel.__main__ import PROGRAMS

ROOT = Path(__file__).parent.parent
LAYERS = [  # low to high; a file imports only from lines above its own, or from its own package
    "worldmodel.{baselines,checks,distributed,env_wrappers,files,muon,renamed,run_kind,splits,stats,suggest,tables}",
    "worldmodel.{action_script,config,media,models,shipped,tensor_io}",
    "worldmodel.cli",
    "worldmodel.{checkpoint,metrics,ray_cluster,train_config}",
    "worldmodel.{episodes,training}",
    "worldmodel.{images,ray_train,world_model}",
    "worldmodel.{evaluation,player,train}",
    "worldmodel.experiments",
    "worldmodel.benchmarks",
    "worldmodel.{__main__,collect,dream,play,worlds,sample,evaluate,benchmark,release}",
    "envs",
    "agents",
]
DOCSTRINGS = ("worldmodel", "worldmodel.experiments")  # all that these files hold
FILES = sorted(path for folder in ("worldmodel", "envs", "agents") for path in (ROOT / folder).rglob("*.py"))


def place(module: str) -> tuple[int, str]:
    """The layer of a module, and the package or module of that layer that it is or is part of."""
    head, _, names = module.partition(".")
    entry = f"{head}.{names.split('.')[0]}" if head == "worldmodel" else head
    for number, layer in enumerate(LAYERS):
        package, _, entries = layer.rstrip("}").partition(".{")
        if entry in ([f"{package}.{name}" for name in entries.split(",")] if entries else [package]):
            return number, entry
    raise AssertionError(f"{module} stands in no layer of tests/test_architecture.py")


def imports(path: Path) -> set[str]:
    """The modules of ours that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            is_package = (ROOT / node.module.replace(".", "/")).is_dir()
            found |= inner if is_package and node.module == "worldmodel" else {node.module}
    return {name for name in found if name.split(".")[0] in ("worldmodel", "envs", "agents")}


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", [path for path in FILES if module(path) not in DOCSTRINGS], ids=module)
def test_imports_flow_one_way(path):
    layer, entry = place(module(path))
    for name in imports(path):
        below, other = place(name)
        assert below < layer or other == entry, f"{module(path)} must not import {name}"


def test_nothing_imports_a_program():
    programs = {module(path) for path in FILES if "\nif __name__ ==" in path.read_text()}
    assert len(programs) > 12
    for path in FILES:
        assert path.name == "__main__.py" or not imports(path) & programs, f"{path} imports a program"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_every_public_name_has_a_docstring(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body, f"{path} has none"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}: {node.name} has none"


@pytest.mark.slow
def test_importing_the_package_or_an_environment_loads_nothing_heavy():
    heavy = ["torch", "numpy", "gymnasium", "vizdoom", "ray", "deepmind_lab"]
    for names, loaded in {
        "worldmodel, worldmodel.shipped": [],
        "envs, worldmodel.collect": ["numpy", "gymnasium"],
    }.items():
        code = f"import sys, {names}; print([m for m in {heavy} if m in sys.modules])"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
        assert result.stdout.strip() == str(loaded)


def test_the_public_names_are_those_of_the_modules():
    for name in worldmodel.__all__:
        assert getattr(worldmodel, name) and name in dir(worldmodel)
    assert worldmodel.load("lab-seekavoid").run.name == "lab-seekavoid"
    with pytest.raises(AttributeError, match="has no attribute 'WorldModle'"):
        worldmodel.WorldModle  # noqa: B018


def functions(module: str) -> dict[str, Callable]:
    """The functions that a program runs, by subcommand."""
    taken = []
    with patch.object(cli, "run", lambda program, *_: taken.append(program)), patch.object(sys, "argv", [module]):
        runpy.run_module(module, run_name="__main__")
    return taken[0] if isinstance(taken[0], dict) else {"": taken[0]}


def parameters(owner: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and descriptions of a program's parameters, and of the fields of those that are dataclasses."""
    described = {entry.arg_name: entry.description or "" for entry in docstring_parser.parse(owner.__doc__).params}
    hints = get_type_hints(owner)
    names = [field.name for field in fields(owner)] if is_dataclass(owner) else inspect.signature(owner).parameters
    for name in names:
        yield f"{prefix}{name}", described.get(name, "")
        if is_dataclass(hints[name]):
            yield from parameters(hints[name], f"{prefix}{name}.")


BEGINNINGS = ("of", "that", "which", "in", "it", "its", "them", "their", "theirs", "such", "same", "as", "to")


@pytest.mark.parametrize("name", sorted({module for module, _ in PROGRAMS.values()}))
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_every_line_of_help_names_its_subject(name):
    for command, function in functions(name).items():
        assert function.__doc__, f"{name} {command} has no description"
        for parameter, line in parameters(function):
            words = re.findall(r"[\w']+", line.lower())
            good = len(words) > 1 and words[0] not in BEGINNINGS and line.endswith(".")
            assert good, f"{name} {command} --{parameter}: {line!r}"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({module for module, _ in PROGRAMS.values()}))
def test_help_is_quick_because_it_loads_no_torch(name):
    """A second on an idle core; torch alone takes two."""
    commands = [[command] for command in functions(name) if command] or [[]]
    for command in commands:
        code = f"""import runpy, sys
sys.argv = {[name, *command, "--help"]}
try:
    runpy.run_module({name!r}, run_name="__main__")
except SystemExit:
    print("loaded", "torch" in sys.modules)
"""
        result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert result.stdout.endswith("loaded False\n"), result.stdout[-300:] + result.stderr[-300:]


README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(
    r"python -m ((?:worldmodel|agents)[\w.]+)( --loop| [a-z_]+)?([^\n`|]*)", README
)  # module, subcommand, the rest


def run(module: str, *arguments: str) -> None:
    """Run a program as ``python -m`` does, in this process, which has the imports behind it."""
    with patch.object(sys, "argv", [module, *arguments]), pytest.raises(SystemExit) as stopped:
        runpy.run_module(module, run_name="__main__")
    assert not stopped.value.code, stopped.value.code


def test_the_readme_names_only_files_that_exist():
    for path in set(re.findall(r"(?:configs|tests|worldmodel|envs|agents|docs)/[\w/.-]+\.\w+", README)):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("program", sorted({(name, part.strip()) for name, part, _ in COMMANDS}), ids=" ".join)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_the_readme_names_only_programs_and_flags_that_exist(program, capsys):
    flags = {
        flag for name, part, rest in COMMANDS if (name, part.strip()) == program for flag in re.findall(r"--\w+", rest)
    }
    run(*filter(None, program), "--help")
    known = capsys.readouterr().out
    assert flags <= set(re.findall(r"--\w+", known)), program


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.slow
def test_every_configuration_is_understood_by_the_command_in_its_header(path, monkeypatch):
    program = re.match(r"# python -m (.*)\n", path.read_text())[1].split()
    assert str(path.relative_to(ROOT)) in program
    monkeypatch.chdir(ROOT)
    run(*program, "--print_config")
