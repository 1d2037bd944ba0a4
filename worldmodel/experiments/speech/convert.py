"""Make speech: somebody's words in another voice, and what nobody said."""

from pathlib import Path

import numpy as np
import torch

from worldmodel import checkpoint
from worldmodel.checks import check_seed
from worldmodel.experiments.speech.codec import DEFAULT, Voices, use_threads
from worldmodel.experiments.speech.data import audio
from worldmodel.experiments.speech.mel import plot_sounds
from worldmodel.files import check_file, check_folder, written_whole
from worldmodel.models.autoregressive.sampling import check_temperature

LONGEST = 300  # seconds of a recording
CODES = 1 << 32  # added to the seed of codes, which are not to be drawn with the numbers that samples are


def convert(
    wav: str,
    speaker: str,
    out: str,
    run: str = DEFAULT,
    temperature: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Say a recording again in the voice of a speaker.

    Args:
        wav: the recording, by anyone.
        speaker: whose voice it gets, one of those that the run learnt from.
        out: file to write, .wav.
        run: run folder of a VQ-VAE of speech, or the name of voices that are shipped.
        temperature: below 1 is calmer, 0 takes the likeliest sample everywhere.
        seed: the same one gives the same sound.
        device: cpu or cuda.
        threads: of torch on the CPU.
    """
    if Path(out).suffix.lower() != ".wav":
        raise ValueError(f"--out must end in .wav, got {out}")
    check_file(Path(out))
    use_threads(threads)
    voices = Voices.load(run, device)
    number = voices.number(speaker)
    waveform = audio.levelled(audio.load(wav, voices.rate))
    if len(waveform) > LONGEST * voices.rate:
        raise ValueError(f"{wav} lasts {len(waveform) / voices.rate:.0f} s, expected {LONGEST} at most; cut it up")
    codes = voices.encode(audio.mu_law(waveform))
    said = voices.say([codes], [number], seed, temperature)[0][: len(waveform)]
    audio.save(out, said, voices.rate)
    bits = np.log2(voices.network.config.quantizer.codes) * voices.rate / voices.network.config.hop
    print(f"wrote {out}: {len(said) / voices.rate:.2f} s, {len(codes)} codes, {bits:.0f} bits a second")


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
    """Let a prior say what nobody said, and write it as 0.wav, 1.wav, … with a picture of the first ones.

    Args:
        run: run folder of a prior over the codes of speech.
        out: folder to write.
        speaker: whose voice it is; if not given, of utterance n that of speaker n, and so on from the first again.
        count: utterances.
        codes: of each; 0 for as many as the prior learnt from at a time.
        temperature: of the codes and of the samples.
        seed: utterance n draws with ``seed + n``.
        device: cpu or cuda.
        threads: of torch on the CPU.
    """
    if count < 1 or codes < 0:
        raise ValueError(f"--count must be 1 or more and --codes 0 or more, got {count} and {codes}")
    check_temperature(temperature)
    check_seed(seed)
    check_folder(Path(out))
    use_threads(threads)
    prior = checkpoint.load_speech_prior(Path(run)).to(checkpoint.check_device(device))
    voices = Voices.load(Path(run) / "vqvae", device)
    speakers = [voices.number(speaker)] * count if speaker else [n % len(voices.speakers) for n in range(count)]
    length = codes or prior.config.grid[0]
    generators = [torch.Generator().manual_seed(CODES + seed + number) for number in range(count)]
    uniforms = torch.stack([torch.rand(length, generator=generator) for generator in generators]).to(voices.device)
    lines = prior.sample(torch.zeros(count, dtype=torch.int64, device=voices.device), uniforms, temperature).cpu()
    said = voices.say(list(lines), speakers, seed, temperature, progress=True)
    for number, waveform in enumerate(said):
        audio.save(Path(out) / f"{number}.wav", waveform, voices.rate)
    shown = {f"{number}: {voices.speakers[speakers[number]]}": said[number] for number in range(min(count, 4))}
    plot_sounds(shown, voices.rate).savefig(Path(out) / "sounds.png", dpi=150, bbox_inches="tight")
    print(f"wrote {count} utterances of {len(said[0]) / voices.rate:.2f} s into {out}")


def ship(run: str, out: str) -> None:
    """Copy the voices of a run into a folder that can be passed on: it names no folder of this machine.

    Args:
        run: run folder of a VQ-VAE of speech.
        out: folder to write; its name is the voices'.
    """
    voices = Voices.load(run)
    steps = checkpoint.read_config(voices.run)["train"]["steps"]
    if voices.network.steps < steps:
        raise ValueError(f"{run} is at step {int(voices.network.steps)} of {steps}; let it come to its end first")
    with written_whole(Path(out)) as folder:
        checkpoint.ship(voices.run, folder)
    print(f"wrote {out}: {', '.join(voices.speakers)}, {voices.rate} samples a second")
