"""Measure a world on held-out episodes: ``python -m worldmodel.evaluate --store stores/doom``."""

import json
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from worldmodel import checkpoint, config
from worldmodel.codes import encoded
from worldmodel.core.dynamics import Batch
from worldmodel.data.store import EpisodeStore
from worldmodel.data.windows import StepWindows, split, spread
from worldmodel.scores import CopyLast, Unigram, bits, psnr, shuffle_actions, vqvae_scores
from worldmodel.world import DEFAULT, WorldModel

CONTEXT = 6  # frames that are given, and not scored, in every stretch
BATCH = 4
HORIZONS = (1, 2, 5, 10, 20, 50)


def evaluate(
    store: str,
    world: str = DEFAULT,
    vqvae: str = "",
    blind: str = "",
    frames: int = 2048,
    stretches: int = 256,
    length: int = 16,
    dreams: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    out: str = "",
    device: str = "cpu",
) -> None:
    """Measure reconstruction and prediction on the episodes of a store that training held out, as JSON.

    Reconstruction is the mean PSNR over frames, with the perplexity and number of the codes they use. Prediction is
    in bits per code, over all frames of random stretches but the first six, with a standard error over stretches;
    beside it the same with the actions of another stretch, and baselines fitted to the training episodes' codes.
    Dreams begin with the first six frames of stretches and follow the recorded actions; their mean PSNR against the
    recorded frames is given by horizon, beside that of repeating the last frame and of the VQ-VAE alone.

    Args:
        store: folder of recorded episodes.
        world: a shipped world's name, or the run folder of a prior.
        vqvae: run folder of a VQ-VAE, to measure that alone.
        blind: run folder of a prior trained with --model.context 0, for the baseline that knows no past.
        frames: to reconstruct.
        stretches: to predict.
        length: frames of a stretch.
        dreams: stretches to dream.
        temperature: of the dreams.
        seed: of the choice of stretches, and of the dreams.
        out: file to write the JSON into as well.
        device: cpu or cuda.
    """
    if length <= CONTEXT or stretches < BATCH:
        raise ValueError(
            f"--length must be more than {CONTEXT} and --stretches {BATCH} or more, got {length} and {stretches}"
        )
    episodes = EpisodeStore(store)
    _, held_out = split(episodes)
    if vqvae:
        network, model = checkpoint.load_vqvae(Path(vqvae)).to(checkpoint.check_device(device)), None
    else:
        model = WorldModel.load(world, device)
        network = model.vqvae
        model.check_actions(episodes.schema.action_names)
    shown = [episodes.observations(number, at, 1)[0].copy() for number, at in spread(held_out, frames)]
    pictures = torch.stack([torch.from_numpy(picture) for picture in shown])
    result = {"held_out_episodes": len(held_out), "reconstruction": vqvae_scores(network, pictures)[1]}
    if model:
        codes = encoded(episodes, model.run / "vqvae", torch.device(device))
        result["bits_per_code"] = predict(model, codes, blind, stretches, length, seed)
        result["dream_psnr"] = open_loop(model, episodes, dreams, length, temperature, seed)
    text = json.dumps(result, indent=2)
    print(text)
    if out:
        Path(out).write_text(text + "\n")


def predict(
    world: WorldModel, codes: EpisodeStore, blind: str, stretches: int, length: int, seed: int
) -> dict[str, dict[str, float]]:
    """Bits per code of the world and of its baselines, each with a standard error."""
    learnt, held_out = split(codes)
    windows = StepWindows(codes, held_out, BATCH, length, seed)
    size = world.dynamics.config.codes
    seen = [Batch(*StepWindows(codes, learnt, BATCH, length, seed)(number)) for number in range(stretches)]
    sample = torch.cat([batch.codes[batch.frame_valid.all(1)] for batch in seen])  # (N, T, H, W), none of it padding
    unigram = Unigram(sample, size)
    copy = CopyLast(sample, unigram)
    unaware = checkpoint.load_dynamics(Path(blind)).to(world.device) if blind else None
    rows: dict[str, list[Tensor]] = {}
    for number in tqdm(range(stretches // BATCH), unit="batch", desc="predict", leave=False):
        batch = Batch(*windows(number))
        there = Batch(*(part.to(world.device) for part in batch))
        scored = {
            "true actions": bits(world.dynamics, there).cpu(),
            "shuffled actions": bits(world.dynamics, shuffle_actions(there)).cpu(),
            "unigram": unigram.bits(batch.codes),
            "copy last or flip": copy.bits(batch.codes),
        }
        if unaware:
            scored["no context, no actions"] = bits(unaware, there).cpu()
        valid = batch.frame_valid[:, CONTEXT:]
        some = valid.any(1)  # an episode may be too short to score
        for name, values in scored.items():
            rows.setdefault(name, []).append(((values[:, CONTEXT - 1 :] * valid).sum(1) / valid.sum(1))[some])
    return {name: summary(torch.cat(values)) for name, values in rows.items()} | {"flip probability": copy.flip}


def open_loop(
    world: WorldModel, frames: EpisodeStore, dreams: int, length: int, temperature: float, seed: int
) -> dict[str, dict[int, float]]:
    """Mean PSNR in dB of dreams, of the last frame repeated and of the VQ-VAE, by frames after the last real one."""
    long_enough = [entry for entry in split(frames)[1] if entry.observations > length]
    windows = StepWindows(frames, long_enough, dreams, length, seed)
    real, actions = (part[:dreams] for part in windows(0)[:2])
    real = real.to(torch.uint8)
    state = world.start(real[:, :CONTEXT], actions[:, : CONTEXT - 1])
    dreamt = world.imagine(state, actions[:, CONTEXT - 1 :], seed, temperature, progress=True)
    truth = real[:, CONTEXT:]
    shown = {
        "dream": world.decode(dreamt.flatten(0, 1)),
        "copy last": real[:, CONTEXT - 1 : CONTEXT].expand_as(truth).flatten(0, 1),
        "vqvae alone": world.decode(world.vqvae.encode(truth.flatten(0, 1).to(world.device))),
    }
    result = {}
    for name, pictures in shown.items():
        by_horizon = psnr(pictures, truth.flatten(0, 1)).unflatten(0, truth.shape[:2]).mean(0)
        result[name] = {
            horizon: round(float(by_horizon[horizon - 1]), 2) for horizon in HORIZONS if horizon <= len(by_horizon)
        }
    return result


def summary(values: Tensor) -> dict[str, float]:
    """Mean and standard error of (N,) values."""
    return {
        "mean": round(float(values.mean()), 4),
        "standard_error": round(float(values.std() / len(values) ** 0.5), 4),
    }


if __name__ == "__main__":
    config.run(evaluate)
