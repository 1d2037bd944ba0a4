"""Bits per dimension of pictures: ``python -m worldmodel.experiments.likelihood {train,evaluate}``.

A VQ-VAE, a variational autoencoder with normal latents and one with categorical latents are compared by lower bounds on
the likelihood of held-out pictures (van den Oord et al. 2017, section 4.1).
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel import checkpoint, media
from worldmodel.episodes.segments import spread
from worldmodel.experiments.likelihood.architecture import AutoencoderConfig
from worldmodel.experiments.likelihood.autoencoders import DiscreteAutoencoder, autoencoder
from worldmodel.experiments.likelihood.bits_per_dim import bounds, left_out, of_codes, of_draws, on_its_device
from worldmodel.files import check_file, write_atomically
from worldmodel.images.dataset import Images, PictureBatches, describe, open_images
from worldmodel.models.spatial_prior import SpatialPrior
from worldmodel.training import TrainConfig, fit

SHOWN = 16  # pictures in a picture


def train(
    images: str,
    run: str,
    size: int = 0,
    model: AutoencoderConfig = AutoencoderConfig(),
    train: TrainConfig = TrainConfig(),
    batch: int = 128,
    flip: bool = False,
    evaluated: int = 512,
) -> None:
    """Train one of the three autoencoders on pictures; an existing run is continued.

    Args:
        images: where the pictures are: CIFAR-10's files, or any that worldmodel.train vqvae takes.
        run: folder to write checkpoints, metrics and pictures into.
        size: cut out the middle of each picture and scale it to this side; 0 leaves them.
        model: which of the three, and its sizes.
        train: length and speed.
        batch: pictures in a batch.
        flip: mirror half of the pictures.
        evaluated: held-out pictures to measure on while it trains.
    """
    pictures, folder = open_images(images, size), Path(run).absolute()
    data = {"images": images, "size": size, "batch": batch, "flip": flip, **describe(pictures)}
    torch.manual_seed(train.seed)
    network = autoencoder(model)
    frames = held_out(pictures, evaluated)
    network.encoded(frames[:1])  # to say now that they do not fit
    checkpoint.begin(folder, "autoencoder", model, train, data)
    batches = PictureBatches(pictures.learnt, batch, train.seed)

    def mirrored(number: int, rank: int, workers: int) -> Tensor:
        frames = batches(number, rank, workers)
        coins = np.random.default_rng([train.seed, 1, number, rank]).integers(2, size=len(frames)) == 1
        return torch.where(torch.from_numpy(coins)[:, None, None, None], frames.flip(2), frames)

    def evaluate(network: nn.Module, step: int) -> dict[str, float]:
        rows = torch.stack([frames[:SHOWN], network.reconstruct(on_its_device(network, frames[:SHOWN]))[0].cpu()])
        media.write(folder / "pictures" / f"{step:07d}.png", media.grid(rows.numpy())[None], scale=1)
        bound = bounds(network, frames, model.samples if model.kind == "vimco" else 1)
        return {name: float(value) for name, value in network.measured(frames, bound).items()}

    fit(network, mirrored if flip else batches, evaluate, train, folder)


def evaluate(
    run: str,
    prior: str = "",
    images: str = "",
    pictures: int = 10_000,
    samples: int = 50,
    probes: int = 0,
    out: str = "",
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Measure an autoencoder on held-out pictures, and write what comes of it to likelihood.json in its run.

    Every number is the mean over pictures, with the interval of 95 % of its bootstrap resamples. A bound is distortion,
    -log p(x | z), plus rate, what the latents cost under a prior: for a VQ-VAE a uniform one, one of how often each
    code came up in training, and --prior; for the others the one that they learn with, with one draw of the latents and
    with more. All are in bits per dimension.

    Args:
        run: folder of the trained autoencoder.
        prior: run folder of a prior over its codes.
        images: where the pictures are; the place that the run names, if not given.
        pictures: held-out ones to measure on, all if there are fewer.
        samples: draws of the latents in the importance bound, for all but a VQ-VAE.
        probes: latents of a VQ-VAE to put every code in, for what its bound leaves out; 0 for none.
        out: file to write instead.
        device: cpu or cuda.
        threads: of torch on the CPU.
    """
    if min(pictures, samples) < 1 or probes < 0:
        raise ValueError("--pictures and --samples must be 1 or more and --probes 0 or more")
    if out:
        check_file(Path(out))
    torch.set_num_threads(threads)
    folder = Path(run)
    network = checkpoint.load_autoencoder(folder).to(checkpoint.check_device(device))
    values = checkpoint.read_config(folder)
    found = open_images(images or values["data"]["images"], values["data"]["size"])
    frames = held_out(found, pictures)
    facts = {"steps": checkpoint.read_step(folder / "train.safetensors"), "pictures": len(frames), **values["model"]}
    if isinstance(network, DiscreteAutoencoder):
        learnt = load_prior(Path(prior), folder) if prior else None
        result = of_codes(network, found, frames, learnt)
        result["one_latent"] = left_out(network, frames, probes) if probes else {}
    elif prior or probes:
        raise ValueError(f"--prior and --probes are for a vqvae, {run} is a {network.config.kind}")
    else:
        name = "standard normal" if network.config.kind == "vae" else "uniform"
        result = {"bounds": of_draws(network, frames, samples, name)}
    text = json.dumps({"model": facts, **result}, indent=2)
    path = Path(out) if out else folder / "likelihood.json"
    write_atomically(path, text.encode())
    print(text)
    print(f"wrote {path}")


def load_prior(prior: Path, run: Path) -> SpatialPrior:
    """A prior over the codes of a run."""
    if checkpoint.digest(prior / "vqvae") != checkpoint.digest(run):
        raise ValueError(f"--prior {prior} predicts the codes of another VQ-VAE than {run}; train one on those")
    return checkpoint.load_spatial(prior)


def held_out(pictures: Images, count: int) -> Tensor:
    """Some of the pictures that are held out, (count, H, W, C) uint8."""
    return torch.from_numpy(pictures.held_out.read(spread(len(pictures.held_out), count)))
