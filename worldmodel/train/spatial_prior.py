"""Train a prior over the codes of single images: ``python -m worldmodel.train spatial_prior``."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from worldmodel import media
from worldmodel.models.config import SpatialPriorConfig
from worldmodel.shipped import find_vqvae
from worldmodel.train_config import TrainConfig

if TYPE_CHECKING:
    from worldmodel.images.sources import ImageSource
    from worldmodel.models.spatial_prior import CodeBatch

EVAL_CODES = 1 << 17  # maximum number of held-out codes to evaluate on
SAMPLE_ROWS = 4  # rows of a sample sheet


def spatial_prior(
    vqvae: str,
    run: str,
    store: str = "",
    images: str = "",
    size: int = 0,
    model: SpatialPriorConfig = SpatialPriorConfig(),
    train: TrainConfig = TrainConfig(),
    batch_size: int = 16,
    classes: bool = True,
    num_samples: int = 0,
    workers: int = 0,
    gpus_per_worker: int = 0,
    address: str = "",
) -> None:
    """Train an autoregressive prior over the codes of single images, or resume an existing run.

    The images are first encoded; the codes of a store are cached in it. Images are held out as for the VQ-VAE.

    Args:
        vqvae: run folder of the VQ-VAE, or name or run folder of a world for the VQ-VAE in it, which is copied into
            this run.
        run: run folder for checkpoints, metrics and sample images.
        store: folder of recorded episodes; give either this or --images.
        images: image dataset, in any format that training a VQ-VAE accepts.
        size: side in pixels to which images are center-cropped and resized; 0 keeps their size.
        model: architecture of the spatial prior; codebook, grid and classes are taken from the data.
        train: settings of the training loop.
        batch_size: number of images per batch.
        classes: condition on the image classes, if there are any.
        num_samples: number of codes sampled per position, as in soft EM, to train on; 0 for the nearest code.
        workers: number of Ray Train workers that share each batch, or 0 to train in this process.
        gpus_per_worker: number of GPUs per worker, 0 or 1; CPU workers use one thread unless --train.threads is set.
        address: address of a running Ray cluster that shares these folders; empty starts a local one.
    """
    import torch

    from worldmodel import checkpoint
    from worldmodel.baselines import Unigram
    from worldmodel.images.codes import EncodedImages, encode_images
    from worldmodel.images.dataset import ImageBatches, dataset_facts, open_store_or_images
    from worldmodel.images.generator import ImageGenerator
    from worldmodel.images.sources import ImageSubset
    from worldmodel.metrics import spatial_scores
    from worldmodel.models.spatial_prior import SpatialPrior
    from worldmodel.ray_train import fit_on_workers
    from worldmodel.splits import evenly_spaced
    from worldmodel.train.dynamics import NUM_SHOWN
    from worldmodel.training import pick_device

    if num_samples < 0:
        raise ValueError(f"--num_samples must be 0 or more, got {num_samples}")
    folder, origin, device = Path(run).absolute(), find_vqvae(vqvae), pick_device(train)
    data = {
        "store": store,
        "images": images,
        "size": size,
        "vqvae": vqvae,
        "batch_size": batch_size,
        "num_samples": num_samples,
    }
    checkpoint.check_choices(folder, "spatial_prior", train, data)  # before encoding, which is slow
    dataset, tokenizer = open_store_or_images(store, images, size), checkpoint.load_tokenizer(origin).to(device)
    grid = tokenizer.encode(torch.zeros(1, *dataset.shape, dtype=torch.uint8, device=device)).shape[1:]
    count = max(1, EVAL_CODES // grid.numel())
    held_out = EncodedImages(ImageSubset(dataset.held_out, evenly_spaced(len(dataset.held_out), count)), tokenizer)
    if num_samples:
        training = EncodedImages(dataset.train, tokenizer, num_samples, train.seed)
    else:
        training = encode_images(dataset.train, origin, device)
    class_names = dataset.classes if classes else ()
    settings = tokenizer.quantizer.config
    model = replace(
        model,
        codebook_size=settings.codebook_size,
        code_dim=settings.code_dim,
        grid=tuple(grid),
        num_classes=len(class_names),
    )
    torch.manual_seed(train.seed)
    vectors = tokenizer.quantizer.decode(torch.arange(settings.codebook_size, device=device)[None])[0].T
    network = SpatialPrior(model, vectors.cpu())
    data |= {**dataset_facts(dataset), "classes": class_names}
    checkpoint.begin_run(folder, "spatial_prior", model, train, data, origin)
    sampler = ImageBatches(training, batch_size, train.seed)

    def batches(step: int, rank: int, world_size: int) -> "CodeBatch":
        return read_code_batch(training, sampler.sample_indices(step, rank, world_size))

    unigram = Unigram(read_code_batch(training, evenly_spaced(len(training), count)).codes, settings.codebook_size)
    eval_batch = read_code_batch(held_out, np.arange(len(held_out)))
    if workers:
        tokenizer.cpu()  # it is sent to the workers, which may have no GPU

    def evaluate(network: "SpatialPrior", step: int) -> dict[str, float]:
        generator = ImageGenerator(tokenizer.to(next(network.parameters()).device), network, class_names)
        samples = generator.generate(generator.make_labels(SAMPLE_ROWS, NUM_SHOWN // SAMPLE_ROWS))
        sheet = media.tile(samples.unflatten(0, (SAMPLE_ROWS, -1)).numpy())
        media.write(folder / "pictures" / f"{step:07d}.png", sheet[None], scale=1)
        return spatial_scores(network, *eval_batch, unigram)

    fit_on_workers(network, batches, evaluate, train, folder, workers, gpus_per_worker, address)


def read_code_batch(images: "ImageSource", indices: np.ndarray) -> "CodeBatch":
    """Read the codes and class labels of the images with these indices."""
    import torch

    from worldmodel.models.spatial_prior import CodeBatch

    codes = torch.from_numpy(images.read(indices).astype(np.int64))
    return CodeBatch(codes, torch.from_numpy(images.labels[indices]))
