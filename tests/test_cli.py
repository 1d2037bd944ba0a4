"""Command lines: files before flags, short forms, and mistakes that end in one line."""

import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from worldmodel import cli


@dataclass(frozen=True)
class Sizes:
    """Some sizes."""

    width: int = 1
    depth: int = 2
    name: str = ""


@pytest.fixture
def seen() -> dict[str, Any]:
    return {}


@pytest.fixture
def program(seen):
    def program(store: str, sizes: Sizes = Sizes(), env_kwargs: dict[str, Any] = {}, fast: bool = False) -> None:
        """A program."""
        if store == "broken":
            raise ValueError("the store is broken: give another")
        seen.update(store=store, sizes=sizes, env_kwargs=env_kwargs, fast=fast)

    return program


def test_flags_win_over_files_wherever_they_stand_and_later_files_over_earlier(program, seen, tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("sizes: {width: 10, depth: 20}\nstore: a\n")
    second.write_text("sizes: {depth: 30}\n")
    cli.run(program, ["--sizes.width", "5", "--config", str(first), "--config", str(second)])
    assert seen["sizes"] == Sizes(5, 30)
    assert seen["store"] == "a"


def test_a_flag_without_a_value_is_true(program, seen):
    cli.run(program, ["--fast", "--store", "s"])
    assert seen["fast"] is True
    cli.run(program, ["--store", "s", "--fast"])
    assert seen["fast"] is True


@pytest.mark.parametrize("flag", ["--store", "--sizes.width"])
def test_a_flag_that_needs_a_value_is_not_true(flag, program, capsys):
    for arguments in ([flag, "--fast"], ["--fast", flag]):
        with pytest.raises(SystemExit, match="1"):
            cli.run(program, arguments)
        assert capsys.readouterr().err == f"error: {flag} needs a value\n"
    with pytest.raises(SystemExit, match="1"):
        cli.run({"first": program}, ["first", flag])
    assert capsys.readouterr().err == f"error: {flag} needs a value\n"
    cli.run(program, ["--store=true", "--env.loud"])  # of an environment, nothing is known


def test_a_home_is_expanded_in_flags_and_files(program, seen, tmp_path):
    (tmp_path / "a.yaml").write_text("store: ~/a\nenv_kwargs: {maps: ~/maps}\n")
    cli.run(program, ["--config", str(tmp_path / "a.yaml")])
    assert (seen["store"], seen["env_kwargs"]) == (str(Path.home() / "a"), {"maps": str(Path.home() / "maps")})
    cli.run(program, ["--store=~/b", "--sizes.name=~/c", "--env.maps=[~/d]"])
    assert (seen["store"], seen["sizes"].name) == (str(Path.home() / "b"), str(Path.home() / "c"))
    assert seen["env_kwargs"] == {"maps": [str(Path.home() / "d")]}


def test_a_section_can_be_a_file_of_its_own(program, seen, tmp_path):
    (tmp_path / "sizes.yaml").write_text("width: 7\n")
    (tmp_path / "a.yaml").write_text(f"store: s\nsizes: {tmp_path / 'sizes.yaml'}\n")
    cli.run(program, ["--config", str(tmp_path / "a.yaml")])
    assert seen["sizes"] == Sizes(7)


@pytest.mark.parametrize("text", ["sizes:\n", "sizes: 5\n", "sizes: [1]\n"])
def test_a_file_must_have_settings_by_name_where_a_dataclass_is_expected(text, program, tmp_path, capsys):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit, match="1"):
        cli.run(program, ["--store", "s", "--config", str(path)])
    assert capsys.readouterr().err.startswith(f"error: {path}: sizes must be settings by name, got ")


def test_a_damaged_file_is_named(program, tmp_path, capsys):
    path = tmp_path / "a.yaml"
    path.write_text("a: [1")
    with pytest.raises(SystemExit, match="1"):
        cli.run(program, ["--store", "s", "--config", str(path)])
    assert capsys.readouterr().err.startswith(f"error: {path} cannot be read as YAML")


def test_env_settings_have_a_short_form_and_their_types(program, seen):
    cli.run(program, ["--store=s", "--env.scenario", "my_way_home", "--env.fps", "30"])
    assert seen["env_kwargs"] == {"scenario": "my_way_home", "fps": 30}


def test_settings_within_a_setting_are_all_kept(program, seen, tmp_path):
    flags = ["--env.config.hud", "true", "--env.config.fov=90", "--env.config.sky.color", "red", "--env.level", "a"]
    cli.run(program, ["--store=s", *flags])
    assert seen["env_kwargs"] == {"level": "a", "config": {"hud": True, "fov": 90, "sky": {"color": "red"}}}
    (tmp_path / "a.yaml").write_text("store: a\nenv_kwargs: {level: b, config: {fov: 60, music: false}}\n")
    cli.run(program, [*flags[:3], "--config", str(tmp_path / "a.yaml")])
    assert seen["env_kwargs"] == {"level": "b", "config": {"hud": True, "fov": 90, "music": False}}
    cli.run(program, ["--store=s", "--env.config.map", "[a", "--env.config.day=2026-01-01"])
    assert seen["env_kwargs"] == {"config": {"map": "[a", "day": "2026-01-01"}}
    cli.run(program, ["--store=s", "--env.config.sky", "blue", "--env.config.sky.color", "red"])
    assert seen["env_kwargs"] == {"config": {"sky": {"color": "red"}}}


def test_subcommands_take_files_too(program, seen, tmp_path):
    (tmp_path / "a.yaml").write_text("store: a\n")
    cli.run({"first": program, "other": program}, ["first", "--fast", "--config", str(tmp_path / "a.yaml")])
    assert seen["store"] == "a"
    assert seen["fast"]


def test_a_mistake_is_one_line_and_exit_code_1(program, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.run(program, ["--store", "broken"])
    assert exit.value.code == 1
    assert capsys.readouterr().err == "error: the store is broken: give another\n"


@pytest.mark.parametrize("arguments", [["--stor", "s", "--unknown", "3"], ["--store=s", "--sizes.width", "wide"], []])
def test_a_flag_that_does_not_parse_is_exit_code_2(program, arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.run(program, arguments)
    assert exit.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_progress_bar_writes_little_into_a_file():
    code = (
        "import sys, time; from tqdm import tqdm; from worldmodel import cli\n"
        "cli.LOG_INTERVAL = float(sys.argv.pop())\n"
        "def program():\n"
        "    for _ in tqdm(range(60)):\n"
        "        time.sleep(0.02)\n"
        "cli.run(program)"
    )
    lines = []
    for seconds in (10, 0.3):
        done = subprocess.run([sys.executable, "-c", code, str(seconds)], capture_output=True, text=True, check=True)
        lines.append(done.stderr.count("%|"))
    assert lines[0] == 0 and 2 <= lines[1] <= 6


def test_the_version_is_that_of_the_package(program, capsys):
    cli.run(program, ["--version"])
    assert capsys.readouterr().out == f"worldmodel {version('worldmodel')}\n"


@pytest.mark.parametrize("arguments", [["--store="], ["--store", ""], ["--store=s", "--sizes.width", ""]])
def test_an_empty_value_is_refused_as_an_unset_variable_would_give_it(program, arguments, capsys):
    with pytest.raises(SystemExit, match="1"):
        cli.run(program, arguments)
    assert "is empty; leave it out, or give a value: is a variable of the shell not set?" in capsys.readouterr().err


def test_an_error_of_several_lines_is_one_line(capsys):
    def program() -> None:
        """Fail."""
        raise ValueError("one\n  two\n    ^")

    with pytest.raises(SystemExit, match="1"):
        cli.run(program, [])
    assert capsys.readouterr().err == "error: one two ^\n"


def test_too_little_memory_is_one_line_and_other_errors_of_torch_are_not_hidden(capsys):
    def program(text: str) -> None:
        """Fail."""
        raise RuntimeError(text)

    with pytest.raises(SystemExit, match="1"):
        cli.run(program, ["--text", "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"])
    assert capsys.readouterr().err.startswith(
        "error: not enough memory; make the model, the batch or the images smaller"
    )
    with pytest.raises(RuntimeError, match="shapes"):
        cli.run(program, ["--text", "shapes"])


@pytest.mark.parametrize("program", ["-m worldmodel --help", "-m worldmodel --version", "-m worldmodel.worlds"])
def test_a_reader_that_closes_the_output_early_is_no_error(program):
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    done = subprocess.run([sys.executable, *program.split()], stdout=reader.stdin, stderr=subprocess.PIPE, text=True)
    reader.stdin.close()
    assert (done.stderr, done.returncode) == ("", 128 + signal.SIGPIPE)


def test_a_program_runs_without_a_standard_output():
    code = "import os, subprocess, sys; os.close(1); sys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))"
    done = subprocess.run([sys.executable, "-c", code, "-m", "worldmodel.worlds"], stderr=subprocess.PIPE, text=True)
    assert (done.stderr, done.returncode) == ("", 0)
