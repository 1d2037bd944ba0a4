"""Train one autoencoder with each quantizer, and compare: ``python -m worldmodel.experiments.quantizers``.

Roy et al. 2018, section 5 and figures 3 and 5: does soft EM collapse less than hard EM? Codes that nothing chooses do
not move, so what a codebook starts from decides much: it is varied beside the quantizers.
"""

import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, is_dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from worldmodel import checkpoint, config
from worldmodel.episodes.segments import spread
from worldmodel.evaluation import plots
from worldmodel.experiments.quantizers.table import BASELINE, Arm, plot, scores, summary, table
from worldmodel.files import check_folder, write_atomically
from worldmodel.images.dataset import Images, PictureBatches, describe, given
from worldmodel.metrics import nmse, vqvae_scores
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.models.quantizers.nearest import build
from worldmodel.models.vqvae import VQVAE, Decoder, Encoder, VQVAEConfig, denormalize, normalize
from worldmodel.suggest import unknown
from worldmodel.training import TrainConfig, fit

STARTS = {  # of a codebook of vectors; gumbel and semhash have none
    "random": {"initial": "random", "scale": 1.0, "revive_every": 0},
    "small": {"initial": "random", "scale": 0.05, "revive_every": 0},
    "kmeans": {"initial": "kmeans", "revive_every": 0},
    "revived": {"initial": "kmeans"},
}
NEAREST = {
    BASELINE: {"update": "ema"},
    "loss": {"update": "loss"},
    **{f"soft_em_{samples}": {"update": "soft_em", "samples": samples} for samples in (1, 5, 10, 25)},
}
RELAXED = ("gumbel", "semhash")
HELD_OUT = 512  # pictures that are measured on
SHOWN = 16  # of them beside each other
OWN = ("seed", "device", "threads", "log_every", "evaluate_every")  # settings of training that may change


def quantizers(
    out: str,
    store: str = "",
    images: str = "",
    size: int = 0,
    quantizers: str = ",".join([*NEAREST, *RELAXED]),
    starts: str = "random,small,kmeans,revived",
    codes: str = "",
    seeds: int = 5,
    model: VQVAEConfig = VQVAEConfig(),
    gumbel: QuantizerConfig = QuantizerConfig(kind="gumbel"),
    semhash: QuantizerConfig = QuantizerConfig(kind="semhash"),
    train: TrainConfig = TrainConfig(),
    batch: int = 32,
    parallel: int = 1,
) -> None:
    """Train a VQ-VAE with each quantizer, several times, and say how well it reconstructs and how many codes it uses.

    Runs of one seed begin with the same weights and see the same batches. Each is an ordinary run in the experiment's
    folder: one that is finished is not repeated, one that was stopped goes on. Beside them are quantizers.txt, the
    table that is printed; quantizers.json, with every run; quantizers.png, a plot; and reconstructions.png, by the
    worst run of each row, under the originals.

    All scores are of held-out pictures, made of one code in each place, but ``learnt``: the relative squared error on
    what was learnt from, with the noise of training, and ``nmse_drawn``: on held-out pictures made as soft EM learns.

    Args:
        out: folder of the experiment.
        store: folder of recorded episodes; either this or --images.
        images: CIFAR-10's or SVHN's files, a .npz, a folder of pictures or of class folders, a store, or a folder of
            stores.
        size: cut out the middle of each picture and scale it to this side; 0 leaves them.
        quantizers: some of ema, loss, soft_em_1, soft_em_5, soft_em_10, soft_em_25, gumbel and semhash; the number is
            m, the samples of soft EM.
        starts: of the codebooks, some of random (normally distributed), small (the same, a twentieth of it), kmeans (on
            the first batch) and revived (as kmeans, and codes that nothing chose are moved onto data).
        codes: numbers of codes K, such as 512,4096; that of --model by default.
        seeds: runs of each.
        model: sizes, and the settings of ema, loss and soft_em.
        gumbel: settings of gumbel; K and D are the others'.
        semhash: settings of semhash; K and D are the others'.
        train: length and speed; its seed is that of the first run.
        batch: pictures in a batch.
        parallel: runs at a time, each in a process and on one thread.
    """
    if seeds < 1 or parallel < 1:
        raise ValueError(f"--seeds and --parallel must be 1 or more, got {seeds} and {parallel}")
    check_folder(Path(out))
    rows = arms(quantizers, starts, codes or str(model.quantizer.codes))
    pictures, folder = given(store, images, size), Path(out).absolute()
    part = pictures.learnt.read(spread(len(pictures.learnt), HELD_OUT)) / 255
    model = replace(model, variance=model.variance or float(part.var()))
    data = {"store": store, "images": images, "size": size, "batch": batch, **describe(pictures)}
    settings = {arm: _model(arm, model, {"gumbel": gumbel, "semhash": semhash}) for arm in rows}
    _begin(folder, model=model, gumbel=gumbel, semhash=semhash, train=train, data=data)
    numbers = range(train.seed, train.seed + seeds)
    threads = 1 if parallel > 1 else train.threads
    work = [
        (arm.run(folder, seed), settings[arm], replace(train, seed=seed, threads=threads), data, pictures)
        for seed in numbers  # outermost, so that what is stopped early has runs of every row
        for arm in rows
        if not _finished(arm.run(folder, seed), train.steps)
    ]
    if parallel == 1:
        for number, task in enumerate(work, 1):
            print(f"run {number} of {len(work)}: {task[0].relative_to(folder)}", flush=True)
            learn(*task)
    else:
        with ProcessPoolExecutor(parallel, get_context("spawn")) as pool:
            try:
                for number, done in enumerate(as_completed([pool.submit(learn, *task) for task in work]), 1):
                    print(f"run {number} of {len(work)}: {done.result().relative_to(folder)}", flush=True)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    found = {arm: [scores(arm.run(folder, seed), train.steps) for seed in numbers] for arm in rows}
    frames = torch.from_numpy(pictures.held_out.read(spread(len(pictures.held_out), SHOWN)))
    result = summary(found)
    print(table(result))
    write_atomically(folder / "quantizers.txt", f"{table(result)}\n".encode())
    write_atomically(folder / "quantizers.json", f"{json.dumps(result, indent=2)}\n".encode())
    plot(result).savefig(folder / "quantizers.png", dpi=150, bbox_inches="tight")
    worst = {arm: max(runs, key=lambda run: run["nmse"])["run"] for arm, runs in found.items()}
    shown = {"originals": frames.numpy()}
    for arm, run in worst.items():
        shown[arm.name] = checkpoint.load_vqvae(folder / run).reconstruct(frames)[0].numpy()
    plots.rows_of_pictures(shown).savefig(folder / "reconstructions.png", dpi=150, bbox_inches="tight")


def arms(quantizers: str, starts: str, codes: str) -> list[Arm]:
    """All that the three lists of names and numbers make together.

    Raises:
        ValueError: for a name that does not exist, or a K that is no number.
    """
    chosen, begun, sizes = (list(dict.fromkeys(names.split(","))) for names in (quantizers, starts, codes))
    for what, names, known in (("quantizer", chosen, [*NEAREST, *RELAXED]), ("start", begun, STARTS)):
        for name in names:
            if name not in known:
                raise ValueError(unknown(what, name, known))
    if not all(number.isdigit() for number in sizes):
        raise ValueError(f"--codes must be numbers such as 512,4096, got {codes}")
    return [
        Arm(int(number), name, start)
        for number in sizes
        for name in chosen
        for start in (begun if name in NEAREST else [""])
    ]


def begun(model: VQVAEConfig, seed: int) -> VQVAE:
    """A VQ-VAE whose first encoder and decoder depend on the seed, and on the quantizer not at all."""
    torch.manual_seed(seed)
    encoder, decoder = Encoder(model), Decoder(model)
    return VQVAE(encoder, build(model.quantizer), decoder, model.variance)


def learn(run: Path, model: VQVAEConfig, train: TrainConfig, data: dict[str, Any], pictures: Images) -> Path:
    """Train the VQ-VAE of one run, and return its folder."""
    network = begun(model, train.seed)
    frames = torch.from_numpy(pictures.held_out.read(spread(len(pictures.held_out), HELD_OUT)))
    checkpoint.begin(run, "vqvae", model, train, data)

    def evaluate(network: nn.Module, step: int) -> dict[str, float]:
        found = vqvae_scores(network, frames)[1]
        if model.quantizer.update == "soft_em":
            found["nmse_drawn"] = nmse(from_samples(network, frames), frames)
        return found

    fit(network, PictureBatches(pictures.learnt, data["batch"], train.seed), evaluate, train, run)
    return run


@torch.no_grad()
def from_samples(network: VQVAE, frames: Tensor) -> Tensor:
    """Reconstruct frames (N, H, W, 3) uint8 as training with soft EM does, from the mean of m codes in each place."""
    generator = torch.Generator(network.quantizer.codebook.device).manual_seed(0)
    made = []
    for part in frames.split(64):
        z = network.encoder(normalize(part.to(generator.device)))
        drawn = network.quantizer.samples(z, network.quantizer.config.samples, generator)  # (B, m, h, w)
        vectors = network.quantizer.decode(drawn).mean(2)  # of (B, D, m, h, w)
        made.append(denormalize(network.decoder(vectors)).cpu())
    return torch.cat(made)


def _model(arm: Arm, model: VQVAEConfig, relaxed: dict[str, QuantizerConfig]) -> VQVAEConfig:
    """The sizes of an arm's model."""
    quantizer = relaxed.get(arm.quantizer, model.quantizer)
    own = {**NEAREST.get(arm.quantizer, {}), **STARTS.get(arm.start, {})}
    return replace(model, quantizer=replace(quantizer, codes=arm.codes, dim=model.quantizer.dim, **own))


def _begin(folder: Path, **settings: Any) -> None:
    """Write what all runs have in common, or see that it is what it was.

    Raises:
        ValueError: if the folder is that of an experiment with other settings.
    """
    text, path = config.dump(**settings), folder / "config.yaml"
    if path.exists():
        there, asked = config.read_yaml(path), yaml.safe_load(text)
        defaults = {part: asdict(type(value)()) for part, value in settings.items() if is_dataclass(value)}
        for part, values in asked.items():
            for name, new in values.items():
                old = there.get(part, {}).get(
                    name, defaults.get(part, {}).get(name)
                )  # settings younger than the folder
                if new != old and (part, name) not in [("train", own) for own in OWN]:
                    raise ValueError(
                        f"{folder} was begun with {part}.{name} {old}, got {new}; use another --out, or the old setting"
                    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def _finished(run: Path, steps: int) -> bool:
    saved = run / "train.safetensors"
    return saved.exists() and checkpoint.read_step(saved) >= steps
