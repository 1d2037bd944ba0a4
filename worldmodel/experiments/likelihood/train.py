"""Bits per dimension of images: ``python -m worldmodel.experiments.likelihood {train,evaluate}``.

A VQ-VAE, a variational autoencoder with normal latents and one with categorical latents are compared by lower bounds on
the likelihood of held-out images (van den Oord et al. 2017, section 4.1).
"""

from pathlib import Path

from worldmodel import media
from worldmodel.experiments.likelihood.config import AutoencoderConfig
from worldmodel.train_config import TrainConfig

NUM_IMAGES_SHOWN = 16  # images in the sheet of reconstructions


def train(
    images: str,
    run: str,
    size: int = 0,
    model: AutoencoderConfig = AutoencoderConfig(),
    train: TrainConfig = TrainConfig(),
    batch_size: int = 128,
    flip: bool = False,
    eval_images: int = 512,
) -> None:
    """Train one of the three autoencoders on images, or resume an existing run.

    Args:
        images: image data set, in any format that training a VQ-VAE accepts, such as CIFAR-10's files.
        run: run folder for checkpoints, metrics and reconstructions.
        size: side in pixels to which images are center-cropped and resized; 0 keeps their size.
        model: kind and architecture of the autoencoder.
        train: settings of the training loop.
        batch_size: number of images per batch.
        flip: flip half of the images left to right, at random.
        eval_images: number of held-out images to evaluate during training.
    """
    import torch

    from worldmodel import checkpoint
    from worldmodel.experiments.likelihood.autoencoders import AnyAutoencoder, build_autoencoder
    from worldmodel.experiments.likelihood.bits_per_dim import compute_bounds, to_device_of
    from worldmodel.images.dataset import ImageBatches, dataset_facts, open_images, read_evenly
    from worldmodel.training import fit

    if eval_images < 1:
        raise ValueError(f"--eval_images must be 1 or more, got {eval_images}")
    dataset, folder = open_images(images, size), Path(run).absolute()
    data = {"images": images, "size": size, "batch_size": batch_size, "flip": flip, **dataset_facts(dataset)}
    torch.manual_seed(train.seed)
    network = build_autoencoder(model)
    frames = read_evenly(dataset.held_out, eval_images)
    network.encode_features(frames[:1])  # raise errors in the images before the run begins
    checkpoint.begin_run(folder, "autoencoder", model, train, data)
    batches = ImageBatches(dataset.train, batch_size, train.seed, mirror=flip)

    def evaluate(network: AnyAutoencoder, step: int) -> dict[str, float]:
        shown = frames[:NUM_IMAGES_SHOWN]
        rows = torch.stack([shown, network.reconstruct(to_device_of(network, shown))[0].cpu()])
        media.write(folder / "pictures" / f"{step:07d}.png", media.tile(rows.numpy())[None], scale=1)
        bound = compute_bounds(network, frames, model.num_samples if model.kind == "vimco" else 1)
        return {name: float(value) for name, value in network.bound_metrics(frames, bound).items()}

    fit(network, batches, evaluate, train, folder)
