"""Scores of a second VQ-VAE: bits per code, sampled codes, and how the latents are used."""

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from worldmodel import checkpoint, tensor_io
from worldmodel.episodes.encode import encode_frames
from worldmodel.episodes.store import EpisodeStore
from worldmodel.experiments.global_codes.config import GlobalCodesConfig
from worldmodel.experiments.global_codes.model import GlobalCodes
from worldmodel.images.sources import FrameImages
from worldmodel.metrics import psnr
from worldmodel.models.quantizers.interface import perplexity
from worldmodel.models.vqvae import VQVAE
from worldmodel.stats import bootstrap_interval

BATCH_SIZE = 64
NUM_IMAGES_SHOWN = 8  # columns of a sheet


def load_global_codes(run: str) -> GlobalCodes:
    """Load the second VQ-VAE of a run."""
    return cast(GlobalCodes, checkpoint.load_model(Path(run), "global_codes"))


def load_unconditional(baseline: str, run: str, network: GlobalCodes) -> GlobalCodes | None:
    """Load the model without latents to compare with, or return None if there is none.

    Raises:
        ValueError: if it has latents, or predicts other codes.
    """
    if not baseline:
        return None
    other = load_global_codes(baseline)
    if other.config.num_latents:
        raise ValueError(
            f"--baseline {baseline} must be trained with --model.num_latents 0, "
            f"it has {other.config.num_latents} latents"
        )
    if tensor_io.digest(Path(baseline) / "vqvae") != tensor_io.digest(Path(run) / "vqvae"):
        raise ValueError(
            f"--baseline {baseline} predicts the codes of another VQ-VAE than {run}; train one on its codes"
        )
    if other.config.grid != network.config.grid:
        raise ValueError(
            f"--baseline {baseline} was trained on grids of {other.config.grid} codes, {run} on {network.config.grid}"
        )
    return other


def check_grid(first: VQVAE, network: GlobalCodes, recorded: EpisodeStore, run: str) -> None:
    """Raise a ValueError if a store's frames give another grid of codes than a run was trained on."""
    grid = encode_frames(first, np.zeros((1, *recorded.schema.observation_shape), np.uint8)).shape[1:]
    if grid != network.config.grid:
        raise ValueError(
            f"{run} was trained on grids of {' by '.join(map(str, network.config.grid))} codes, the frames of "
            f"{recorded.path} have {' by '.join(map(str, grid))}; give a store with frames of the original size"
        )


def read_images(images: FrameImages, indices: np.ndarray) -> Tensor:
    """Read the images at these indices: frames (N, H, W, 3) uint8 or codes (N, H, W) int64."""
    values = torch.from_numpy(images.read(indices))
    return values if values.dtype == torch.uint8 else values.long()


@torch.no_grad()
def encode_latents(network: GlobalCodes, codes: Tensor) -> Tensor:
    """Encode codes (N, H, W) as latents (N, num_latents)."""
    return torch.cat([network.encode(part) for part in codes.split(BATCH_SIZE)])


@torch.no_grad()
def bits_per_code(network: GlobalCodes, codes: Tensor, latents: Tensor) -> Tensor:
    """Return bits per code of codes (N, H, W) given latents (N, num_latents): (N,), on the CPU."""
    parts = zip(codes.split(BATCH_SIZE), latents.split(BATCH_SIZE), strict=True)
    return torch.cat([network.bits_per_code(*part) for part in parts]).cpu()


def score_bits(
    network: GlobalCodes, unconditional: GlobalCodes | None, codes: Tensor, latents: Tensor, episodes: Tensor
) -> dict[str, Any]:
    """Score how well latents (N, num_latents) predict their codes (N, H, W).

    Args:
        unconditional: model without latents to compare with, or None.
        episodes: (N,) numbers of the episodes, over which intervals are taken.

    Returns:
        ``bits_per_code`` with the ``true`` latents, ``shuffled`` ones and ``none``; ``bits_per_frame``, also of the
        latents themselves and of the first VQ-VAE's codes as they are; ``bits_per_frame_saved`` by the true latents.
    """
    bits = {
        "true": bits_per_code(network, codes, latents),
        "shuffled": bits_per_code(network, codes, shuffle_latents(latents)),
    }
    if unconditional:
        bits["none"] = bits_per_code(unconditional.to(codes.device), codes, latents[:, :0])
    size, latent_bits = codes[0].numel(), network.config.bits_per_image
    return {
        "bits_per_code": {name: bootstrap_interval(part, episodes) for name, part in bits.items()},
        "bits_per_frame": {
            "latents": latent_bits,
            **{name: size * float(part.mean()) for name, part in bits.items()},
            "latents_and_true": latent_bits + size * float(bits["true"].mean()),
            "first_vqvae_codes": size * math.log2(network.config.codebook_size),
        },
        "bits_per_frame_saved": {
            name: bootstrap_interval(size * (part - bits["true"]), episodes)
            for name, part in bits.items()
            if name != "true"
        },
    }


def score_psnr(
    network: GlobalCodes,
    first: VQVAE,
    codes: Tensor,
    latents: Tensor,
    truth: Tensor,
    episodes: Tensor,
    temperature: float,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Compare frames (N, H, W, 3) uint8 with those decoded from codes: their own, and sampled ones.

    Returns:
        PSNR in dB, as intervals over episodes: of ``first_vqvae``, and of codes sampled given the ``true`` latents and
        ``shuffled`` ones.
    """
    decoded = {
        "first_vqvae": codes,
        "true": sample_codes(network, latents, seed, temperature),
        "shuffled": sample_codes(network, shuffle_latents(latents), seed, temperature),
    }
    return {
        name: bootstrap_interval(psnr(decode_frames(first, part), truth), episodes) for name, part in decoded.items()
    }


def shuffle_latents(latents: Tensor) -> Tensor:
    """Roll latents by half their number, so that most images get the latents of another episode."""
    return latents.roll(len(latents) // 2, 0)


def sample_codes(network: GlobalCodes, latents: Tensor, seed: int, temperature: float = 1.0) -> Tensor:
    """Sample codes (N, H, W) given latents (N, num_latents); the same for the same seed."""
    uniforms = torch.rand(len(latents), *network.config.grid, generator=torch.Generator().manual_seed(seed))
    parts = zip(latents.split(BATCH_SIZE), uniforms.to(latents.device).split(BATCH_SIZE), strict=True)
    return torch.cat([network.sample(*part, temperature) for part in parts])


@torch.no_grad()
def decode_frames(first: VQVAE, codes: Tensor) -> Tensor:
    """Decode codes (N, H, W) to frames uint8, on the CPU."""
    return torch.cat([first.decode(part).cpu() for part in codes.split(BATCH_SIZE)])


def latent_usage(latents: Tensor, model: GlobalCodesConfig) -> dict[str, Any]:
    """Return the perplexity and the number of used codes of each codebook, and the number of distinct combinations."""
    counts = [torch.bincount(column, minlength=model.quantizer.codebook_size).float() for column in latents.T.cpu()]
    return {
        "perplexity": [float(perplexity(part)) for part in counts],
        "codes_used": [int((part > 0).sum()) for part in counts],
        "combinations": len(set(map(tuple, latents.tolist()))),
    }
