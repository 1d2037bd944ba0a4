"""Bits per dimension of pictures: ``python -m worldmodel.experiments.likelihood {train,evaluate}``.

A VQ-VAE, a variational autoencoder with normal latents and one with categorical latents are compared by lower bounds on
the likelihood of held-out pictures (van den Oord et al. 2017, section 4.1).
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel import checkpoint, config, media
from worldmodel.core.architecture import Autoencoder, AutoencoderConfig, Bound
from worldmodel.core.autoencoders import DiscreteAutoencoder, autoencoder
from worldmodel.data.images import Images, PictureBatches, describe, open_images
from worldmodel.data.store import write_atomically
from worldmodel.data.windows import spread
from worldmodel.scores import Unigram, interval, vqvae_scores
from worldmodel.training import TrainConfig, fit

AT_ONCE = 256  # pictures to encode, or draws to decode
COUNTED = 10_000  # pictures whose codes a unigram prior counts
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
        rows = torch.stack([frames[:SHOWN], network.reconstruct(_there(network, frames[:SHOWN]))[0].cpu()])
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
    torch.set_num_threads(threads)
    folder = Path(run)
    network = checkpoint.load_autoencoder(folder).to(checkpoint.check_device(device))
    values = checkpoint.read_config(folder)
    found = open_images(images or values["data"]["images"], values["data"]["size"])
    frames = held_out(found, pictures)
    facts = {"steps": checkpoint.read_step(folder / "train.safetensors"), "pictures": len(frames), **values["model"]}
    if isinstance(network, DiscreteAutoencoder):
        result = of_codes(network, found, frames)
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


def of_codes(network: DiscreteAutoencoder, found: Images, frames: Tensor) -> dict:
    """The bounds of a VQ-VAE under each prior, and how well it draws the pictures again."""
    bound, bits = bounds(network, frames), frames[0].numel()
    size = network.config.quantizer.codes
    counted = Unigram(encoded(network, held_in(found, COUNTED)), size).probabilities
    codes = encoded(network, frames)  # (B, N·H, W)
    rates = {"uniform": bound.rate, "unigram": -counted[codes].log2().sum((1, 2)) * math.log(2)}
    quality = vqvae_scores(network, frames)[1]
    return {
        "codes": {"latents": codes[0].numel(), "K": size, "D": network.config.quantizer.dim},
        "bounds": [row(bits, name, bound.distortion, rate, bound.distortion + rate) for name, rate in rates.items()],
        "reconstruction": {name: quality[name] for name in ("psnr", "nmse", "perplexity", "codes_used")},
    }


def of_draws(network: Autoencoder, frames: Tensor, samples: int, prior: str) -> list[dict]:
    """The bounds of a variational autoencoder: by single draws, and by ``samples`` of them together."""
    bound, bits = bounds(network, frames, samples), frames[0].numel()
    single = row(bits, prior, bound.distortion, bound.rate, bound.distortion + bound.rate)
    return [{**single, "samples": 1}, {"prior": prior, "bits_per_dim": _bits(bound.joint, bits), "samples": samples}]


def row(size: int, prior: str, distortion: Tensor, rate: Tensor, total: Tensor) -> dict:
    """A bound as it is reported, from nats (B,) of pictures of so many dimensions."""
    parts = {"distortion": distortion, "rate": rate, "bits_per_dim": total}
    return {"prior": prior, **{name: _bits(part, size) for name, part in parts.items()}}


@torch.no_grad()
def left_out(network: DiscreteAutoencoder, frames: Tensor, probes: int, seed: int = 0) -> dict:
    """What the bound of a VQ-VAE leaves out where it takes p(x | z) of the encoder's codes for all (section 3.2).

    In one latent of a picture at a time, all K codes are summed over instead, as log p(x) does for all latents at once.

    Returns:
        ``bits``: what that adds to log p(x | z) of a picture. ``encoder_best``: how often no other code is likelier
        than the encoder's. ``bits_per_dim``: the first for all latents, as if they did not depend on each other.
    """
    random, gains, best = np.random.default_rng(seed), [], []
    for _ in range(probes):
        frame = _there(network, frames[random.integers(len(frames))][None])
        codes = network.encode(frame)
        place = int(random.integers(codes[0].numel()))
        nats = network.one_latent(frame, codes, place)[0].cpu()  # (K,)
        own = nats[codes.flatten()[place]]
        gains.append((nats.logsumexp(0) - own) / math.log(2))
        best.append(own >= nats.max())
    gain = torch.stack(gains)
    return {
        "probes": probes,
        "bits": interval(gain),
        "encoder_best": float(torch.stack(best).float().mean()),
        "bits_per_dim": float(gain.mean()) * codes[0].numel() / frames[0].numel(),
    }


@torch.no_grad()
def bounds(network: Autoencoder, frames: Tensor, samples: int = 1) -> Bound:
    """The bounds of pictures (B, H, W, C) uint8, in parts that fit the memory; the same draws every time."""
    generator = torch.Generator(next(network.parameters()).device).manual_seed(0)
    parts = frames.split(max(1, AT_ONCE // samples))
    found = [network.bound(_there(network, part), samples, generator) for part in parts]
    return Bound(*(torch.cat(column).double().cpu() for column in zip(*found, strict=True)))


@torch.no_grad()
def encoded(network: DiscreteAutoencoder, frames: Tensor) -> Tensor:
    """The codes of pictures (B, H, W, C) uint8: (B, N·H, W) int64."""
    return torch.cat([network.encode(_there(network, part)).cpu() for part in frames.split(AT_ONCE)])


def held_in(pictures: Images, count: int) -> Tensor:
    """Some of the pictures to learn from, (count, H, W, C) uint8."""
    return torch.from_numpy(pictures.learnt.read(spread(len(pictures.learnt), count)))


def held_out(pictures: Images, count: int) -> Tensor:
    """Some of the others."""
    return torch.from_numpy(pictures.held_out.read(spread(len(pictures.held_out), count)))


def _bits(nats: Tensor, size: int) -> dict[str, float]:
    return interval(nats / (size * math.log(2)))


def _there(network: nn.Module, frames: Tensor) -> Tensor:
    return frames.to(next(network.parameters()).device)


if __name__ == "__main__":
    config.run({"train": train, "evaluate": evaluate})
