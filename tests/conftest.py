"""What the tests share: a tiny recorded world, and models trained on it for a moment."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.episodes.episode import Episode
from worldmodel.episodes.store import EpisodeStore, Schema
from worldmodel.experiments.speech.data import audio
from worldmodel.models.config import DynamicsConfig, VQVAEConfig
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.train.dynamics import dynamics
from worldmodel.train.vqvae import vqvae
from worldmodel.train_config import TrainConfig

VQVAE_SIZES = VQVAEConfig(
    hidden_channels=16, residual_channels=8, quantizer=QuantizerConfig(codebook_size=16, code_dim=8)
)
PRIOR_SIZES = DynamicsConfig(
    context_length=4,
    embed_dim=24,
    num_heads=2,
    num_layers=1,
    motion_channels=12,
    motion_layers=2,
    ar_channels=8,
    ar_layers=2,
)


def train_config(steps: int) -> TrainConfig:
    """A few steps that evaluate, save and log along the way."""
    return TrainConfig(steps=steps, warmup_steps=2, log_every=2, evaluate_every=4, ema_decay=0.5, threads=1)


def tones(folder: Path, rate: int = 4000) -> Path:
    """Two who say three things four times, and one more: tones that fall, rise or stay; returns their CSV file."""
    random, rows = np.random.default_rng(0), ["path,speaker,text,split"]
    for speaker, pitch in {"low": 200, "high": 600, "strange": 400}.items():  # hertz
        for text, slope in (("down", -0.3), ("level", 0.0), ("up", 0.3)):
            for number in range(4):
                time = np.arange(900 + 16 * number) / rate
                wave = 0.5 * np.sin(2 * np.pi * pitch * (1 + slope * time) * time) + 0.01 * random.normal(
                    size=len(time)
                )
                path = folder / speaker / f"{text}-{number}.wav"
                audio.save(path, wave.astype(np.float32), rate)
                path.with_suffix(".phn").write_text(f"0 450 aa\n450 {len(wave)} s\n")
                split = "unseen_speakers" if speaker == "strange" else "held_out" if number == 3 else "train"
                rows.append(f"{path.relative_to(folder)},{speaker},{text},{split}")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(rows) + "\n")
    return manifest


def sliding_stripes(seed: int, steps: int = 20) -> Episode:
    """A 24×24 picture of stripes that actions 0, 1 and 2 shift left, leave and shift right; action 2 is rewarded."""
    random = np.random.default_rng(seed)
    picture = random.integers(0, 256, (1, 6, 3), np.uint8).repeat(4, 1).repeat(24, 0)
    actions, frames = random.integers(0, 3, steps), [picture]
    for action in actions:
        frames.append(np.roll(frames[-1], 4 * (action - 1), 1))
    return Episode(np.stack(frames), actions, (actions == 2).astype(float), bool(seed % 2), not seed % 2, seed)


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist take files in the order below; its own, by number of tests, leaves long ones for last."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts Ray by its fixture, and put the files that do first, as they take the longest."""
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)
            item.add_marker(pytest.mark.slow)
    with_ray = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in with_ray)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """One Ray of two cores for all tests of a file: its address."""
    ray = pytest.importorskip("ray")
    context = ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve short episodes; number 9 is held out."""
    path = tmp_path_factory.mktemp("stripes") / "store"
    made = EpisodeStore.create(path, Schema((24, 24, 3), "uint8", ("left", "stay", "right"), "stripes"))
    for seed in range(12):
        made.append(sliding_stripes(seed))
    return path


@pytest.fixture(scope="session")
def vqvae_run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "vqvae"
    vqvae(str(run), str(store), model=VQVAE_SIZES, train=train_config(12), batch_size=8)
    return run


@pytest.fixture(scope="session")
def world_run(store: Path, vqvae_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole world: a prior's run, with the VQ-VAE in it."""
    run = tmp_path_factory.mktemp("runs") / "world"
    dynamics(str(store), str(vqvae_run), str(run), PRIOR_SIZES, train_config(8), batch_size=2, seq_length=6)
    return run
