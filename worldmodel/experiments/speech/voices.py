"""A trained VQ-VAE of speech in use: recordings to codes, and codes in anyone's voice."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldmodel import checkpoint
from worldmodel.core.speech import SpeechVQVAE
from worldmodel.data.sound import SILENCE, mu_law, waveform_of
from worldmodel.data.speech import Recordings, Speech, open_speech
from worldmodel.names import unknown

AT_ONCE = 16  # utterances


class Voices:
    """A VQ-VAE of speech and the names of the speakers that it learnt from.

    Args:
        rate: samples a second.
    """

    def __init__(self, network: SpeechVQVAE, speakers: Sequence[str], rate: int) -> None:
        self.network, self.speakers, self.rate = network, tuple(speakers), rate

    @classmethod
    def load(cls, run: str | Path, device: str | torch.device = "cpu") -> "Voices":
        """Those of a run of ``worldmodel.experiments.speech train``.

        Raises:
            FileNotFoundError: if a file of it is missing.
            ValueError: if one is damaged, or it is a run of another kind.
        """
        network = checkpoint.load_speech(Path(run)).to(checkpoint.check_device(device))
        data = checkpoint.read_config(Path(run))["data"]
        return cls(network, data["speakers"], data["rate"])

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.nothing.device

    def number(self, speaker: str) -> int:
        """The number of a speaker.

        Raises:
            ValueError: for one that it did not learn from.
        """
        if speaker not in self.speakers:
            raise ValueError(unknown("speaker", speaker, self.speakers))
        return self.speakers.index(speaker)

    @torch.no_grad()
    def encode(self, samples: np.ndarray) -> Tensor:
        """The codes of a recording's mu-law codes (N,) uint8, followed by silence up to a whole code: (M,) int64."""
        whole = torch.from_numpy(filled(samples, self.network.config.hop))[None].to(self.device)
        return self.network.encode(whole)[0].cpu()

    def say(
        self,
        codes: Sequence[Tensor],
        speakers: Sequence[int],
        seed: int = 0,
        temperature: float = 1.0,
        progress: bool = False,
    ) -> list[np.ndarray]:
        """Utterances of codes (M,) each, in the voices of these speakers.

        Args:
            seed: utterance n draws from a generator of its own, seeded with ``seed + n``.
            temperature: of the samples; below 1 is calmer, 0 takes the likeliest.
            progress: show a bar.

        Returns:
            Waveforms (M·hop,) float32.

        Raises:
            ValueError: if the temperature is negative.
        """
        if temperature < 0:
            raise ValueError(f"temperature must be 0 or more, got {temperature}")
        hop, said = self.network.config.hop, [np.empty(0, np.float32)] * len(codes)
        order = sorted(range(len(codes)), key=lambda number: len(codes[number]))  # alike in length go together
        with tqdm(total=len(codes), unit="utterance", desc="say", leave=False, disable=not progress) as bar:
            for start in range(0, len(order), AT_ONCE):
                part = order[start : start + AT_ONCE]
                longest = len(codes[part[-1]])
                lines = torch.stack(
                    [torch.cat([codes[n], codes[n][-1:].expand(longest - len(codes[n]))]) for n in part]
                )
                generators = [torch.Generator().manual_seed(seed + number) for number in part]
                uniforms = torch.stack([torch.rand(longest * hop, generator=generator) for generator in generators])
                who = torch.tensor([speakers[number] for number in part])
                drawn = self.network.sample(*(x.to(self.device) for x in (lines, who, uniforms)), temperature).cpu()
                for number, samples in zip(part, drawn.numpy(), strict=True):
                    said[number] = waveform_of(samples[: len(codes[number]) * hop])
                bar.update(len(part))
        return said

    def open(self, speech: str | Path) -> Speech:
        """Recordings at its rate, of the speakers that it learnt from.

        Raises:
            ValueError: if they are of others.
        """
        data = open_speech(speech, self.rate)
        if data.speakers != self.speakers:
            raise ValueError(
                f"{speech} has the speakers {', '.join(data.speakers)}, expected {', '.join(self.speakers)}, "
                "from whom this run learnt"
            )
        return data


def filled(samples: np.ndarray, hop: int) -> np.ndarray:
    """Mu-law codes (N,) uint8 with silence up to a multiple of a hop, at least one."""
    return np.pad(samples, (0, -len(samples) % hop or hop * (not len(samples))), constant_values=SILENCE)


def mean_bits(bits: Tensor, lengths: Tensor) -> Tensor:
    """The means (B,) of the first so many bits of (B, N)."""
    inside = torch.arange(bits.shape[1], device=bits.device) < lengths[:, None]
    return (bits * inside).sum(1) / lengths


def stream(voices: Voices, recordings: Recordings, seed: int) -> np.ndarray:
    """The codes of all recordings, one after the other in a random order: (M,) int64."""
    order = np.random.default_rng(seed).permutation(len(recordings)).tolist()
    with tqdm(order, unit="recording", desc="encode", leave=False) as bar:
        return np.concatenate([voices.encode(recordings.read(number)).numpy() for number in bar])


def heard_by(voices: Voices, waveform: np.ndarray) -> Tensor:
    """The codes of a waveform (N,) float32: (M,) int64."""
    return voices.encode(mu_law(waveform))
