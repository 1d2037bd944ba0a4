"""Distributed training with Ray Train."""

import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from textwrap import shorten

from tqdm import tqdm

from worldmodel import ray_cluster, tensor_io
from worldmodel.train_config import TrainConfig
from worldmodel.training import BatchFunction, EvaluateFunction, M, fit

MAX_RESTARTS = 3  # without a checkpoint between them
PERMANENT_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)  # a restart would raise them again


def fit_on_workers(
    model: M,
    batches: BatchFunction,
    evaluate: EvaluateFunction[M],
    config: TrainConfig,
    run: Path,
    num_workers: int,
    gpus_per_worker: int = 0,
    address: str = "",
) -> None:
    """Run :func:`fit` in this process (0 workers) or in several, which communicate by gloo on CPUs, NCCL on GPUs.

    If a worker dies, all restart from the last checkpoint. ``run`` and the files that ``batches`` reads must be
    absolute paths shared by all machines of the cluster.

    Args:
        address: address of a running Ray cluster; empty starts a local one.

    Raises:
        ValueError: if there are too few CPUs or GPUs, or the workers cannot divide the batch evenly.
        ChildProcessError: if workers die more than MAX_RESTARTS times without a checkpoint in between.
        Exception: one of PERMANENT_ERRORS that a worker raised.
    """
    if not num_workers:
        fit(model, batches, evaluate, config, run)
        return
    device = "cuda" if gpus_per_worker else "cpu"
    if config.device not in ("auto", device):
        raise ValueError(f"--train.device {config.device} does not go with --gpus_per_worker {gpus_per_worker}")
    config = replace(config, device=device)
    batches(0, 0, num_workers)  # raise errors in them before Ray starts
    os.environ |= {"RAY_TRAIN_V2_ENABLED": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")  # 60 by default
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    def train() -> None:
        fit(model, batches, evaluate, config, run)

    resources, checkpoint = {"CPU": 1, "GPU": gpus_per_worker}, run / "train.safetensors"
    scratch = run / f"ray-{os.getpid()}"
    trainer = TorchTrainer(
        train,
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(storage_path=str(scratch), failure_config=FailureConfig(controller_failure_limit=0)),
    )
    last_step, failures = -1, 0
    with ThreadPoolExecutor(1) as pool:  # in the main thread, Ray would handle Control-C itself
        try:
            while True:  # Ray's max_failures would also retry PERMANENT_ERRORS
                ray_cluster.connect(num_workers, address, resources)
                try:
                    return _show_progress(pool.submit(trainer.fit), run, config.steps)
                except TrainingFailedError as error:
                    causes = getattr(error, "worker_failures", {}) or {0: error}
                    for cause in causes.values():
                        if isinstance(cause, PERMANENT_ERRORS):
                            raise cause from error
                    step = tensor_io.read_step(checkpoint) if checkpoint.exists() else 0
                    last_step, failures = step, failures + 1 if step == last_step else 1
                    if failures > MAX_RESTARTS:
                        text = "; ".join(shorten(f"worker {rank}: {cause}", 300) for rank, cause in causes.items())
                        raise ChildProcessError(f"{failures} failures after step {step}: {text}") from error
                    print(f"a worker failed; restarting all workers from step {step}")
                ray.shutdown()  # a leftover placement group would block the next attempt
        finally:
            ray.shutdown()
            shutil.rmtree(scratch, ignore_errors=True)


def _show_progress(training: Future, run: Path, steps: int) -> None:
    """Show the progress of a run from its metrics until training ends."""
    with tqdm(total=steps, unit="step", smoothing=0.05) as bar:
        while training in wait([training], timeout=1).not_done:
            text = (run / "metrics.jsonl").read_text("utf-8") if (run / "metrics.jsonl").exists() else ""
            for row in [json.loads(line) for line in text.splitlines()[-2:] if line.endswith("}")]:
                bar.update(row["step"] - bar.n)
                if "loss" in row:
                    bar.set_postfix(loss=f"{row['loss']:.4f}")
    training.result()
