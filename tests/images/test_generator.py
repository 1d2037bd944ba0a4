"""A spatial prior is trained on the codes of images, and generates images of the classes that it is asked for."""

import math
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import yaml
from tqdm import tqdm

from tests.conftest import VQVAE_SIZES, train_config
from tests.test_training import interrupt_after, lines
from worldmodel import checkpoint, cli, tensor_io
from worldmodel.episodes.store import EpisodeStore
from worldmodel.images import generator
from worldmodel.images.codes import EncodedImages, encode_images
from worldmodel.images.dataset import open_images
from worldmodel.images.generator import ImageGenerator
from worldmodel.models.config import SpatialPriorConfig
from worldmodel.sample import sample
from worldmodel.train.spatial_prior import spatial_prior
from worldmodel.train.vqvae import vqvae

pytestmark = pytest.mark.slow

SMALL = SpatialPriorConfig(hidden_channels=12, num_layers=3, dropout=0.1)


@pytest.fixture(autouse=True)
def same_chance() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def colored_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of images: red and yellow stripes, and blue and cyan ones, on black and green."""
    folder, random = tmp_path_factory.mktemp("colored"), np.random.default_rng(0)
    for number in range(40):
        label = ("blue", "red")[number % 2]
        picture = np.zeros((24, 24, 3), np.uint8)
        picture[..., [2 * (label == "blue"), 1]] = 255 * random.integers(0, 2, (1, 6, 2)).repeat(4, 1)
        (folder / label).mkdir(exist_ok=True)
        iio.imwrite(folder / label / f"{number:02d}.png", picture)
    return folder


@pytest.fixture(scope="module")
def tokenizer_run(colored_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "vqvae"
    train = replace(train_config(100), learning_rate=4e-3)
    vqvae(str(run), images=str(colored_images), model=VQVAE_SIZES, train=train, batch_size=8)
    assert lines(run)[-1]["codes_used"] > 4
    return run


def learn(tokenizer_run: Path, run: Path, steps: int = 6, **more) -> list[dict]:
    """Train a small prior; return its scores on held-out images."""
    train = replace(train_config(steps), learning_rate=1e-2)
    spatial_prior(str(tokenizer_run), str(run), model=SMALL, train=train, batch_size=8, **more)
    return [row for row in lines(run) if row["part"] == "held_out"]


@pytest.fixture(scope="module")
def prior_run(colored_images: Path, tokenizer_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "prior"
    learn(tokenizer_run, run, 60, images=str(colored_images))
    return run


def test_a_prior_learns_more_than_how_often_codes_come(prior_run):
    measured = [row for row in lines(prior_run) if row["part"] == "held_out"]
    assert measured[-1]["bits_per_code"] < 0.9 * measured[-1]["bits_per_code_unigram"]
    assert measured[-1]["bits_per_code"] < measured[-1]["bits_per_code_wrong_class"]
    assert iio.imread(prior_run / "pictures" / "0000060.png").shape == (4 * 24, 4 * 24, 3)
    settings = yaml.safe_load((prior_run / "config.yaml").read_text())
    assert settings["kind"] == "spatial_prior" and settings["data"]["classes"] == ["blue", "red"]
    assert checkpoint.load_spatial_prior(prior_run).config.grid == (6, 6)


def test_frames_of_a_store_have_no_classes_and_are_encoded_once(store, vqvae_run, tmp_path):
    measured = learn(vqvae_run, tmp_path / "run", store=str(store))
    assert "bits_per_code_wrong_class" not in measured[-1]
    assert checkpoint.load_spatial_prior(tmp_path / "run").config.num_classes == 0
    kept = EpisodeStore(store / "codes" / tensor_io.digest(vqvae_run))
    assert len(kept) == len(EpisodeStore(store))


def test_the_frames_of_several_stores_are_classes_and_are_encoded_once(store, vqvae_run, tmp_path):
    for name in ("far", "near"):
        shutil.copytree(store, tmp_path / "stores" / name, ignore=shutil.ignore_patterns("codes"))
    learn(vqvae_run, tmp_path / "run", images=str(tmp_path / "stores"))
    assert ImageGenerator.load(tmp_path / "run").classes == ("far", "near")
    pictures, network = open_images(tmp_path / "stores").train, checkpoint.load_vqvae(vqvae_run)
    codes, chosen = encode_images(pictures, vqvae_run, torch.device("cpu")), np.array([0, 300, 5])
    there = EpisodeStore(tmp_path / "stores" / "near" / "codes" / tensor_io.digest(vqvae_run))
    assert len(there) == len(EpisodeStore(store))
    assert np.array_equal(codes.read(chosen), network.encode(torch.from_numpy(pictures.read(chosen))))
    assert np.array_equal(codes.labels, pictures.labels)


@pytest.mark.parametrize("more", [{"classes": False}, {"num_samples": 3}], ids=str)
def test_classes_can_be_kept_from_it_and_targets_drawn(more, colored_images, tokenizer_run, tmp_path):
    measured = learn(tokenizer_run, tmp_path / "run", images=str(colored_images), **more)
    assert math.isfinite(measured[-1]["bits_per_code"])
    assert checkpoint.load_spatial_prior(tmp_path / "run").config.num_classes == (0 if "classes" in more else 2)


def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(
    colored_images, tokenizer_run, tmp_path, monkeypatch
):
    settings = {"images": str(colored_images), "num_samples": 2}
    learn(tokenizer_run, tmp_path / "whole", **settings)
    with monkeypatch.context() as patched:
        interrupt_after(5, patched)
        with pytest.raises(KeyboardInterrupt):
            learn(tokenizer_run, tmp_path / "parts", **settings)
    learn(tokenizer_run, tmp_path / "parts", **settings)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    whole, parts = (tensor_io.read_tensors(tmp_path / name / "train.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_another_vqvae_is_refused(store, vqvae_run, prior_run, colored_images):
    with pytest.raises(ValueError, match="predicts the codes of another VQ-VAE"):
        learn(vqvae_run, prior_run, images=str(colored_images))


def test_encoded_images_are_the_codes_of_the_images_here_and_in_another_process(colored_images, tokenizer_run):
    pictures, network = open_images(colored_images).train, checkpoint.load_vqvae(tokenizer_run)
    encoded = EncodedImages(pictures, network)
    before = len(pickle.dumps(encoded))
    chosen = np.array([5, 0, 7])
    there = network.encode(torch.from_numpy(pictures.read(chosen)))
    assert np.array_equal(encoded.read(chosen), there)
    assert len(pickle.dumps(encoded)) == before
    assert np.array_equal(pickle.loads(pickle.dumps(encoded)).read(chosen), there)
    draws = EncodedImages(pictures, network, num_samples=4, seed=1)
    assert draws.read(chosen).shape == (3, 4, 6, 6)
    assert np.array_equal(draws.read(chosen), pickle.loads(pickle.dumps(draws)).read(chosen))


def run_program(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "worldmodel.sample", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def test_drawing_shows_a_bar_of_its_images_if_asked(prior_run, capsys, monkeypatch):
    monkeypatch.setattr(tqdm, "__init__", cli.BAR)  # as in a terminal
    made = ImageGenerator.load(prior_run)
    made.generate(made.make_labels(3, 5), progress=True)
    shown = capsys.readouterr().err
    assert "sample:" in shown and "/15" in shown


def test_a_sheet_of_samples_is_written_and_its_classes_are_named(prior_run, tmp_path):
    done = run_program("--run", str(prior_run), "--grid", "3x5", "--out", str(tmp_path / "sheet.png"))
    assert done.returncode == 0, done.stderr
    assert iio.imread(tmp_path / "sheet.png").shape == (3 * 24, 5 * 24, 3)
    assert "15 images" in done.stdout and "from the top: blue, red, blue" in done.stdout
    assert done.stderr == "", "a bar of less than ten seconds is for terminals alone"


def test_the_colors_of_samples_are_those_of_their_class(prior_run):
    made = ImageGenerator.load(prior_run)
    pictures = made.generate(made.make_labels(2, 8)).float().mean((1, 2)).unflatten(0, (2, 8))  # (class, n, RGB)
    blue, red = (pictures[..., 2] - pictures[..., 0]).mean(1)
    assert blue > 20 and red < -20


def test_the_same_seed_gives_the_same_images_however_many_are_drawn_at_once(prior_run, monkeypatch):
    whole = ImageGenerator.load(prior_run).generate(torch.tensor([0, 1] * 5), seed=3)
    monkeypatch.setitem(generator.BATCH_SIZES, "cpu", 3)
    again = ImageGenerator.load(prior_run).generate(torch.tensor([0, 1] * 5), seed=3)
    assert torch.equal(whole, again)
    assert torch.equal(ImageGenerator.load(prior_run).generate(torch.tensor([0, 1]), seed=5), whole[2:4])
    assert not torch.equal(ImageGenerator.load(prior_run).generate(torch.tensor([0, 1]), seed=4), whole[:2])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"label": "rde"}, "unknown class 'rde': expected one of blue, red; did you mean 'red'"),
        ({"grid": "8"}, "--grid must be rows x columns such as 8x8, got 8"),
        ({"out": "sheet.gif"}, r"--out must end in \.png, got sheet\.gif"),
        ({"scale": 0}, "--scale must be 1 or more, got 0"),
        ({"temperature": -1.0}, "temperature must be a number of 0 or more, got -1"),
        ({"run": "nowhere"}, "nowhere holds no config.yaml"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_in_asking_for_samples_is_named(flags, message, prior_run, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sample(**{"run": str(prior_run), "grid": "1x1", "out": str(tmp_path / "sheet.png"), **flags})


def test_a_class_is_refused_by_a_prior_that_knows_none(store, vqvae_run, tmp_path):
    learn(vqvae_run, tmp_path / "run", store=str(store))
    with pytest.raises(ValueError, match="have no classes, got 'cat'; name none"):
        sample(str(tmp_path / "run"), "cat")
    with pytest.raises(ValueError, match="must be the run of a spatial_prior, it is that of a vqvae"):
        sample(str(vqvae_run))
    sample(str(tmp_path / "run"), grid="1x2", out=str(tmp_path / "sheet.png"), scale=2)
    assert iio.imread(tmp_path / "sheet.png").shape == (48, 96, 3)
