"""The house rules that a machine can check."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [  # low to high; a file imports only from lines above its own, or from its own package below
    {f"worldmodel.{name}" for name in ("suggest", "tables", "files", "checks", "distributed", "muon")},
    {"worldmodel.models"},
    {f"worldmodel.{name}" for name in ("config", "episodes", "media", "env_wrappers")},
    {"worldmodel.checkpoint"},
    {f"worldmodel.{name}" for name in ("world_model", "training", "images", "metrics")},
    {"worldmodel.evaluation", "worldmodel.ray_train"},
    {"worldmodel.train", "worldmodel.experiments"},
    {f"worldmodel.{name}" for name in ("collect", "dream", "worlds", "sample", "evaluate", "release")},
    {"worldmodel.benchmarks"},
    {"worldmodel.benchmark"},
    {"envs"},
    {"agents"},
]
DOCSTRINGS = ("worldmodel", "worldmodel.experiments")  # all that these files hold
FILES = sorted(path for folder in ("worldmodel", "envs", "agents") for path in (ROOT / folder).rglob("*.py"))


def place(module: str) -> tuple[int, str]:
    """The layer of a module, and the entry of the table that says so."""
    for number, layer in enumerate(LAYERS):
        for entry in layer:
            if module == entry or module.startswith(entry + "."):
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


@pytest.mark.parametrize("path", FILES, ids=module)
def test_every_public_name_has_a_docstring(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body, f"{path} has none"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}: {node.name} has none"


@pytest.mark.slow
def test_importing_the_package_and_the_worlds_loads_nothing_heavy():
    heavy = ["torch", "vizdoom", "ray", "deepmind_lab"]
    code = f"import sys, worldmodel, envs, worldmodel.collect; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[]"


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
