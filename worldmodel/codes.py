"""The frames of a store as codes, encoded once and kept beside it."""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from worldmodel import checkpoint
from worldmodel.core.vqvae import VQVAE
from worldmodel.data.episode import Episode
from worldmodel.data.store import EpisodeStore, Schema

BATCH = 64


def encoded(store: EpisodeStore, vqvae_run: Path, device: torch.device) -> EpisodeStore:
    """The store of codes, ``<store>/codes/<digest of the VQ-VAE>``; episodes that it lacks are encoded now.

    It is an :class:`EpisodeStore` with the same episode numbers, actions and rewards, whose observations are (H, W)
    uint16 codes: at most 882 bytes a frame for 21×21.
    """
    network = checkpoint.load_vqvae(vqvae_run).to(device)
    name = checkpoint.digest(vqvae_run)
    schema = store.schema
    codes = EpisodeStore.create(
        store.path / "codes" / name,
        Schema(
            observation_shape=tuple(encode(network, np.zeros((1, *schema.observation_shape), np.uint8)).shape[1:]),
            observation_dtype="uint16",
            action_names=schema.action_names,
            environment=schema.environment,
            kwargs=schema.kwargs,
            provenance={**schema.provenance, "vqvae": name},
        ),
    )
    missing = [entry for entry in store.entries if entry.number not in codes]
    with tqdm(
        total=sum(entry.observations for entry in missing), unit="frame", desc="encode", disable=not missing
    ) as bar:
        for entry in missing:
            episode = store.read(entry.number)
            observations = encode(network, episode.observations)
            whole = Episode(
                observations, episode.actions, episode.rewards, episode.terminated, episode.truncated, episode.seed
            )
            codes.record(codes.write(entry.number, whole))
            bar.update(len(observations))
    return codes


@torch.no_grad()
def encode(network: VQVAE, frames: np.ndarray) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 -> codes (T, H/4, W/4) uint16."""
    device = next(network.parameters()).device
    parts = [network.encode(part.to(device)).cpu() for part in torch.from_numpy(frames.copy()).split(BATCH)]
    return torch.cat(parts).numpy().astype(np.uint16)
