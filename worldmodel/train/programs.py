"""Train the parts of a world model, or of a painter: ``python -m worldmodel.train {vqvae,prior,pixelcnn}``."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel import checkpoint, media
from worldmodel.episodes.encode import CodedPictures, coded, encoded
from worldmodel.episodes.segments import StepWindows, split, spread
from worldmodel.episodes.store import EpisodeStore
from worldmodel.images.dataset import PictureBatches, describe, given
from worldmodel.images.generator import Painter
from worldmodel.images.pictures import Pictures, SomePictures
from worldmodel.metrics import Unigram, prior_scores, spatial_scores, vqvae_scores
from worldmodel.models.dynamics import Batch, Dynamics, DynamicsConfig
from worldmodel.models.spatial_prior import CodeBatch, SpatialPrior, SpatialPriorConfig
from worldmodel.models.vqvae import VQVAE, VQVAEConfig
from worldmodel.ray_train import fit_on_workers
from worldmodel.training import TrainConfig, fit, pick_device
from worldmodel.world_model import WorldModel

EVALUATED = 2048  # held-out frames that a VQ-VAE is measured on
PRIOR_BATCH, PRIOR_BATCHES = 8, 8  # held-out stretches that a prior is measured on while it trains
EVALUATED_CODES = 1 << 17  # of held-out pictures that a spatial prior is measured on
SHOWN = 16  # frames in a picture
ROWS = 4  # that those sampled from a spatial prior are shown in


def vqvae(
    run: str,
    store: str = "",
    images: str = "",
    size: int = 0,
    model: VQVAEConfig = VQVAEConfig(),
    train: TrainConfig = TrainConfig(),
    batch: int = 32,
    mirror: bool = False,
    workers: int = 0,
    gpus_per_worker: int = 0,
    address: str = "",
) -> None:
    """Train a VQ-VAE on the frames of a store or on pictures; an existing run is continued.

    Every tenth episode or picture is held out, or what a set of pictures has for that, for the metrics and the pictures
    of originals over reconstructions.

    Args:
        run: folder to write checkpoints, metrics and pictures into.
        store: folder of recorded episodes; either this or --images.
        images: CIFAR-10's or SVHN's files, a .npz, a folder of pictures or of class folders, a store, or a folder of
            stores.
        size: cut out the middle of each picture and scale it to this side; 0 leaves them.
        model: sizes.
        train: length and speed.
        batch: pictures in a batch.
        mirror: flip half of them left to right, as a prior that learns from mirrored episodes needs it.
        workers: train in this process (0) or in this many workers of Ray Train, which share each batch.
        gpus_per_worker: 1 on GPUs; 0 on the CPU, on one thread each unless --train.threads says otherwise.
        address: of a running Ray cluster that shares these folders; empty starts one here.
    """
    pictures, folder = given(store, images, size), Path(run).absolute()
    batches = PictureBatches(pictures.learnt, batch, train.seed, mirror)
    variance = model.variance or checkpoint.remembered(folder, "variance") or float((batches(0) / 255).var())
    model = replace(model, variance=variance)
    data = {"store": store, "images": images, "size": size, "batch": batch, "mirror": mirror}
    data |= describe(pictures)
    torch.manual_seed(train.seed)
    network = VQVAE.from_config(model)
    measured = spread(len(pictures.held_out), EVALUATED)
    network.encode(torch.from_numpy(pictures.held_out.read(measured))[:1])  # to say now what is wrong with them
    checkpoint.begin(folder, "vqvae", model, train, data)

    def evaluate(network: nn.Module, step: int) -> dict[str, float]:
        frames = torch.from_numpy(pictures.held_out.read(measured))  # not before: Ray refuses to send so much
        reconstructions, scores = vqvae_scores(network, frames)
        shown = torch.stack([part[:: max(1, len(frames) // SHOWN)][:SHOWN] for part in (frames, reconstructions)])
        media.write(folder / "pictures" / f"{step:07d}.png", media.grid(shown.numpy())[None], scale=1)
        return scores

    learn = partial(fit_on_workers, workers=workers, gpus=gpus_per_worker, address=address) if workers else fit
    learn(network, batches, evaluate, train, folder)


def prior(
    store: str,
    vqvae: str,
    run: str,
    model: DynamicsConfig = DynamicsConfig(),
    train: TrainConfig = TrainConfig(),
    batch: int = 2,
    length: int = 10,
    actions: Literal["named", "none"] = "named",
    init: str = "",
    mirror: bool = False,
    workers: int = 0,
    gpus_per_worker: int = 0,
    address: str = "",
) -> None:
    """Train a dynamics prior on the codes that a VQ-VAE gives a store's frames; an existing run is continued.

    The frames are encoded first, once, and kept beside the store. Every tenth episode is held out.

    Args:
        store: folder of recorded episodes.
        vqvae: run folder of the VQ-VAE; a copy goes into this run, which is then whole.
        run: folder to write checkpoints, metrics and pictures into.
        model: sizes; codes, grid, actions and dim are those of the data.
        train: length and speed.
        batch: stretches of episodes in a batch.
        length: frames of a stretch; all but the first are predicted.
        actions: none trains a prior that is told no actions.
        init: run folder of a trained prior over the same VQ-VAE to begin with, of as many blocks or fewer.
        mirror: see half of the stretches in a mirror, left and right swapped in frames and in the actions, with
            a VQ-VAE that was trained with the same flag; for worlds that look as likely in one.
        workers: train in this process (0) or in this many workers of Ray Train, which share each batch.
        gpus_per_worker: 1 on GPUs; 0 on the CPU, on one thread each unless --train.threads says otherwise.
        address: of a running Ray cluster that shares these folders; empty starts one here.
    """
    if length < 2:
        raise ValueError(f"--length must be 2 or more frames, the first of which is not predicted, got {length}")
    folder, origin, device = Path(run).absolute(), Path(vqvae), pick_device(train)
    data = {"store": store, "vqvae": vqvae, "batch": batch, "length": length, "init": init, "mirror": mirror}
    checkpoint.check_choices(folder, "prior", train, data)  # before anything is encoded
    recorded = EpisodeStore(Path(store).absolute())
    codes = encoded(recorded, origin, device)
    mirrored = encoded(recorded, origin, device, mirrored=True) if mirror else None
    learnt, held_out = split(codes)
    tokenizer = checkpoint.load_vqvae(origin)
    model = replace(
        model,
        codes=tokenizer.quantizer.config.codes,
        dim=tokenizer.quantizer.config.dim,
        grid=codes.schema.observation_shape,
        actions=len(codes.schema.action_names) if actions == "named" else 0,
        reward_scale=model.reward_scale or checkpoint.remembered(folder, "reward_scale") or reward_scale(codes),
    )
    data |= asdict(codes.schema)
    torch.manual_seed(train.seed)
    network = Dynamics(model, tokenizer.quantizer.codebook)
    if init and not (folder / "train.safetensors").exists():
        if checkpoint.digest(Path(init) / "vqvae") != checkpoint.digest(origin):
            raise ValueError(f"--init {init} predicts the codes of another VQ-VAE than {vqvae}; give that one")
        network.grow_from(checkpoint.load_dynamics(Path(init)))
    checkpoint.adopt(folder, origin)
    checkpoint.begin(folder, "prior", model, train, data)
    windows = StepWindows(codes, learnt, batch, length, train.seed, mirrored)
    unseen = StepWindows(codes, held_out, PRIOR_BATCH, length, train.seed + 1)
    shown = [part[0] for part in StepWindows(codes, held_out, 1, SHOWN, train.seed + 2)(0)[:2]]

    def evaluate(network: nn.Module, step: int) -> dict[str, float]:
        tokenizer.to(next(network.parameters()).device)
        picture = compare(WorldModel(tokenizer, network, codes.schema.action_names, folder), *shown)
        media.write(folder / "pictures" / f"{step:07d}.png", picture[None], scale=1)
        return prior_scores(network, [Batch(*unseen(number)) for number in range(PRIOR_BATCHES)])

    learn = partial(fit_on_workers, workers=workers, gpus=gpus_per_worker, address=address) if workers else fit
    learn(network, lambda *place: Batch(*windows(*place)), evaluate, train, folder)


def pixelcnn(
    vqvae: str,
    run: str,
    store: str = "",
    images: str = "",
    size: int = 0,
    model: SpatialPriorConfig = SpatialPriorConfig(),
    train: TrainConfig = TrainConfig(),
    batch: int = 16,
    classes: bool = True,
    samples: int = 0,
    workers: int = 0,
    gpus_per_worker: int = 0,
    address: str = "",
) -> None:
    """Train a prior over the codes of single pictures, a gated PixelCNN; an existing run is continued.

    The pictures are encoded first, and the codes of stores are kept beside them. What is held out is what it is for the
    VQ-VAE of the same pictures.

    Args:
        vqvae: run folder of the VQ-VAE; a copy goes into this run, which is then whole.
        run: folder to write checkpoints, metrics and pictures into.
        store: folder of recorded episodes; either this or --images.
        images: what else the pictures are in, as for vqvae.
        size: cut out the middle of each picture and scale it to this side; 0 leaves them.
        model: sizes; codes, grid, classes and dim are those of the data.
        train: length and speed.
        batch: pictures in a batch.
        classes: tell it the classes of pictures that have some.
        samples: learn from so many codes for each position, drawn as soft EM draws them, and not from the nearest; 0
            learns from those.
        workers: train in this process (0) or in this many workers of Ray Train, which share each batch.
        gpus_per_worker: 1 on GPUs; 0 on the CPU, on one thread each unless --train.threads says otherwise.
        address: of a running Ray cluster that shares these folders; empty starts one here.
    """
    if samples < 0:
        raise ValueError(f"--samples must be 0 or more, got {samples}")
    folder, origin, device = Path(run).absolute(), Path(vqvae), pick_device(train)
    data = {"store": store, "images": images, "size": size, "vqvae": vqvae, "batch": batch, "samples": samples}
    checkpoint.check_choices(folder, "pixelcnn", train, data)  # before anything is encoded
    pictures, tokenizer = given(store, images, size), checkpoint.load_vqvae(origin).to(device)
    grid = tokenizer.encode(torch.zeros(1, *pictures.shape, dtype=torch.uint8, device=device)).shape[1:]
    count = max(1, EVALUATED_CODES // grid.numel())
    measured = SomePictures(pictures.held_out, spread(len(pictures.held_out), count))
    drawn = CodedPictures(pictures.learnt, tokenizer, samples, train.seed)
    learnt, held_out = drawn if samples else coded(pictures.learnt, origin, device), CodedPictures(measured, tokenizer)
    known = pictures.classes if classes else ()
    settings = tokenizer.quantizer.config
    model = replace(model, codes=settings.codes, dim=settings.dim, grid=tuple(grid), classes=len(known))
    torch.manual_seed(train.seed)
    vectors = tokenizer.quantizer.decode(torch.arange(settings.codes, device=device)[None])[0].T
    network = SpatialPrior(model, vectors.cpu())
    checkpoint.adopt(folder, origin)
    checkpoint.begin(folder, "pixelcnn", model, train, {**data, **describe(pictures), "classes": known})
    order = PictureBatches(learnt, batch, train.seed)

    def batches(*place: int) -> CodeBatch:
        return code_batch(learnt, order.draw(*place))

    unigram = Unigram(code_batch(learnt, spread(len(learnt), count)).codes, settings.codes)
    unseen = code_batch(held_out, np.arange(len(held_out)))

    def evaluate(network: nn.Module, step: int) -> dict[str, float]:
        painter = Painter(tokenizer.to(next(network.parameters()).device), network, known)
        painted = painter.paint(painter.labels(ROWS, SHOWN // ROWS)).unflatten(0, (ROWS, -1))
        media.write(folder / "pictures" / f"{step:07d}.png", media.grid(painted.numpy())[None], scale=1)
        return spatial_scores(network, *unseen, unigram)

    learn = partial(fit_on_workers, workers=workers, gpus=gpus_per_worker, address=address) if workers else fit
    learn(network, batches, evaluate, train, folder)


def code_batch(pictures: Pictures, indices: np.ndarray) -> CodeBatch:
    """The codes of these pictures, and their classes."""
    codes = torch.from_numpy(pictures.read(indices).astype(np.int64))
    return CodeBatch(codes, torch.from_numpy(pictures.labels[indices]))


def reward_scale(store: EpisodeStore) -> float:
    """The root mean square of a store's rewards, or 1 if there are none."""
    rewards = np.concatenate([store.steps(entry.number)[1] for entry in store.entries])
    return float(np.sqrt(np.square(rewards).mean())) or 1.0


def compare(world: WorldModel, codes: Tensor, actions: Tensor, context: int = 6) -> np.ndarray:
    """What is dreamed from the first frames of (T, H, W) codes under their actions (T-1,), over what really came."""
    state = world.start_from_codes(codes[None, :context], actions[None, : context - 1])
    dreamt = world.imagine(state, actions[None, context - 1 :])[0].cpu()
    rows = world.decode(torch.cat([codes[:context], dreamt, codes]))
    return media.grid(rows.unflatten(0, (2, -1)).numpy())
