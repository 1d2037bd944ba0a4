"""Images as VQ-VAE codes, encoded when they are first read."""

from copy import deepcopy
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from worldmodel import checkpoint
from worldmodel.episodes.encode import BATCH_SIZE, encode_frames, encode_store
from worldmodel.images.sources import FrameImages, ImageSource
from worldmodel.models.vqvae import VQVAE


def encode_images(images: ImageSource, vqvae_run: Path, device: torch.device) -> ImageSource:
    """Return a source whose ``read`` gives the codes (n, h, w) uint16 of these images.

    Codes of episode stores are the cached ones of :func:`encode_store`.
    """
    if isinstance(images, FrameImages):
        return FrameImages([(encode_store(store, vqvae_run, device), entries) for store, entries in images.parts])
    return EncodedImages(images, checkpoint.load_tokenizer(vqvae_run).to(device))


class EncodedImages:
    """Codes of images, all computed at the first read; pickled, for another process, images and network are kept.

    Args:
        network: VQ-VAE that encodes the images.
        num_samples: codes sampled for each position as in soft EM; 0 for the nearest code.
        seed: seed of the sampled codes.
    """

    def __init__(self, images: ImageSource, network: VQVAE, num_samples: int = 0, seed: int = 0) -> None:
        self.images, self.network, self.num_samples, self.seed = images, network, num_samples, seed
        self.labels = images.labels

    def __reduce__(self) -> tuple:
        network = deepcopy(self.network).cpu()  # the other process may have no GPU
        return EncodedImages, (self.images, network, self.num_samples, self.seed)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the codes of the images at these indices, (n, h, w) uint16, or (n, num_samples, h, w)."""
        return self._codes[indices]

    @cached_property
    def _codes(self) -> np.ndarray:
        device = next(self.network.parameters()).device
        generator, parts = torch.Generator(device).manual_seed(self.seed), []
        with tqdm(total=len(self), unit="image", desc="encode", leave=False) as bar:
            for indices in np.array_split(np.arange(len(self)), -(-len(self) // BATCH_SIZE)):
                frames = self.images.read(indices)
                parts.append(
                    self._sample(frames, generator) if self.num_samples else encode_frames(self.network, frames)
                )
                bar.update(len(indices))
        return np.concatenate(parts)

    @torch.no_grad()
    def _sample(self, frames: np.ndarray, generator: torch.Generator) -> np.ndarray:
        images = torch.from_numpy(frames.copy()).to(generator.device)
        return self.network.sample_codes(images, self.num_samples, generator).cpu().numpy().astype(np.uint16)
