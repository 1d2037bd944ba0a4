"""Several workers learn what one process learns, and go on after what befalls them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import PRIOR_SIZES, VQVAE_SIZES, train_config
from worldmodel import tensor_io
from worldmodel.episodes.encode import encode_store
from worldmodel.episodes.segments import SegmentSampler, split_held_out
from worldmodel.episodes.store import EpisodeStore
from worldmodel.images.codes import encode_images
from worldmodel.images.dataset import ImageBatches
from worldmodel.images.sources import FrameImages
from worldmodel.models.config import SpatialPriorConfig
from worldmodel.models.dynamics import Batch, Dynamics
from worldmodel.models.spatial_prior import SpatialPrior
from worldmodel.models.vqvae import VQVAE
from worldmodel.train.spatial_prior import read_code_batch
from worldmodel.training import fit

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parent.parent
STEPS = 60
KINDS = ("vqvae", "dynamics", "no_context", "spatial_prior")  # a blind prior leaves weights unused, which DDP must know


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def learn(kind: str, store: Path, vqvae_run: Path, run: Path, steps: int = 12) -> dict[str, torch.Tensor]:
    """Train for some steps, as one worker if torch.distributed is started, and return all weights."""
    torch.manual_seed(0)
    episodes = EpisodeStore(store)
    if kind == "vqvae":
        quantizer = replace(VQVAE_SIZES.quantizer, dead_code_reset_every=5)
        model = VQVAE.from_config(replace(VQVAE_SIZES, data_variance=0.1, quantizer=quantizer))
        batches = ImageBatches(FrameImages([(episodes, split_held_out(episodes)[0])]), 8, 0)
    elif kind == "spatial_prior":
        codes = encode_images(FrameImages([(episodes, split_held_out(episodes)[0])]), vqvae_run, torch.device("cpu"))
        model = SpatialPrior(
            SpatialPriorConfig(
                codebook_size=16, grid=(6, 6), num_classes=2, code_dim=8, hidden_channels=8, num_layers=3
            )
        )
        order = ImageBatches(codes, 8, 0)
        batches = lambda *place: read_code_batch(codes, order.sample_indices(*place))  # noqa: E731
    else:
        codes = encode_store(episodes, vqvae_run, torch.device("cpu"))
        context = 0 if kind == "blind" else PRIOR_SIZES.context_length
        sizes = replace(
            PRIOR_SIZES,
            codebook_size=16,
            code_dim=8,
            grid=(6, 6),
            num_actions=3,
            token_noise=0.0,
            context_length=context,
        )
        model, windows = Dynamics(sizes), SegmentSampler(codes, split_held_out(codes)[0], 4, 6, 0)
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
        tensor_io.write_tensors(folder / f"{kind}{rank}", learn(kind, store, vqvae_run, folder / kind))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def by_two(store: Path, vqvae_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers have learnt: a run of every kind, and all weights of both workers beside it."""
    folder = tmp_path_factory.mktemp("two")
    encode_store(EpisodeStore(store), vqvae_run, torch.device("cpu"))
    address = f"file://{folder}/rendezvous"
    torch.multiprocessing.spawn(work, (address, store, vqvae_run, folder), nprocs=2)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_workers_have_equal_weights(kind, by_two):
    first, second = (tensor_io.read_tensors(by_two / f"{kind}{rank}") for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_two_workers_learn_what_one_process_learns_from_the_whole_batch(kind, by_two, store, vqvae_run, tmp_path):
    alone = learn(kind, store, vqvae_run, tmp_path / "run")
    for mine, other in zip(lines(tmp_path / "run"), lines(by_two / kind), strict=True):
        assert mine.pop("part") == other.pop("part")
        assert mine == pytest.approx(other, rel=1e-4)
    together = tensor_io.read_tensors(by_two / f"{kind}0")
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-4)


@pytest.fixture
def training(request: pytest.FixtureRequest, store: Path, vqvae_run: Path, cluster: str, tmp_path: Path):
    """Workers that train a prior by the command line, on a store that may be spoilt; they have saved once."""
    shutil.copytree(store, tmp_path / "store")
    encode_store(EpisodeStore(tmp_path / "store"), vqvae_run, torch.device("cpu"))
    command = [
        sys.executable,
        "-m",
        "worldmodel.train",
        "dynamics",
        "--address",
        cluster,
        "--workers",
        str(request.param),
    ]
    command += ["--store", "store", "--vqvae", str(vqvae_run), "--run", "run", "--batch_size", "2", "--seq_length", "6"]
    for name in ("context_length", "embed_dim", "num_heads", "motion_channels", "ar_channels", "ar_layers"):
        command += [f"--model.{name}", str(getattr(PRIOR_SIZES, name))]
    command += ["--train.steps", str(STEPS), "--train.log_every", "10", "--train.evaluate_every", "20"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)
    while not (tmp_path / "run" / "train.safetensors").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait()


def reached(run: Path) -> int:
    """The step of the last save; no step was logged twice on the way to it."""
    steps = [(line["step"], line["part"]) for line in lines(run)]
    assert len(steps) == len(set(steps))
    assert [step for step, part in steps if part == "train"] == list(range(10, steps[-1][0] + 1, 10))
    return tensor_io.read_step(run / "train.safetensors")


@pytest.mark.parametrize("training", [2], indirect=True)
def test_a_run_whose_worker_is_killed_goes_on_from_the_last_save_to_its_end(training, tmp_path):
    os.kill(next(workers_of(os.getpid())), signal.SIGKILL)
    assert reached(tmp_path / "run") < STEPS
    out, errors = training.communicate(timeout=300)
    assert training.returncode == 0, errors
    assert "a worker failed; restarting all workers from step" in out
    assert reached(tmp_path / "run") == STEPS
    assert not list((tmp_path / "run").glob("ray*"))


@pytest.mark.parametrize("training", [1], indirect=True)
def test_what_a_worker_raises_is_one_line_of_error(training, tmp_path):
    for path in (tmp_path / "store" / "codes").rglob("0*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    _, errors = training.communicate(timeout=300)
    assert training.returncode == 1
    assert re.fullmatch(r"error: .*0000\d\d\.safetensors is damaged.*", errors.splitlines()[-1])
    assert "Traceback" not in errors


def workers_of(parent: int) -> Iterator[int]:
    """The processes of Ray Train's workers among the descendants of a process."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    for pid, above, name in (row.split(None, 2) for row in table.splitlines()):
        if int(above) == parent:
            yield from [int(pid)] if name.startswith("ray::RayTrainWorker") else workers_of(int(pid))


def test_one_process_never_loads_ray(store, tmp_path):
    code = (
        "import sys; from worldmodel import cli; from worldmodel.train.vqvae import vqvae; cli.run(vqvae); "
        "print('ray' in sys.modules)"
    )
    flags = [
        "--store",
        str(store),
        "--run",
        str(tmp_path / "run"),
        "--model.hidden_channels",
        "16",
        "--train.steps",
        "1",
    ]
    done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
