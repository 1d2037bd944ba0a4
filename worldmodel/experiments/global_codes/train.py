"""A few codes for a whole image: ``python -m worldmodel.experiments.global_codes {train,evaluate}``.

The two-stage model of the first paper's section 4.2 and Figure 5. A first VQ-VAE encodes an image as a grid of codes; a
second one, :class:`GlobalCodes`, encodes that grid as three codes. What the three codes hold is shown by images sampled
from them, and measured by the bits that the grid takes given its own three codes, those of another image, and none.
"""

from dataclasses import asdict, replace
from pathlib import Path

from worldmodel import media
from worldmodel.episodes.store import EpisodeStore
from worldmodel.experiments.global_codes.config import GlobalCodesConfig
from worldmodel.shipped import find_vqvae
from worldmodel.train_config import TrainConfig

NUM_EVAL_FRAMES = 512  # held-out frames to evaluate on during training


def train(
    store: str,
    vqvae: str,
    run: str,
    model: GlobalCodesConfig = GlobalCodesConfig(),
    train: TrainConfig = TrainConfig(),
    batch_size: int = 32,
) -> None:
    """Train a second VQ-VAE on the codes that a first one gives to a store's frames, or resume an existing run.

    The frames are first encoded; their codes are cached in the store. Every tenth episode is held out. With
    ``--model.num_latents 0``, this trains the decoder alone, with which ``evaluate`` compares.

    Args:
        store: folder of recorded episodes.
        vqvae: run folder of the first VQ-VAE, or name or run folder of a world for the VQ-VAE in it, which is copied
            into this run.
        run: run folder for checkpoints, metrics and sample images.
        model: architecture of the second VQ-VAE; codebook_size, code_dim and grid are taken from the first.
        train: settings of the training loop.
        batch_size: number of images per batch.
    """
    import torch

    from worldmodel import checkpoint
    from worldmodel.episodes.encode import encode_store
    from worldmodel.episodes.segments import split_held_out
    from worldmodel.experiments.global_codes import measures
    from worldmodel.experiments.global_codes.model import GlobalCodes
    from worldmodel.images.dataset import ImageBatches
    from worldmodel.images.sources import FrameImages
    from worldmodel.splits import evenly_spaced
    from worldmodel.training import fit, pick_device

    folder, origin = Path(run).absolute(), find_vqvae(vqvae)
    data = {"store": store, "vqvae": vqvae, "batch_size": batch_size}
    checkpoint.check_choices(folder, "global_codes", train, data)  # before encoding, which is slow
    codes = encode_store(EpisodeStore(Path(store).absolute()), origin, pick_device(train))
    train_entries, held_out_entries = split_held_out(codes)
    first = checkpoint.load_tokenizer(origin)
    model = replace(
        model,
        codebook_size=first.quantizer.config.codebook_size,
        code_dim=first.quantizer.config.code_dim,
        grid=codes.schema.observation_shape,
    )
    torch.manual_seed(train.seed)
    network = GlobalCodes(model, first.quantizer.codebook)
    checkpoint.begin_run(folder, "global_codes", model, train, {**data, **asdict(codes.schema)}, origin)
    batches = ImageBatches(FrameImages([(codes, train_entries)]), batch_size, train.seed)
    held_out = FrameImages([(codes, held_out_entries)])
    eval_codes = measures.read_images(held_out, evenly_spaced(len(held_out), NUM_EVAL_FRAMES))
    shown = evenly_spaced(len(eval_codes), measures.NUM_IMAGES_SHOWN)

    def evaluate(network: GlobalCodes, step: int) -> dict[str, float]:
        device = next(network.parameters()).device
        codes = eval_codes.to(device)
        latents = measures.encode_latents(network, codes)
        rows = codes[shown], measures.sample_codes(network, latents[shown], seed=0)
        images = torch.stack([measures.decode_frames(first.to(device), row) for row in rows])
        media.write(folder / "pictures" / f"{step:07d}.png", media.tile(images.numpy())[None], scale=1)
        shuffled = measures.shuffle_latents(latents)
        perplexities = measures.latent_usage(latents, model)["perplexity"]
        return {
            "bits_per_code": float(measures.bits_per_code(network, codes, latents).mean()),
            "bits_per_code_shuffled": float(measures.bits_per_code(network, codes, shuffled).mean()),
            **{f"perplexity_{index}": value for index, value in enumerate(perplexities)},
        }

    fit(network, lambda *args: batches(*args).long(), evaluate, train, folder)
