"""The training loop in several workers at once, under Ray Train."""

import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from textwrap import shorten

from torch import nn
from tqdm import tqdm

from worldmodel import checkpoint
from worldmodel.config import heed_sigterm
from worldmodel.training import Batches, Evaluation, TrainConfig, fit

RESTARTS = 3  # without a save between them, before the run gives up
MISTAKES = (ValueError, OSError, ImportError, FloatingPointError)  # raised by a worker, they would be raised again


def fit_on_workers(
    model: nn.Module,
    batches: Batches,
    evaluate: Evaluation,
    config: TrainConfig,
    run: Path,
    workers: int,
    gpus: int = 0,
    address: str = "",
) -> None:
    """Run :func:`fit` in several workers, which talk by gloo on CPUs and by NCCL on GPUs.

    When one dies, all start again from the last save. ``run`` and what ``batches`` reads must be absolute paths that
    all machines of a cluster share.

    Args:
        workers: how many.
        gpus: of each worker.
        address: of a running Ray cluster; empty starts one here.

    Raises:
        ValueError: if there are too few CPUs or GPUs, or the batch cannot be divided among the workers.
        ChildProcessError: if workers die again and again.
        Exception: one of MISTAKES that a worker raised.
    """
    device = "cuda" if gpus else "cpu"
    if config.device not in ("auto", device):
        raise ValueError(f"--train.device {config.device} does not go with --gpus_per_worker {gpus}")
    config = replace(config, device=device)
    batches(0, 0, workers)  # what is wrong with them is said before anything is started
    os.environ |= {"RAY_TRAIN_V2_ENABLED": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")  # a busy machine takes more than 60
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    def learn() -> None:
        fit(model, batches, evaluate, config, run)

    each, scratch, saved = {"CPU": 1, "GPU": gpus}, run / f"ray-{os.getpid()}", run / "train.safetensors"
    trainer = TorchTrainer(
        learn,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus > 0, resources_per_worker=each),
        run_config=RunConfig(storage_path=str(scratch), failure_config=FailureConfig(controller_failure_limit=0)),
    )
    before, failures = -1, 0
    with ThreadPoolExecutor(1) as pool:  # in the main thread Ray would take Control-C for itself
        try:
            start = {"address": address} if address else {"address": "local", "num_cpus": workers}
            while True:  # not Ray's own max_failures, which would also repeat what raised one of MISTAKES
                ray.init(**start, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
                heed_sigterm()
                there = ray.cluster_resources()
                for kind, number in each.items():
                    if there.get(kind, 0) < workers * number:
                        need = f"{workers * number} {kind}s, Ray has {there.get(kind, 0):.0f}"
                        raise ValueError(f"{workers} workers need {need}; use fewer --workers, or another --address")
                try:
                    return _watch(pool.submit(trainer.fit), run, config.steps)
                except TrainingFailedError as error:
                    raised = getattr(error, "worker_failures", {}) or {0: error}
                    for cause in raised.values():
                        if isinstance(cause, MISTAKES):
                            raise cause from error
                    reached = checkpoint.read_step(saved) if saved.exists() else 0
                    before, failures = reached, failures + 1 if reached == before else 1
                    if failures > RESTARTS:
                        causes = "; ".join(shorten(f"worker {rank}: {cause}", 300) for rank, cause in raised.items())
                        raise ChildProcessError(f"{failures} failures after step {reached}: {causes}") from error
                    print(f"a worker failed; all start again from step {reached}")
                ray.shutdown()  # a failed attempt may leave a placement group that keeps the next one waiting
        finally:
            ray.shutdown()
            shutil.rmtree(scratch, ignore_errors=True)


def _watch(training: Future, run: Path, steps: int) -> None:
    """Wait for the end, and show how far the metrics of a run have come."""
    with tqdm(total=steps, unit="step", smoothing=0.05) as bar:
        while training in wait([training], timeout=1).not_done:
            text = (run / "metrics.jsonl").read_text("utf-8") if (run / "metrics.jsonl").exists() else ""
            for row in [json.loads(line) for line in text.splitlines()[-2:] if line.endswith("}")]:
                bar.update(row["step"] - bar.n)
                if "loss" in row:
                    bar.set_postfix(loss=f"{row['loss']:.4f}")
    training.result()
