"""Train the parts of a world model: ``python -m worldmodel.train {vqvae,prior}``."""

from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from worldmodel import config, media
from worldmodel.core.quantizer import perplexity
from worldmodel.core.vqvae import VQVAE, VQVAEConfig
from worldmodel.data.store import EpisodeStore
from worldmodel.data.windows import FrameBatches, split, spread
from worldmodel.training import TrainConfig, fit

EVALUATED = 2048  # held-out frames that a VQ-VAE is measured on
SHOWN = 12  # of them in the picture


def vqvae(
    store: str,
    run: str,
    model: VQVAEConfig = VQVAEConfig(),
    train: TrainConfig = TrainConfig(),
    batch: int = 32,
) -> None:
    """Train a VQ-VAE on the frames of a store; an existing run is continued.

    Every twentieth episode is held out, for the metrics and the pictures of originals over reconstructions.

    Args:
        store: folder of recorded episodes.
        run: folder to write checkpoints, metrics and pictures into.
        model: sizes.
        train: length and speed.
        batch: frames in a batch.
    """
    episodes = EpisodeStore(store)
    learnt, held_out = split(episodes)
    folder = Path(run)
    folder.mkdir(parents=True, exist_ok=True)
    batches = FrameBatches(episodes, learnt, batch, train.seed)
    model = replace(model, variance=model.variance or float((batches(0) / 255).var()))
    data = {"store": store, "batch": batch, **asdict(episodes.schema)}
    config.save(folder / "config.yaml", kind="vqvae", model=model, train=train, data=data)
    torch.manual_seed(train.seed)
    places = spread(held_out, EVALUATED)
    frames = torch.stack([torch.from_numpy(episodes.observations(n, at, 1)[0].copy()) for n, at in places])

    def evaluate(network: nn.Module, step: int) -> dict[str, float]:
        reconstructions, measured = measure(network, frames)
        shown = torch.stack([part[:: max(1, len(frames) // SHOWN)][:SHOWN] for part in (frames, reconstructions)])
        media.write(folder / "pictures" / f"{step:07d}.png", media.grid(shown.numpy())[None], scale=1)
        return measured

    fit(VQVAE.from_config(model), batches, evaluate, train, folder)


@torch.no_grad()
def measure(network: VQVAE, frames: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Reconstruct frames (N, H, W, 3) uint8 and say how well.

    Returns:
        The reconstructions, and ``psnr`` (dB, the mean over frames), ``perplexity`` and ``codes_used`` of all.
    """
    device = next(network.parameters()).device
    reconstructions, counts = [], 0
    for part in frames.split(64):
        reconstruction, quantized = network.reconstruct(part.to(device))
        reconstructions.append(reconstruction.cpu())
        counts = counts + quantized.counts
    result = torch.cat(reconstructions)
    error = (result.float() - frames.float()).square().mean((1, 2, 3)).clamp_min(1e-2)
    psnr = 10 * torch.log10(255**2 / error)
    return result, {
        "psnr": float(psnr.mean()),
        "perplexity": perplexity(counts),
        "codes_used": float((counts > 0).sum()),
    }


if __name__ == "__main__":
    config.run({"vqvae": vqvae})
