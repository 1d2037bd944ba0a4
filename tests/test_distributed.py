"""Several workers learn what one process learns, and go on after what befalls them."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import PRIOR_SIZES, VQVAE_SIZES, train_config
from worldmodel import checkpoint
from worldmodel.codes import encoded
from worldmodel.core.dynamics import Batch, Dynamics
from worldmodel.core.vqvae import VQVAE
from worldmodel.data.store import EpisodeStore
from worldmodel.data.windows import FrameBatches, StepWindows, split
from worldmodel.training import fit

KINDS = ("vqvae", "prior", "blind")  # a blind prior leaves weights unused, which DDP must know


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def learn(kind: str, store: Path, vqvae_run: Path, run: Path, steps: int = 12) -> dict[str, torch.Tensor]:
    """Train for some steps, as one worker if torch.distributed is started, and return all weights."""
    torch.manual_seed(0)
    episodes = EpisodeStore(store)
    if kind == "vqvae":
        quantizer = replace(VQVAE_SIZES.quantizer, revive_every=5)
        model = VQVAE.from_config(replace(VQVAE_SIZES, variance=0.1, quantizer=quantizer))
        batches = FrameBatches(episodes, split(episodes)[0], 8, 0)
    else:
        codes = encoded(episodes, vqvae_run, torch.device("cpu"))
        context = 0 if kind == "blind" else PRIOR_SIZES.context
        sizes = replace(PRIOR_SIZES, codes=16, dim=8, grid=(6, 6), actions=3, noise=0.0, context=context)
        model, windows = Dynamics(sizes), StepWindows(codes, split(codes)[0], 4, 6, 0)
        batches = lambda *place: Batch(*windows(*place))  # noqa: E731
    run.mkdir(exist_ok=True)
    config = replace(train_config(steps), precision="float32", device="cpu")
    averaged = fit(model, batches, lambda network, step: {"seen": float(step)}, config, run)
    averages = {f"averaged.{name}": value.clone() for name, value in averaged.state_dict().items()}
    return {**model.state_dict(), **averages}


def work(rank: int, address: str, store: Path, vqvae_run: Path, folder: Path) -> None:
    """Be one of two workers, and leave all weights behind."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for kind in KINDS:
        checkpoint.write_tensors(folder / f"{kind}{rank}", learn(kind, store, vqvae_run, folder / kind))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def by_two(store: Path, vqvae_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers have learnt: a run of every kind, and all weights of both workers beside it."""
    folder = tmp_path_factory.mktemp("two")
    encoded(EpisodeStore(store), vqvae_run, torch.device("cpu"))
    address = f"file://{folder}/rendezvous"
    torch.multiprocessing.spawn(work, (address, store, vqvae_run, folder), nprocs=2)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_workers_have_equal_weights(kind, by_two):
    first, second = (checkpoint.read_tensors(by_two / f"{kind}{rank}") for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_two_workers_learn_what_one_process_learns_from_the_whole_batch(kind, by_two, store, vqvae_run, tmp_path):
    alone = learn(kind, store, vqvae_run, tmp_path / "run")
    for mine, other in zip(lines(tmp_path / "run"), lines(by_two / kind), strict=True):
        assert mine.pop("part") == other.pop("part")
        assert mine == pytest.approx(other, rel=1e-4)
    together = checkpoint.read_tensors(by_two / f"{kind}0")
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-4)
