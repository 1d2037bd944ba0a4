"""Train a VQ-VAE on the frames of a store or on images: ``python -m worldmodel.train vqvae``."""

from dataclasses import replace
from pathlib import Path

from worldmodel import media
from worldmodel.models.config import VQVAEConfig
from worldmodel.train_config import TrainConfig

EVAL_IMAGES = 2048  # maximum number of held-out images to evaluate on


def vqvae(
    run: str,
    store: str = "",
    images: str = "",
    size: int = 0,
    model: VQVAEConfig = VQVAEConfig(),
    train: TrainConfig = TrainConfig(),
    batch_size: int = 32,
    mirror: bool = False,
    workers: int = 0,
    gpus_per_worker: int = 0,
    address: str = "",
) -> None:
    """Train a VQ-VAE on the frames of a store or on images, or resume an existing run.

    The dataset's own test split is held out if it has one, else every tenth episode or image.

    Args:
        run: run folder for checkpoints, metrics and reconstructed images.
        store: folder of recorded episodes; give either this or --images.
        images: image dataset: CIFAR-10 or SVHN files, a .npz file, a folder of images or of class folders, a store, or
            a folder of stores.
        size: side in pixels to which images are center-cropped and resized; 0 keeps their size.
        model: architecture of the VQ-VAE.
        train: settings of the training loop.
        batch_size: number of images per batch.
        mirror: flip half of the images left to right; a dynamics model trained with --mirror needs this.
        workers: number of Ray Train workers that share each batch, or 0 to train in this process.
        gpus_per_worker: number of GPUs per worker, 0 or 1; CPU workers use one thread unless --train.threads is set.
        address: address of a running Ray cluster that shares these folders; empty starts a local one.
    """
    import torch

    from worldmodel import checkpoint
    from worldmodel.images.dataset import ImageBatches, dataset_facts, measure_variance, open_store_or_images
    from worldmodel.metrics import vqvae_scores
    from worldmodel.models.vqvae import VQVAE
    from worldmodel.ray_train import fit_on_workers
    from worldmodel.splits import evenly_spaced
    from worldmodel.train.dynamics import NUM_SHOWN

    dataset, folder = open_store_or_images(store, images, size), Path(run).absolute()
    batches = ImageBatches(dataset.train, batch_size, train.seed, mirror)
    variance = model.data_variance or checkpoint.measured_value(folder, "data_variance")
    model = replace(model, data_variance=variance or measure_variance(dataset.train))
    data = {"store": store, "images": images, "size": size, "batch_size": batch_size, "mirror": mirror}
    data |= dataset_facts(dataset)
    torch.manual_seed(train.seed)
    network = VQVAE.from_config(model)
    eval_indices = evenly_spaced(len(dataset.held_out), EVAL_IMAGES)
    network.encode(torch.from_numpy(dataset.held_out.read(eval_indices[:1])))  # raises if the image size does not fit
    checkpoint.begin_run(folder, "vqvae", model, train, data)

    def evaluate(network: "VQVAE", step: int) -> dict[str, float]:
        originals = torch.from_numpy(dataset.held_out.read(eval_indices))  # read here: too large to send to Ray workers
        reconstructions, scores = vqvae_scores(network, originals)
        stride = max(1, len(originals) // NUM_SHOWN)
        shown = torch.stack([part[::stride][:NUM_SHOWN] for part in (originals, reconstructions)])
        media.write(folder / "pictures" / f"{step:07d}.png", media.tile(shown.numpy())[None], scale=1)
        return scores

    fit_on_workers(network, batches, evaluate, train, folder, workers, gpus_per_worker, address)
