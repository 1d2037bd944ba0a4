"""Frames and pictures as codes: those of a store are encoded once and kept beside it, others are kept in memory."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from worldmodel import checkpoint
from worldmodel.episodes.store import EpisodeStore, Schema
from worldmodel.files import locked
from worldmodel.images.pictures import FramePictures, Pictures
from worldmodel.models.vqvae import VQVAE

BATCH = 64


def encoded(store: EpisodeStore, vqvae_run: Path, device: torch.device, mirrored: bool = False) -> EpisodeStore:
    """The store of codes, ``<store>/codes/<digest of the VQ-VAE>``; episodes that it lacks are encoded now.

    It is an :class:`EpisodeStore` with the same episode numbers, actions and rewards, whose observations are (H, W)
    uint16 codes: at most 882 bytes a frame for 21×21.

    Args:
        mirrored: encode frames flipped left to right, under the actions that :func:`mirror` gives, into a store of
            their own. (The codes of a flipped frame are not the flipped codes of the frame.)
    """
    network = checkpoint.load_vqvae(vqvae_run).to(device)
    name = checkpoint.digest(vqvae_run)
    schema = store.schema
    swapped = mirror(schema.action_names) if mirrored else np.arange(len(schema.action_names))
    codes = EpisodeStore.create(
        store.path / "codes" / (f"{name}-mirrored" if mirrored else name),
        Schema(
            observation_shape=tuple(encode(network, np.zeros((1, *schema.observation_shape), np.uint8)).shape[1:]),
            observation_dtype="uint16",
            action_names=schema.action_names,
            environment=schema.environment,
            kwargs=schema.kwargs,
            provenance={**schema.provenance, "vqvae": name},
        ),
    )
    with locked(codes.path / "encode.lock"):
        codes = EpisodeStore(codes.path)  # with what another process encoded while this one waited
        missing = [entry for entry in store.entries if entry.number not in codes]
        frames_missing = sum(entry.observations for entry in missing)
        bar = tqdm(total=frames_missing, unit="frame", desc="encode", disable=not missing)
        for entry in missing:
            episode = store.read(entry.number)
            frames = episode.observations[:, :, ::-1] if mirrored else episode.observations
            actions = swapped[episode.actions].astype(episode.actions.dtype)
            coded_episode = replace(episode, observations=encode(network, frames), actions=actions, objects=None)
            codes.record(codes.write(entry.number, coded_episode))
            bar.update(len(frames))
        bar.close()
    return codes


def mirror(action_names: Sequence[str]) -> np.ndarray:
    """The number of the action that does in a mirror what each one does: turn_left for turn_right, (actions,) int64.

    Raises:
        ValueError: if the mirror image of an action is none of them.
    """
    sides = {"left": "right", "right": "left"}
    images = [re.sub("left|right", lambda side: sides[side[0]], name) for name in action_names]
    for name, image in zip(action_names, images, strict=True):
        if image not in action_names:
            raise ValueError(f"--mirror true needs an action {image!r} beside {name!r}, there are {list(action_names)}")
    return np.array([list(action_names).index(image) for image in images])


@torch.no_grad()
def encode(network: VQVAE, frames: np.ndarray) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 -> codes (T, H/4, W/4) uint16."""
    device = next(network.parameters()).device
    parts = [network.encode(part.to(device)).cpu() for part in torch.from_numpy(frames.copy()).split(BATCH)]
    return torch.cat(parts).numpy().astype(np.uint16)


def coded(pictures: Pictures, vqvae_run: Path, device: torch.device) -> Pictures:
    """Pictures whose ``read`` gives their codes (n, h, w) uint16; those of stores are what :func:`encoded` keeps."""
    if isinstance(pictures, FramePictures):
        return FramePictures([(encoded(store, vqvae_run, device), entries) for store, entries in pictures.parts])
    return CodedPictures(pictures, checkpoint.load_vqvae(vqvae_run).to(device))


class CodedPictures:
    """Pictures as codes, all encoded when the first is read; pickled, for another process, they are not yet.

    Args:
        network: to encode them with.
        samples: draws for every position, as soft EM makes them; 0 for the nearest codes.
        seed: of the draws.
    """

    def __init__(self, pictures: Pictures, network: VQVAE, samples: int = 0, seed: int = 0) -> None:
        self.pictures, self.network, self.samples, self.seed = pictures, network, samples, seed
        self.labels = pictures.labels

    def __reduce__(self) -> tuple:
        return CodedPictures, (self.pictures, self.network, self.samples, self.seed)

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The codes of these pictures: (n, H/4, W/4) uint16, or (n, samples, H/4, W/4)."""
        return self._codes[indices]

    @cached_property
    def _codes(self) -> np.ndarray:
        device = next(self.network.parameters()).device
        generator, parts = torch.Generator(device).manual_seed(self.seed), []
        with tqdm(total=len(self), unit="picture", desc="encode", leave=False) as bar:
            for numbers in np.array_split(np.arange(len(self)), -(-len(self) // BATCH)):
                frames = self.pictures.read(numbers)
                parts.append(self._drawn(frames, generator) if self.samples else encode(self.network, frames))
                bar.update(len(numbers))
        return np.concatenate(parts)

    @torch.no_grad()
    def _drawn(self, frames: np.ndarray, generator: torch.Generator) -> np.ndarray:
        codes = self.network.samples(torch.from_numpy(frames.copy()).to(generator.device), self.samples, generator)
        return codes.cpu().numpy().astype(np.uint16)
