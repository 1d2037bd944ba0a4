"""Sample speech from a prior over codes: ``python -m worldmodel.experiments.speech sample``."""

from pathlib import Path
from typing import cast

from worldmodel.checks import check_seed, check_temperature
from worldmodel.files import check_folder

CODE_SEED_OFFSET = 1 << 32  # so that codes are not sampled with the same random numbers as audio samples
NUM_PLOTTED = 4  # utterances


def sample(
    run: str,
    out: str,
    speaker: str = "",
    count: int = 4,
    codes: int = 0,
    temperature: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Sample utterances from a prior over codes; write 0.wav, 1.wav, … and a plot of the first ones.

    Args:
        run: run folder of a prior over the codes of speech.
        out: folder to write.
        speaker: name of the speaker; empty for speaker n in utterance n, starting over after the last one.
        count: number of utterances.
        codes: number of codes per utterance; 0 for the length of the prior's training segments.
        temperature: sampling temperature of codes and audio samples.
        seed: random seed; utterance n is sampled with ``seed + n``.
        device: sampling device, cpu or cuda.
        threads: number of CPU threads of torch.
    """
    import torch

    from worldmodel import checkpoint
    from worldmodel.experiments.speech.codec import SpeechCodec
    from worldmodel.experiments.speech.data import audio
    from worldmodel.experiments.speech.mel import plot_sounds
    from worldmodel.models.precision import check_device, use_threads
    from worldmodel.models.spatial_prior import SpatialPrior

    if count < 1 or codes < 0:
        raise ValueError(f"--count must be 1 or more and --codes 0 or more, got {count} and {codes}")
    check_temperature(temperature)
    check_seed(seed)
    check_folder(Path(out))
    use_threads(threads)
    prior = cast(SpatialPrior, checkpoint.load_model(Path(run), "speech_prior")).to(check_device(device))
    codec = SpeechCodec.load(Path(run) / "vqvae", device)
    speakers = [codec.speaker_index(speaker)] * count if speaker else [n % len(codec.speakers) for n in range(count)]
    length = codes or prior.config.grid[0]
    generators = [torch.Generator().manual_seed(CODE_SEED_OFFSET + seed + n) for n in range(count)]
    uniforms = torch.stack([torch.rand(length, generator=generator) for generator in generators]).to(codec.device)
    sampled = prior.sample(torch.zeros(count, dtype=torch.int64, device=codec.device), uniforms, temperature).cpu()
    waveforms = codec.decode(list(sampled), speakers, seed, temperature, progress=True)
    for n, waveform in enumerate(waveforms):
        audio.save(Path(out) / f"{n}.wav", waveform, codec.rate)
    plotted = {f"{n}: {codec.speakers[speakers[n]]}": waveforms[n] for n in range(min(count, NUM_PLOTTED))}
    plot_sounds(plotted, codec.rate).savefig(Path(out) / "sounds.png", dpi=150, bbox_inches="tight")
    print(f"wrote {count} utterances of {len(waveforms[0]) / codec.rate:.2f} s into {out}")
