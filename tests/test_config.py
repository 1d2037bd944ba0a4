"""Configurations: what is dumped is built again, and mistakes are named with their file and setting."""

from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path

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


def test_keys_of_other_types_and_merged_ones_are_not_twice(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a {x: 1}\nb: &b {y: 2}\n1: one\n'1': text\nc: {<<: *a, <<: *b}\n")
    assert config.read_yaml(tmp_path / "a.yaml")[1] == "one"


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
        ("a: 1\nb: {c: 1, c: 2}", r"it has 'c' twice"),
    ],
)
def test_a_yaml_file_that_is_damaged_or_endless_is_named(text, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"config.yaml cannot be read as YAML: .*{message}"):
        config.read_yaml(path)
    with pytest.raises(ValueError, match=r"config\.yaml cannot be read as YAML"):
        read_config(tmp_path)
