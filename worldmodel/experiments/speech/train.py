"""Train a VQ-VAE of speech, and a prior over its codes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from worldmodel import checkpoint
from worldmodel.episodes.segments import draw
from worldmodel.experiments.speech.codec import Voices, mean_bits, same_speech, stream
from worldmodel.experiments.speech.data.dataset import SpeechBatches, describe, open_speech
from worldmodel.experiments.speech.model import SpeechConfig, SpeechVQVAE
from worldmodel.metrics import Bigram, Unigram, line_scores
from worldmodel.models.quantizers.nearest import perplexity
from worldmodel.models.spatial_prior import CodeBatch, SpatialPrior, SpatialPriorConfig
from worldmodel.training import TrainConfig, fit, pick_device

WATCHED = 32  # held-out pieces that a VQ-VAE is measured on while it trains
PIECES = 64  # held-out stretches that a prior is


def train(
    speech: str,
    run: str,
    rate: int = 16_000,
    model: SpeechConfig = SpeechConfig(),
    train: TrainConfig = TrainConfig(),
    batch: int = 8,
    length: int = 2048,
) -> None:
    """Train a VQ-VAE of speech; an existing run is continued.

    Args:
        speech: recordings: a folder in the layout of VCTK, LibriSpeech or the Free Spoken Digit Dataset, one with a
            folder for each speaker, or a CSV file with the columns path and speaker.
        run: folder to write checkpoints and metrics into.
        rate: samples a second; recordings of another are resampled.
        model: sizes; the number of speakers is that of the recordings.
        train: length and speed.
        batch: pieces of recordings in a batch.
        length: samples of a piece, a multiple of those of a code.
    """
    if length < 1 or length % model.hop:
        raise ValueError(f"--length must be a multiple of the {model.hop} samples of a code, got {length}")
    data, folder = open_speech(speech, rate), Path(run).absolute()
    same_speech(folder, data)
    model = replace(model, speakers=len(data.speakers))
    if model.alone >= train.steps:
        print(f"model.alone leaves the WaveNet none of the {train.steps} steps: its codes can be measured, not heard")
    torch.manual_seed(train.seed)
    network = SpeechVQVAE(model)
    checkpoint.begin(
        folder, "speech", model, train, {"speech": speech, "batch": batch, "length": length, **describe(data)}
    )
    watched = SpeechBatches(data.held_out, WATCHED, length, train.seed)(0)

    def evaluate(network: nn.Module, step: int) -> dict[str, float]:
        device = next(network.parameters()).device
        samples, lengths, speakers = (part.to(device) for part in watched)
        codes = network.encode(samples)
        told = {"": codes, "_shuffled": codes.roll(len(codes) // 2, 0)}
        if network.config.untold:
            told["_none"] = None
        means = {name: mean_bits(network.bits(samples, speakers, part), lengths) for name, part in told.items()}
        counts = torch.bincount(codes.flatten(), minlength=network.config.quantizer.codes).float()
        return {
            **{f"bits_per_sample{name}": float(part.mean()) for name, part in means.items()},
            "perplexity": float(perplexity(counts)),
        }

    fit(network, SpeechBatches(data.learnt, batch, length, train.seed), evaluate, train, folder)


def prior(
    speech: str,
    voices: str,
    run: str,
    model: SpatialPriorConfig = SpatialPriorConfig(net="wavenet", grid=(320,)),
    train: TrainConfig = TrainConfig(),
    batch: int = 16,
    length: int = 320,
) -> None:
    """Train a prior over the codes of speech; an existing run is continued.

    The recordings are encoded first, and follow each other in a random order; a stretch of codes may lie in several.

    Args:
        speech: recordings, as for train.
        voices: run folder of the VQ-VAE, or the name of shipped voices; a copy goes into this run, which is then whole.
        run: folder to write checkpoints and metrics into.
        model: sizes; codes, dim and grid are those of the data.
        train: length and speed.
        batch: stretches in a batch.
        length: codes of a stretch; 320 of 128 samples each are the paper's 40,960.
    """
    if length < 1:
        raise ValueError(f"--length must be 1 or more, got {length}")
    encoder, folder = Voices.load(voices, pick_device(train)), Path(run).absolute()
    data, quantizer = open_speech(speech, encoder.rate), encoder.network.config.quantizer
    same_speech(encoder.run, data)
    checkpoint.check_choices(folder, "speech_prior", train, {"speech": speech, "batch": batch})
    learnt, held_out = (stream(encoder, part, train.seed) for part in (data.learnt, data.held_out))
    for what, codes in (("to learn from", learnt), ("held out", held_out)):
        if len(codes) < length:
            raise ValueError(
                f"{speech} has {len(codes)} codes {what}, fewer than --length {length}; give a smaller one"
            )
    model = replace(model, codes=quantizer.codes, dim=quantizer.dim, grid=(length,))
    torch.manual_seed(train.seed)
    network = SpatialPrior(model, encoder.network.quantizer.codebook.cpu())
    checkpoint.adopt(folder, encoder.run)
    checkpoint.begin(
        folder, "speech_prior", model, train, {"speech": speech, "voices": voices, "batch": batch, **describe(data)}
    )
    unseen = torch.from_numpy(held_out[: len(held_out) // length * length]).view(-1, length)[:PIECES]
    unigram = Unigram(torch.from_numpy(learnt), quantizer.codes)
    bigram = Bigram(torch.from_numpy(learnt), unigram)

    def batches(number: int, rank: int, workers: int) -> CodeBatch:
        starts = draw(len(learnt) - length + 1, batch, train.seed, number, rank, workers)
        codes = torch.from_numpy(np.stack([learnt[start : start + length] for start in starts]))
        return CodeBatch(codes, torch.zeros(len(codes), dtype=torch.int64))

    fit(network, batches, lambda network, step: line_scores(network, unseen, unigram, bigram), train, folder)
