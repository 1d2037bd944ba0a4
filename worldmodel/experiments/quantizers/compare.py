"""Train one autoencoder with each quantizer, and compare: ``python -m worldmodel.experiments.quantizers``.

Roy et al. 2018, section 5 and figures 3 and 5: does soft EM suffer less codebook collapse than hard EM? Unused codes do
not move, so the initial codebook matters much: it is varied together with the quantizer.
"""

import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from worldmodel import config
from worldmodel.files import check_folder, write_atomically
from worldmodel.models.config import VQVAEConfig
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.renamed import QUANTIZER, renamed, upgrade_config
from worldmodel.suggest import unknown_name
from worldmodel.train_config import RUN_SETTINGS, TrainConfig

if TYPE_CHECKING:
    from worldmodel.experiments.quantizers.table import Variant

CODEBOOK_STARTS = {  # gumbel and semhash have no codebook to initialize
    "random": {"init": "random", "init_std": 1.0, "dead_code_reset_every": 0},
    "small": {"init": "random", "init_std": 0.05, "dead_code_reset_every": 0},
    "kmeans": {"init": "kmeans", "dead_code_reset_every": 0},
    "revived": {"init": "kmeans"},
}
NEAREST_QUANTIZERS = {
    "ema": {"update": "ema"},
    "loss": {"update": "loss"},
    **{f"soft_em_{samples}": {"update": "soft_em", "num_samples": samples} for samples in (1, 5, 10, 25)},
}
RELAXED_QUANTIZERS = ("gumbel", "semhash")
NUM_IMAGES_SHOWN = 16  # images per row of reconstructions.png


def compare_quantizers(
    out: str,
    store: str = "",
    images: str = "",
    size: int = 0,
    quantizers: str = ",".join([*NEAREST_QUANTIZERS, *RELAXED_QUANTIZERS]),
    starts: str = "random,small,kmeans,revived",
    codes: str = "",
    seeds: int = 5,
    model: VQVAEConfig = VQVAEConfig(),
    gumbel: QuantizerConfig = QuantizerConfig(kind="gumbel"),
    semhash: QuantizerConfig = QuantizerConfig(kind="semhash"),
    train: TrainConfig = TrainConfig(),
    batch_size: int = 32,
    parallel: int = 1,
) -> None:
    """Train a VQ-VAE with each quantizer and several seeds, and compare their reconstructions and codebook usage.

    Runs with the same seed start from the same weights and see the same batches. Each is an ordinary run in the
    experiment's folder; finished runs are not repeated, interrupted ones are resumed. The folder also receives
    quantizers.txt, the printed table; quantizers.json, with every run; quantizers.png, a plot; and reconstructions.png,
    with the worst run of each row under the original images.

    Scores are of held-out images, each reconstructed from its nearest codes, with two exceptions: ``nmse_train`` is
    the relative squared error on training batches, with the noise of training, and ``nmse_drawn`` is that on held-out
    images reconstructed from codes sampled as in soft EM.

    Args:
        out: folder of the experiment.
        store: folder of recorded episodes; give either this or --images.
        images: CIFAR-10's or SVHN's files, a .npz file, a folder of images, class folders or stores, or a store.
        size: side in pixels to which images are center-cropped and resized; 0 keeps their size.
        quantizers: comma-separated quantizers: ema, loss, soft_em_M with M = 1, 5, 10 or 25 samples, gumbel, semhash.
        starts: comma-separated initial codebooks: random (normally distributed), small (the same, scaled by 0.05),
            kmeans (on the first batch), revived (kmeans, and unused codes are moved onto data).
        codes: comma-separated codebook sizes K, such as 512,4096; empty for the size in --model.
        seeds: number of runs of each variant.
        model: architecture of the VQ-VAE, and settings of ema, loss and soft_em.
        gumbel: settings of gumbel; K and D are taken from the other quantizers.
        semhash: settings of semhash; K and D are taken from the other quantizers.
        train: settings of the training loop; train.seed is the seed of the first run.
        batch_size: number of images per batch.
        parallel: number of runs at a time, each in a process with one thread if there are several.
    """
    from worldmodel import checkpoint
    from worldmodel.evaluation import plots
    from worldmodel.experiments.quantizers.runs import build_initial_vqvae, train_variant
    from worldmodel.experiments.quantizers.table import format_table, plot_scores, read_scores, summarize
    from worldmodel.images.dataset import dataset_facts, measure_variance, open_store_or_images, read_evenly

    if seeds < 1 or parallel < 1:
        raise ValueError(f"--seeds and --parallel must be 1 or more, got {seeds} and {parallel}")
    for name, quantizer, kind in (
        ("model.quantizer", model.quantizer, "nearest"),
        ("gumbel", gumbel, "gumbel"),
        ("semhash", semhash, "semhash"),
    ):
        if quantizer.kind != kind:
            raise ValueError(
                f"--{name}.kind must be {kind}, got {quantizer.kind}; choose what to compare by --quantizers"
            )
    check_folder(Path(out))
    variants = list_variants(quantizers, starts, codes or str(model.quantizer.codebook_size))
    dataset, folder = open_store_or_images(store, images, size), Path(out).absolute()
    model = replace(model, data_variance=model.data_variance or measure_variance(dataset.train))
    data = {"store": checkpoint.absolute(store), "images": checkpoint.absolute(images), "size": size}
    data |= {"batch_size": batch_size, **dataset_facts(dataset)}
    models = {variant: _variant_model(variant, model, {"gumbel": gumbel, "semhash": semhash}) for variant in variants}
    for variant_model in models.values():  # raises if the image size does not fit
        build_initial_vqvae(variant_model, train.seed).encode(read_evenly(dataset.held_out, 1))
    _check_or_write_settings(folder, model=model, gumbel=gumbel, semhash=semhash, train=train, data=data)
    seed_range = range(train.seed, train.seed + seeds)
    threads = 1 if parallel > 1 else train.threads
    tasks = [
        (variant.run_folder(folder, seed), models[variant], replace(train, seed=seed, threads=threads), data, dataset)
        for seed in seed_range  # outermost, so that an interrupted experiment has runs of every variant
        for variant in variants
        if not _is_finished(variant.run_folder(folder, seed), train.steps)
    ]
    if parallel == 1:
        for number, task in enumerate(tasks, 1):
            print(f"run {number} of {len(tasks)}: {task[0].relative_to(folder)}", flush=True)
            train_variant(*task)
    else:
        with ProcessPoolExecutor(parallel, get_context("spawn")) as pool:
            try:
                for number, done in enumerate(as_completed([pool.submit(train_variant, *task) for task in tasks]), 1):
                    print(f"run {number} of {len(tasks)}: {done.result().relative_to(folder)}", flush=True)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in active_children():  # their runs are resumed from the last checkpoint
                    worker.terminate()
                raise
    scores = {v: [read_scores(v.run_folder(folder, seed), train.steps) for seed in seed_range] for v in variants}
    rows = summarize(scores)
    table = format_table(rows)
    print(table)
    write_atomically(folder / "quantizers.txt", f"{table}\n".encode())
    write_atomically(folder / "quantizers.json", f"{json.dumps(rows, indent=2)}\n".encode())
    plot_scores(rows).savefig(folder / "quantizers.png", dpi=150, bbox_inches="tight")
    frames = read_evenly(dataset.held_out, NUM_IMAGES_SHOWN)
    shown = {"originals": frames.numpy()}
    for variant, runs in scores.items():
        worst = max(runs, key=lambda run: run["nmse"])["run"]
        shown[variant.name] = checkpoint.load_vqvae(folder / worst).reconstruct(frames)[0].numpy()
    plots.plot_image_rows(shown).savefig(folder / "reconstructions.png", dpi=150, bbox_inches="tight")


def list_variants(quantizers: str, starts: str, codes: str) -> "list[Variant]":
    """Return all combinations of three comma-separated lists; quantizers without a codebook have no start.

    Raises:
        ValueError: for an unknown name, or a codebook size that is not a number.
    """
    from worldmodel.experiments.quantizers.table import Variant

    chosen, chosen_starts, sizes = (list(dict.fromkeys(names.split(","))) for names in (quantizers, starts, codes))
    all_quantizers = [*NEAREST_QUANTIZERS, *RELAXED_QUANTIZERS]
    for what, names, known in (("quantizer", chosen, all_quantizers), ("start", chosen_starts, CODEBOOK_STARTS)):
        for name in names:
            if name not in known:
                raise ValueError(unknown_name(what, name, known))
    if not all(size.isdigit() for size in sizes):
        raise ValueError(f"--codes must be numbers such as 512,4096, got {codes}")
    return [
        Variant(int(size), name, start)
        for size in sizes
        for name in chosen
        for start in (chosen_starts if name in NEAREST_QUANTIZERS else [""])
    ]


def _variant_model(variant: "Variant", model: VQVAEConfig, relaxed: dict[str, QuantizerConfig]) -> VQVAEConfig:
    quantizer = relaxed.get(variant.quantizer, model.quantizer)
    own = {**NEAREST_QUANTIZERS.get(variant.quantizer, {}), **CODEBOOK_STARTS.get(variant.start, {})}
    sizes = {"codebook_size": variant.codebook_size, "code_dim": model.quantizer.code_dim}
    return replace(model, quantizer=replace(quantizer, **sizes, **own))


def _check_or_write_settings(folder: Path, **settings: Any) -> None:
    """Write the settings that all runs share, or check that they are those of the existing experiment.

    Raises:
        ValueError: if the folder is that of an experiment with other settings.
    """
    from worldmodel.checkpoint import absolute, is_begun

    text, path = config.dump(**settings), folder / "config.yaml"
    if path.exists() and any(is_begun(run) for run in folder.glob("*/seed-*")):
        saved, asked = _upgrade(config.read_yaml(path)), yaml.safe_load(text)
        defaults = {part: asdict(type(value)()) for part, value in settings.items() if not isinstance(value, dict)}
        for part, values in asked.items():
            for name, new in values.items():
                old = saved.get(part, {}).get(name, defaults.get(part, {}).get(name))  # settings newer than the folder
                if new != (absolute(old) if isinstance(old, str) else old) and not (
                    part == "train" and name in RUN_SETTINGS
                ):
                    raise ValueError(
                        f"{folder} was begun with {part}.{name} {old}, got {new}; use another --out, or the old setting"
                    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def _upgrade(settings: dict[str, Any]) -> dict[str, Any]:
    """Rename the settings of experiments of version 0.1.0 to today's names."""
    settings = upgrade_config({"kind": "vqvae", **settings})
    settings |= {part: renamed(settings.get(part, {}), QUANTIZER) for part in RELAXED_QUANTIZERS}
    counts = {"learnt": "num_train", "held_out": "num_held_out"}
    return {**settings, "data": renamed(settings.get("data", {}), counts)}


def _is_finished(run: Path, steps: int) -> bool:
    from worldmodel import tensor_io

    saved = run / "train.safetensors"
    return saved.exists() and tensor_io.read_step(saved) >= steps
