"""One run of the comparison: training, and reconstructions from sampled codes."""

from pathlib import Path

import torch
from torch import Tensor

from worldmodel import checkpoint
from worldmodel.images.dataset import ImageBatches, ImageDataset, read_evenly
from worldmodel.metrics import nmse, vqvae_scores
from worldmodel.models.config import VQVAEConfig
from worldmodel.models.quantizers.kinds import build_quantizer
from worldmodel.models.vqvae import VQVAE, Decoder, Encoder
from worldmodel.train_config import TrainConfig
from worldmodel.training import fit

NUM_EVAL_IMAGES = 512


def build_initial_vqvae(model: VQVAEConfig, seed: int) -> VQVAE:
    """Build a VQ-VAE whose initial encoder and decoder depend on the seed but not on the quantizer."""
    torch.manual_seed(seed)
    encoder, decoder = Encoder(model), Decoder(model)
    quantizer = build_quantizer(model.quantizer)
    return VQVAE(encoder, quantizer, decoder, model.data_variance, model.codes_per_position)


def train_variant(run: Path, model: VQVAEConfig, train: TrainConfig, data: dict, dataset: ImageDataset) -> Path:
    """Train the VQ-VAE of one run, and return its folder."""
    network = build_initial_vqvae(model, train.seed)
    frames = read_evenly(dataset.held_out, NUM_EVAL_IMAGES)
    checkpoint.begin_run(run, "vqvae", model, train, data)

    def evaluate(network: VQVAE, step: int) -> dict[str, float]:
        scores = vqvae_scores(network, frames)[1]
        if model.quantizer.update == "soft_em":
            scores["nmse_drawn"] = nmse(reconstruct_from_samples(network, frames), frames)
        return scores

    fit(network, ImageBatches(dataset.train, data["batch_size"], train.seed), evaluate, train, run)
    return run


@torch.no_grad()
def reconstruct_from_samples(network: VQVAE, frames: Tensor) -> Tensor:
    """Reconstruct frames (N, H, W, 3) uint8 as soft EM does in training, from the mean of m codes per position."""
    generator = torch.Generator(network.quantizer.codebook.device).manual_seed(0)
    reconstructions = []
    for part in frames.split(64):
        images = part.to(generator.device)
        codes = network.sample_codes(
            images, network.quantizer.config.num_samples, generator
        )  # (B, m, h, w), maybe n before h
        reconstructions.append(network.decode_samples(codes).cpu())
    return torch.cat(reconstructions)
