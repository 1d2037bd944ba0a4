"""Encode the frames of a store with a VQ-VAE; the codes are cached in the store."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from worldmodel import checkpoint, tensor_io
from worldmodel.episodes.store import Entry, EpisodeStore, Schema
from worldmodel.files import locked
from worldmodel.models.vqvae import VQVAE

BATCH_SIZE = 64  # frames


def encode_store(
    store: EpisodeStore,
    vqvae_run: Path,
    device: torch.device,
    mirrored: bool = False,
    entries: Sequence[Entry] | None = None,
) -> EpisodeStore:
    """Return the store of codes, ``<store>/codes/<digest of the VQ-VAE>``, after encoding the episodes it lacks.

    Episode numbers, actions and rewards are those of the given store; observations are codes (H, W) uint16, at most 882
    bytes per frame for 21×21.

    Args:
        mirrored: flip frames left to right, replace actions by :func:`mirrored_actions`, and use a separate store of
            codes (the codes of a flipped frame are not the flipped codes of the frame).
        entries: episodes to encode; by default all. The returned store also has those that were encoded before.
    """
    network = checkpoint.load_tokenizer(vqvae_run).to(device)
    digest = tensor_io.digest(vqvae_run)
    schema = store.schema
    new_actions = mirrored_actions(schema.action_names) if mirrored else np.arange(len(schema.action_names))
    codes = EpisodeStore.create(
        store.path / "codes" / (f"{digest}-mirrored" if mirrored else digest),
        Schema(
            observation_shape=tuple(
                encode_frames(network, np.zeros((1, *schema.observation_shape), np.uint8)).shape[1:]
            ),
            observation_dtype="uint16",
            action_names=schema.action_names,
            environment=schema.environment,
            kwargs=schema.kwargs,
            provenance={**schema.provenance, "vqvae": digest},
        ),
    )
    with locked(codes.path / "encode.lock"):
        codes = EpisodeStore(codes.path)  # reopened, because another process may have encoded episodes meanwhile
        wanted = store.entries if entries is None else entries
        missing = [entry for entry in wanted if entry.number not in codes]
        bar = tqdm(total=sum(entry.observations for entry in missing), unit="frame", desc="encode", disable=not missing)
        for entry in missing:
            episode = store.read(entry.number)
            frames = episode.observations[:, :, ::-1] if mirrored else episode.observations
            actions = new_actions[episode.actions].astype(episode.actions.dtype)
            encoded = replace(episode, observations=encode_frames(network, frames), actions=actions, objects=None)
            codes.add_to_index(codes.write(entry.number, encoded))
            bar.update(len(frames))
        bar.close()
    return codes


def mirrored_actions(action_names: Sequence[str]) -> np.ndarray:
    """Return the index of each action's mirror image, (actions,) int64: for turn_left that of turn_right.

    Raises:
        ValueError: if the mirror image of an action does not exist, or the actions have numbers instead of names.
    """
    if all(name.isdigit() for name in action_names):
        raise ValueError(f"--mirror true needs actions that are named left and right, got {list(action_names)}")
    opposite = {"left": "right", "Left": "Right", "LEFT": "RIGHT"}
    opposite |= {image: name for name, image in opposite.items()}
    mirrored = [re.sub("|".join(opposite), lambda match: opposite[match[0]], name) for name in action_names]
    for name, image in zip(action_names, mirrored, strict=True):
        if image not in action_names:
            raise ValueError(f"--mirror true needs an action {image!r} for {name!r}, got {list(action_names)}")
    return np.array([list(action_names).index(image) for image in mirrored])


@torch.no_grad()
def encode_frames(network: VQVAE, frames: np.ndarray) -> np.ndarray:
    """Encode frames (T, H, W, 3) uint8 into codes (T, h, w) uint16."""
    device = next(network.parameters()).device
    parts = [network.encode(part.to(device)).cpu() for part in torch.from_numpy(frames.copy()).split(BATCH_SIZE)]
    return torch.cat(parts).numpy().astype(np.uint16)
