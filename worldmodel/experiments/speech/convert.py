"""Convert a recording to another voice: ``python -m worldmodel.experiments.speech convert``."""

from pathlib import Path

import numpy as np

from worldmodel.experiments.speech.config import DEFAULT_CODEC
from worldmodel.files import check_file

MAX_SECONDS = 300  # length of a recording


def convert(
    wav: str,
    speaker: str,
    out: str,
    run: str = DEFAULT_CODEC,
    temperature: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Convert a recording to the voice of a speaker.

    Args:
        wav: sound file with the recording, by any speaker.
        speaker: name of the target speaker, one that the codec was trained on.
        out: .wav file to write.
        run: run folder of a speech VQ-VAE, or the name of a shipped codec.
        temperature: sampling temperature of the samples; below 1 is less noisy, 0 takes the most likely sample.
        seed: random seed; the same seed gives the same sound.
        device: decoding device, cpu or cuda.
        threads: number of CPU threads of torch.
    """
    from worldmodel.experiments.speech.codec import SpeechCodec
    from worldmodel.experiments.speech.data import audio
    from worldmodel.models.precision import use_threads

    if Path(out).suffix.lower() != ".wav":
        raise ValueError(f"--out must end in .wav, got {out}")
    check_file(Path(out))
    use_threads(threads)
    codec = SpeechCodec.load(run, device)
    target = codec.speaker_index(speaker)
    waveform = audio.normalize_loudness(audio.load(wav, codec.rate))
    if len(waveform) > MAX_SECONDS * codec.rate:
        raise ValueError(f"{wav} lasts {len(waveform) / codec.rate:.0f} s, expected {MAX_SECONDS} at most; cut it up")
    codes = codec.encode(audio.mu_law_encode(waveform))
    converted = codec.decode([codes], [target], seed, temperature)[0][: len(waveform)]
    audio.save(out, converted, codec.rate)
    bits = np.log2(codec.codebook_size) * codec.rate / codec.hop
    print(f"wrote {out}: {len(converted) / codec.rate:.2f} s, {len(codes)} codes, {bits:.0f} bits a second")
