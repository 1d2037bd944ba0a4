"""Command lines: files before flags, short forms, and mistakes that end in one line."""

import subprocess
import sys
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents.config import AgentConfig, NetworkConfig
from worldmodel import config
from worldmodel.checkpoint import read_config
from worldmodel.experiments.global_codes.config import GlobalCodesConfig
from worldmodel.experiments.likelihood.config import AutoencoderConfig
from worldmodel.experiments.speech.config import SpeechConfig
from worldmodel.models.config import DynamicsConfig, SpatialPriorConfig, VQVAEConfig
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.train_config import TrainConfig


@dataclass(frozen=True)
class Sizes:
    """Some sizes."""

    width: int = 1
    depth: int = 2


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
    config.run(program, ["--sizes.width", "5", "--config", str(first), "--config", str(second)])
    assert seen["sizes"] == Sizes(5, 30)
    assert seen["store"] == "a"


def test_a_flag_without_a_value_is_true(program, seen):
    config.run(program, ["--fast", "--store", "s"])
    assert seen["fast"] is True
    config.run(program, ["--store", "s", "--fast"])
    assert seen["fast"] is True


def test_env_settings_have_a_short_form_and_their_types(program, seen):
    config.run(program, ["--store=s", "--env.scenario", "my_way_home", "--env.fps", "30"])
    assert seen["env_kwargs"] == {"scenario": "my_way_home", "fps": 30}


def test_subcommands_take_files_too(program, seen, tmp_path):
    (tmp_path / "a.yaml").write_text("store: a\n")
    config.run({"first": program, "other": program}, ["first", "--fast", "--config", str(tmp_path / "a.yaml")])
    assert seen["store"] == "a"
    assert seen["fast"]


def test_a_mistake_is_one_line_and_exit_code_1(program, capsys):
    with pytest.raises(SystemExit) as exit:
        config.run(program, ["--store", "broken"])
    assert exit.value.code == 1
    assert capsys.readouterr().err == "error: the store is broken: give another\n"


@pytest.mark.parametrize("arguments", [["--stor", "s", "--unknown", "3"], ["--store=s", "--sizes.width", "wide"], []])
def test_a_flag_that_does_not_parse_is_exit_code_2(program, arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        config.run(program, arguments)
    assert exit.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_progress_bar_writes_little_into_a_file():
    code = (
        "import sys, time; from tqdm import tqdm; from worldmodel import config\n"
        "config.LOG_INTERVAL = float(sys.argv.pop())\n"
        "def program():\n"
        "    for _ in tqdm(range(60)):\n"
        "        time.sleep(0.02)\n"
        "config.run(program)"
    )
    lines = []
    for seconds in (10, 0.3):
        done = subprocess.run([sys.executable, "-c", code, str(seconds)], capture_output=True, text=True, check=True)
        lines.append(done.stderr.count("%|"))
    assert lines[0] == 0 and 2 <= lines[1] <= 6


def test_what_is_dumped_is_built_again():
    @dataclass(frozen=True)
    class Model:
        width: int = 3
        names: tuple[str, ...] = field(default=("a",))

    values = yaml.safe_load(config.dump(kind="model", model=Model(width=7)))
    assert values["kind"] == "model"
    assert config.build(Model, values["model"], Path("config.yaml")).width == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "a.yaml: a VQVAEConfig must be settings by name, got None"),
        ([1], r"a.yaml: a VQVAEConfig must be settings by name, got \[1\]"),
        ({"hidden_channels": "wide"}, "a.yaml: VQVAEConfig hidden_channels must be int, got 'wide'"),
        ({"hidden_channels": 1.5}, "VQVAEConfig hidden_channels must be int, got 1.5"),
        ({"hidden_channels": True}, "VQVAEConfig hidden_channels must be int, got True"),
        ({"data_variance": None}, "VQVAEConfig data_variance must be float, got None"),
        ({"hidden_channels": 0}, "a.yaml: model.hidden_channels must be 1 or more, got 0"),
        ({"quantizer": None}, "a.yaml: a QuantizerConfig must be settings by name, got None"),
        ({"quantizer": {"kind": "nope"}}, r"QuantizerConfig kind must be .*'nearest'.*, got 'nope'"),
        ({"quantizer": {1: 2}}, "unknown QuantizerConfig setting '1'"),
    ],
)
def test_a_damaged_section_is_named_with_its_file_and_key(values, message):
    with pytest.raises(ValueError, match=message):
        config.build(VQVAEConfig, values, Path("a.yaml"))


def test_lists_are_tuples_and_whole_numbers_floats():
    made = config.build(DynamicsConfig, {"grid": [6, 9], "token_noise": 0}, Path("a.yaml"))
    assert made.grid == (6, 9) and made.token_noise == 0


CONFIGS = (
    TrainConfig,
    VQVAEConfig,
    QuantizerConfig,
    DynamicsConfig,
    SpatialPriorConfig,
    GlobalCodesConfig,
    SpeechConfig,
    AutoencoderConfig,
    AgentConfig,
    NetworkConfig,
)
NUMBERS = [(kind, field) for kind in CONFIGS for field in fields(kind) if field.type in (int, float, "int", "float")]


@pytest.mark.parametrize(("kind", "field"), NUMBERS, ids=lambda part: getattr(part, "__name__", None) or part.name)
def test_no_setting_takes_a_negative_number_or_what_is_none(kind, field):
    for value in (-1, float("nan")):
        with pytest.raises(ValueError, match=rf"\.{field.name} must be"):
            kind(**{field.name: value})


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        (TrainConfig, {"learning_rate": 0.0}, r"train\.learning_rate must be more than 0, got 0\.0"),
        (TrainConfig, {"threads": 100_000}, r"train\.threads must be 1024 or less, got 100000"),
        (TrainConfig, {"seed": 2**41}, r"train\.seed must be from 0 to 1099511627775, got 2199023255552"),
        (TrainConfig, {"learning_rate": 1e300}, r"train\.learning_rate must be below 1e\+18, got 1e\+300"),
        (TrainConfig, {"decay_fraction": 1.5}, r"train\.decay_fraction must be in \[0, 1\], got 1\.5"),
        (VQVAEConfig, {"residual_channels": 0}, r"model\.residual_channels must be 1 or more, got 0"),
        (DynamicsConfig, {"token_noise": 2.0}, r"model\.token_noise must be in \[0, 1\], got 2\.0"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_range(kind, setting, message):
    with pytest.raises(ValueError, match=message):
        kind(**setting)


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in pairwise("abcdefghij")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, r"holds more than 100000 values"),
        ("a: &a [*a]\n", r"holds more than 100000 values"),
        ("[" * 600, r"recursion"),
        ("a: [1", r"while parsing"),
    ],
)
def test_a_yaml_file_that_is_damaged_or_endless_is_named(text, message, tmp_path, program, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"config.yaml cannot be read as YAML: .*{message}"):
        config.read_yaml(path)
    with pytest.raises(ValueError, match=r"config\.yaml cannot be read as YAML"):
        read_config(tmp_path)
    with pytest.raises(SystemExit, match="1"):
        config.run(program, ["--store", "s", "--config", str(path)])
    assert capsys.readouterr().err.startswith(f"error: {path} cannot be read as YAML")


def test_the_version_is_that_of_the_package(program, capsys):
    config.run(program, ["--version"])
    assert capsys.readouterr().out == f"worldmodel {version('worldmodel')}\n"


@pytest.mark.parametrize("arguments", [["--store="], ["--store", ""], ["--store=s", "--sizes.width", ""]])
def test_an_empty_value_is_refused_as_an_unset_variable_would_give_it(program, arguments, capsys):
    with pytest.raises(SystemExit, match="1"):
        config.run(program, arguments)
    assert "is empty; leave it out, or give a value: is a variable of the shell not set?" in capsys.readouterr().err


def test_an_error_of_several_lines_is_one_line(capsys):
    def program() -> None:
        """Fail."""
        raise ValueError("one\n  two\n    ^")

    with pytest.raises(SystemExit, match="1"):
        config.run(program, [])
    assert capsys.readouterr().err == "error: one two ^\n"
