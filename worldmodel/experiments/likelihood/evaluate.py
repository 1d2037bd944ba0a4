"""Evaluate bits per dimension: ``python -m worldmodel.experiments.likelihood evaluate``."""

import json
from pathlib import Path
from typing import cast

from worldmodel.files import check_file, write_atomically


def evaluate(
    run: str,
    prior: str = "",
    images: str = "",
    num_images: int = 10_000,
    num_samples: int = 50,
    probes: int = 0,
    out: str = "",
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Evaluate an autoencoder on held-out images and write likelihood.json into its run folder.

    Every number is the mean over images with a 95 % bootstrap interval, in bits per dimension. A bound is distortion,
    -log p(x | z), plus rate, the cost of the latents under a prior. A VQ-VAE is given a uniform prior, a unigram prior
    of its training codes, and --prior; other kinds have the prior that they were trained with, and bounds from one
    latent sample and from several.

    Args:
        run: run folder of the autoencoder.
        prior: run folder of a spatial prior over the codes of a VQ-VAE; empty for none.
        images: image data set; empty for the data set that the run names.
        num_images: maximum number of held-out images to evaluate.
        num_samples: number of latent samples in the importance bound, for every kind but a VQ-VAE.
        probes: number of latents of a VQ-VAE to try every code in, to estimate what the bound misses; 0 for none.
        out: file to write instead of likelihood.json.
        device: device to evaluate on, cpu or cuda.
        threads: number of CPU threads of PyTorch.
    """

    from worldmodel import checkpoint
    from worldmodel.experiments.likelihood.autoencoders import AnyAutoencoder, DiscreteAutoencoder
    from worldmodel.experiments.likelihood.bits_per_dim import (
        evaluate_discrete,
        evaluate_other_codes,
        evaluate_variational,
        load_prior,
    )
    from worldmodel.images.dataset import open_images, read_evenly
    from worldmodel.models.precision import check_device, use_threads

    if min(num_images, num_samples) < 1 or probes < 0:
        raise ValueError("--num_images and --num_samples must be 1 or more and --probes 0 or more")
    if out:
        check_file(Path(out))
    use_threads(threads)
    folder = Path(run)
    network = cast(AnyAutoencoder, checkpoint.load_model(folder, "autoencoder")).to(check_device(device))
    values = checkpoint.read_config(folder)
    dataset = open_images(images or values["data"]["images"], values["data"]["size"])
    frames = read_evenly(dataset.held_out, num_images)
    steps = max((row["step"] for row in checkpoint.read_metrics(folder)), default=None)
    facts = {"steps": steps, "num_images": len(frames), **values["model"]}
    if isinstance(network, DiscreteAutoencoder):
        learned = load_prior(Path(prior), folder).to(check_device(device)) if prior else None
        result = evaluate_discrete(network, dataset, frames, learned)
        result["one_latent"] = evaluate_other_codes(network, frames, probes) if probes else {}
    elif prior or probes:
        raise ValueError(f"--prior and --probes are for a vqvae, {run} is a {network.config.kind}")
    else:
        prior_name = "standard normal" if network.config.kind == "vae" else "uniform"
        result = {"bounds": evaluate_variational(network, frames, num_samples, prior_name)}
    text = json.dumps({"model": facts, **result}, indent=2)
    path = Path(out) if out else folder / "likelihood.json"
    write_atomically(path, text.encode())
    print(text)
    print(f"wrote {path}")
