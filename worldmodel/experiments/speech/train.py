"""Train a speech VQ-VAE: ``python -m worldmodel.experiments.speech train``."""

from dataclasses import replace
from pathlib import Path

from worldmodel.experiments.speech.config import SpeechConfig
from worldmodel.train_config import TrainConfig

NUM_EVAL_SEGMENTS = 32  # held-out segments evaluated during training


def train(
    speech: str,
    run: str,
    rate: int = 16_000,
    model: SpeechConfig = SpeechConfig(),
    train: TrainConfig = TrainConfig(),
    batch_size: int = 8,
    segment_length: int = 2048,
) -> None:
    """Train a speech VQ-VAE; an existing run is resumed.

    Args:
        speech: folder of recordings in the layout of VCTK, LibriSpeech or the Free Spoken Digit Dataset, or with a
            subfolder per speaker; or a CSV file with the columns path and speaker.
        run: folder to write checkpoints and metrics into.
        rate: sample rate in Hz; recordings of another rate are resampled.
        model: architecture and losses; num_speakers is taken from the recordings, sample_rate from --rate.
        train: training settings.
        batch_size: number of segments per batch.
        segment_length: samples per segment, a multiple of the samples per code.
    """
    import torch

    from worldmodel import checkpoint
    from worldmodel.experiments.speech.codec import check_same_speech, mean_bits
    from worldmodel.experiments.speech.data.dataset import SpeechBatches, describe, open_speech
    from worldmodel.experiments.speech.model import SpeechVQVAE
    from worldmodel.models.quantizers.interface import perplexity
    from worldmodel.training import fit

    if segment_length < 1 or segment_length % model.hop:
        raise ValueError(
            f"--segment_length must be a multiple of {model.hop}, the samples per code, got {segment_length}"
        )
    data, folder = open_speech(speech, rate), Path(run).absolute()
    checkpoint.check_choices(folder, "speech", train, {})
    if not train.allow_changes:
        check_same_speech(folder, data)
    sample_rate = rate if model.encoder_input == "mel" else 0
    model = replace(model, num_speakers=len(data.speakers), sample_rate=sample_rate)
    if model.aux_only_steps >= train.steps:
        print(f"model.aux_only_steps covers all {train.steps} steps: only codes will be usable, the WaveNet not")
    torch.manual_seed(train.seed)
    network = SpeechVQVAE(model)
    facts = {"speech": speech, "batch_size": batch_size, "segment_length": segment_length, **describe(data)}
    checkpoint.begin_run(folder, "speech", model, train, facts)
    eval_batch = SpeechBatches(data.held_out, NUM_EVAL_SEGMENTS, segment_length, train.seed)(0)

    def evaluate(network: SpeechVQVAE, step: int) -> dict[str, float]:
        device = next(network.parameters()).device
        samples, lengths, speakers = (part.to(device) for part in eval_batch)
        codes = network.encode(samples, lengths)
        conditions: dict[str, torch.Tensor | None] = {"": codes, "_shuffled": codes.roll(len(codes) // 2, 0)}
        if network.config.code_dropout:
            conditions["_none"] = None
        bits = {name: mean_bits(network.bits(samples, speakers, part), lengths) for name, part in conditions.items()}
        counts = torch.bincount(codes.flatten(), minlength=network.config.quantizer.codebook_size).float()
        return {
            **{f"bits_per_sample{name}": float(values.mean()) for name, values in bits.items()},
            "perplexity": float(perplexity(counts)),
        }

    fit(network, SpeechBatches(data.train, batch_size, segment_length, train.seed), evaluate, train, folder)
