"""Train a dynamics model on the codes of recorded episodes: ``python -m worldmodel.train dynamics``."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from worldmodel import media
from worldmodel.episodes.store import EpisodeStore
from worldmodel.models.config import NUM_CONTEXT_FRAMES, DynamicsConfig
from worldmodel.shipped import find_vqvae, find_world
from worldmodel.train_config import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

    from worldmodel.models.dynamics import Batch
    from worldmodel.world_model import WorldModel

EVAL_BATCH_SIZE, EVAL_BATCHES = 8, 8  # batches of held-out segments
NUM_SHOWN = 16  # images in a row of a sample sheet


def dynamics(
    store: str,
    vqvae: str,
    run: str,
    model: DynamicsConfig = DynamicsConfig(),
    train: TrainConfig = TrainConfig(),
    batch_size: int = 2,
    seq_length: int = 10,
    actions: Literal["named", "none"] = "named",
    init: str = "",
    mirror: bool = False,
    workers: int = 0,
    gpus_per_worker: int = 0,
    address: str = "",
) -> None:
    """Train a dynamics model on the VQ-VAE codes of recorded episodes, or resume an existing run.

    The frames are first encoded; their codes are cached in the store. Every tenth episode is held out.

    Args:
        store: folder of recorded episodes.
        vqvae: run folder of the VQ-VAE, or name or run folder of a world for the VQ-VAE in it, which is copied into
            this run.
        run: run folder for checkpoints, metrics and sample images.
        model: architecture of the dynamics model; codebook, grid and actions are taken from the data.
        train: settings of the training loop.
        batch_size: number of episode segments per batch.
        seq_length: number of frames per segment, 2 or more; all but the first are predicted.
        actions: named to condition on the recorded actions, none to train without actions.
        init: name of a shipped world, or run folder of a dynamics model, with the same VQ-VAE and no more layers, to
            initialize the weights from.
        mirror: flip half of the segments left to right and swap left and right actions; needs a VQ-VAE trained with
            --mirror, and an environment whose mirror image is equally likely.
        workers: number of Ray Train workers that share each batch, or 0 to train in this process.
        gpus_per_worker: number of GPUs per worker, 0 or 1; CPU workers use one thread unless --train.threads is set.
        address: address of a running Ray cluster that shares these folders; empty starts a local one.
    """
    import torch

    from worldmodel import checkpoint, tensor_io
    from worldmodel.episodes.encode import encode_store
    from worldmodel.episodes.segments import SegmentSampler, sample_segments, split_held_out
    from worldmodel.metrics import dynamics_scores
    from worldmodel.models.dynamics import Batch, Dynamics
    from worldmodel.ray_train import fit_on_workers
    from worldmodel.training import pick_device
    from worldmodel.world_model import WorldModel

    if seq_length < 2:
        raise ValueError(
            f"--seq_length must be 2 or more frames, the first of which is not predicted, got {seq_length}"
        )
    if seq_length <= model.context_length:
        print(
            f"note: --seq_length {seq_length} is too short to train the full context of {model.context_length} frames; "
            f"{model.context_length + 1} or more would"
        )
    folder, origin, device = Path(run).absolute(), find_vqvae(vqvae), pick_device(train)
    data = {
        "store": store,
        "vqvae": vqvae,
        "batch_size": batch_size,
        "seq_length": seq_length,
        "init": init,
        "mirror": mirror,
    }
    checkpoint.check_choices(folder, "dynamics", train, data)  # before encoding, which is slow
    frames = EpisodeStore(Path(store).absolute())
    codes = encode_store(frames, origin, device)
    mirrored = encode_store(frames, origin, device, mirrored=True) if mirror else None
    training, held_out = split_held_out(codes)
    tokenizer = checkpoint.load_tokenizer(origin)
    model = replace(
        model,
        codebook_size=tokenizer.quantizer.config.codebook_size,
        code_dim=tokenizer.quantizer.config.code_dim,
        grid=codes.schema.observation_shape,
        num_actions=len(codes.schema.action_names) if actions == "named" else 0,
        reward_scale=model.reward_scale or checkpoint.measured_value(folder, "reward_scale") or reward_rms(codes),
    )
    data |= asdict(codes.schema)
    torch.manual_seed(train.seed)
    network = Dynamics(model, tokenizer.quantizer.codebook)
    if init and not (folder / "train.safetensors").exists():
        earlier = find_world(init)
        if tensor_io.digest(earlier / "vqvae") != tensor_io.digest(origin):
            raise ValueError(f"--init {init} predicts the codes of another VQ-VAE than {vqvae}; give that one")
        names, known = list(codes.schema.action_names), list(checkpoint.read_config(earlier)["data"]["action_names"])
        if model.num_actions and known != names:
            raise ValueError(f"--init {init} knows the actions {known}, {store} has {names}")
        network.grow_from(checkpoint.load_dynamics(earlier))
    checkpoint.begin_run(folder, "dynamics", model, train, data, origin)
    sampler = SegmentSampler(codes, training, batch_size, seq_length, train.seed, mirrored)
    eval_sampler = SegmentSampler(codes, held_out, EVAL_BATCH_SIZE, seq_length, train.seed + 1)
    length = min(NUM_SHOWN, max(entry.observations for entry in held_out))
    shown_codes, shown_actions, _ = sample_segments(codes, held_out, 1, length, train.seed + 2)

    def evaluate(network: "Dynamics", step: int) -> dict[str, float]:
        tokenizer.to(next(network.parameters()).device)
        world = WorldModel(tokenizer, network, codes.schema.action_names, folder)
        image = dream_over_truth(world, shown_codes[0], shown_actions[0])
        media.write(folder / "pictures" / f"{step:07d}.png", image[None], scale=1)
        return dynamics_scores(network, [Batch(*eval_sampler(number)) for number in range(EVAL_BATCHES)])

    def batches(step: int, rank: int, world_size: int) -> "Batch":
        return Batch(*sampler(step, rank, world_size))

    fit_on_workers(network, batches, evaluate, train, folder, workers, gpus_per_worker, address)


def reward_rms(store: EpisodeStore) -> float:
    """Return the root mean square of a store's rewards, or 1 if all are zero."""
    rewards = np.concatenate([store.steps(entry.number)[1] for entry in store.entries])
    return float(np.sqrt(np.square(rewards).mean())) or 1.0


def dream_over_truth(
    world: "WorldModel", codes: "Tensor", actions: "Tensor", context: int = NUM_CONTEXT_FRAMES
) -> np.ndarray:
    """Return an image of a dream above the true frames, from codes (T, H, W) and actions (T-1,), T ≥ 2."""
    import torch

    context = min(context, len(codes) - 1)
    state = world.start_from_codes(codes[None, :context], actions[None, : context - 1])
    dreamed = world.imagine(state, actions[None, context - 1 :])[0].cpu()
    rows = world.decode(torch.cat([codes[:context], dreamed, codes]))
    return media.tile(rows.unflatten(0, (2, -1)).numpy())
