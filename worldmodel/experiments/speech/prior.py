"""Train a prior over the codes of speech: ``python -m worldmodel.experiments.speech prior``."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from worldmodel.models.config import SpatialPriorConfig
from worldmodel.train_config import TrainConfig

if TYPE_CHECKING:
    from worldmodel.models.spatial_prior import CodeBatch

NUM_EVAL_SEGMENTS = 64  # held-out segments evaluated during training


def prior(
    speech: str,
    voices: str,
    run: str,
    model: SpatialPriorConfig = SpatialPriorConfig(net="wavenet", grid=(320,)),
    train: TrainConfig = TrainConfig(),
    batch_size: int = 16,
    seq_length: int = 320,
) -> None:
    """Train a prior over the codes of speech; an existing run is resumed.

    The recordings are encoded first and concatenated in a random order; a segment may span several of them.

    Args:
        speech: folder or CSV file of the recordings that the speech VQ-VAE was trained on.
        voices: run folder of the speech VQ-VAE, or the name of a shipped codec; it is copied into this run.
        run: folder to write checkpoints and metrics into.
        model: architecture; codebook_size, code_dim and grid are taken from the VQ-VAE and seq_length.
        train: training settings.
        batch_size: number of segments per batch.
        seq_length: codes per segment; 320 codes of 128 samples are the paper's 40,960 samples.
    """
    import torch

    from worldmodel import checkpoint
    from worldmodel.baselines import Bigram, Unigram
    from worldmodel.experiments.speech.codec import SpeechCodec, check_same_speech, encode_all
    from worldmodel.experiments.speech.data.dataset import describe, open_speech
    from worldmodel.metrics import sequence_scores
    from worldmodel.models.spatial_prior import CodeBatch, SpatialPrior
    from worldmodel.splits import batch_indices
    from worldmodel.training import fit, pick_device

    if seq_length < 1:
        raise ValueError(f"--seq_length must be 1 or more, got {seq_length}")
    codec, folder = SpeechCodec.load(voices, pick_device(train)), Path(run).absolute()
    data, quantizer = open_speech(speech, codec.rate), codec.network.config.quantizer
    check_same_speech(codec.run, data)
    checkpoint.check_choices(folder, "speech_prior", train, {"speech": speech, "batch_size": batch_size})
    train_codes, held_out = (encode_all(codec, recordings, train.seed) for recordings in (data.train, data.held_out))
    for split, codes in (("training", train_codes), ("held-out", held_out)):
        if len(codes) < seq_length:
            raise ValueError(f"{speech} has {len(codes)} {split} codes; give a smaller --seq_length than {seq_length}")
    model = replace(model, codebook_size=quantizer.codebook_size, code_dim=quantizer.code_dim, grid=(seq_length,))
    torch.manual_seed(train.seed)
    network = SpatialPrior(model, codec.network.quantizer.codebook.cpu())
    facts = {"speech": speech, "voices": voices, "batch_size": batch_size, **describe(data)}
    checkpoint.begin_run(folder, "speech_prior", model, train, facts, codec.run)
    segments = torch.from_numpy(held_out[: len(held_out) // seq_length * seq_length]).view(-1, seq_length)
    segments = segments[:NUM_EVAL_SEGMENTS]
    unigram = Unigram(torch.from_numpy(train_codes), quantizer.codebook_size)
    bigram = Bigram(torch.from_numpy(train_codes), unigram)

    def batches(step: int, rank: int, workers: int) -> "CodeBatch":
        starts = batch_indices(len(train_codes) - seq_length + 1, batch_size, train.seed, step, rank, workers)
        codes = torch.from_numpy(np.stack([train_codes[start : start + seq_length] for start in starts]))
        return CodeBatch(codes, torch.zeros(len(codes), dtype=torch.int64))

    fit(network, batches, lambda network, step: sequence_scores(network, segments, unigram, bigram), train, folder)
