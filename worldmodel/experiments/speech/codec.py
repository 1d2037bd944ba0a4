"""A trained VQ-VAE of speech in use: recordings to codes, and codes in anyone's voice."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from worldmodel import checkpoint
from worldmodel.checks import check_seed
from worldmodel.experiments.speech.data.audio import SILENCE, waveform_of
from worldmodel.experiments.speech.data.dataset import Recordings, Speech, describe
from worldmodel.experiments.speech.model import SpeechVQVAE
from worldmodel.models.autoregressive.sampling import check_temperature
from worldmodel.suggest import unknown

SHIPPED = checkpoint.PRETRAINED / "voices"
DEFAULT = "spoken-digits"
AT_ONCE = 16  # utterances


class Voices:
    """A VQ-VAE of speech and the names of the speakers that it learnt from.

    Args:
        rate: samples a second.
        run: the folder that they came from.
    """

    def __init__(self, network: SpeechVQVAE, speakers: Sequence[str], rate: int, run: Path) -> None:
        self.network, self.speakers, self.rate, self.run = network, tuple(speakers), rate, run

    @classmethod
    def load(cls, run: str | Path = DEFAULT, device: str | torch.device = "cpu") -> "Voices":
        """Shipped ones by name, or those of a run of ``worldmodel.experiments.speech train``.

        Raises:
            FileNotFoundError: if there are none; the message lists the names.
            ValueError: if a file of them is damaged, or it is a run of another kind.
        """
        folder = checkpoint.find("voices", run, SHIPPED)
        network = checkpoint.load_speech(folder).to(checkpoint.check_device(device))
        data = checkpoint.read_config(folder)["data"]
        return cls(network, data["speakers"], data["rate"], folder)

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
        check_temperature(temperature)
        check_seed(seed)
        hop, said = self.network.config.hop, [np.empty(0, np.float32)] * len(codes)
        order = sorted(range(len(codes)), key=lambda number: len(codes[number]))  # alike in length go together
        with tqdm(total=len(codes), unit="utterance", desc="say", leave=False, disable=not progress) as bar:
            for start in range(0, len(order), AT_ONCE):
                part = order[start : start + AT_ONCE]
                told = pad_sequence([self._told(codes[n], speakers[n]) for n in part], batch_first=True)
                length = hop * len(codes[part[-1]])
                generators = [torch.Generator().manual_seed(seed + number) for number in part]
                uniforms = torch.stack([torch.rand(length, generator=generator) for generator in generators])
                drawn = self.network.net.sample(told, uniforms.to(self.device), temperature).cpu()
                for number, samples in zip(part, drawn.numpy().astype(np.uint8), strict=True):
                    said[number] = waveform_of(samples[: len(codes[number]) * hop])
                bar.update(len(part))
        return said

    @torch.no_grad()
    def _told(self, codes: Tensor, speaker: int) -> Tensor:
        """What the decoder is told of codes (M,), the same alone and among others: (conditions, width)."""
        who = torch.tensor([speaker], device=self.device)
        return self.network.told(len(codes) * self.network.config.hop, who, codes[None].to(self.device))[0]


def filled(samples: np.ndarray, hop: int) -> np.ndarray:
    """Mu-law codes (N,) uint8 with silence up to a multiple of a hop, at least one."""
    return np.pad(samples, (0, -len(samples) % hop or hop * (not len(samples))), constant_values=SILENCE)


def same_speech(run: Path, speech: Speech) -> None:
    """See that recordings are those that a run learnt from, and held out, if there is such a run.

    Raises:
        ValueError: if they have other speakers, another rate, or are parted in another way.
    """
    if not (run / "config.yaml").exists():
        return
    known, found = checkpoint.read_config(run)["data"], describe(speech)
    for name, value in found.items():
        mine = list(value) if isinstance(value, tuple) else value
        if known.get(name) != mine:
            raise ValueError(
                f"{run} was trained on speech with {name} {known.get(name)}, got {mine}; give the same recordings, or "
                "another run"
            )


def mean_bits(bits: Tensor, lengths: Tensor) -> Tensor:
    """The means (B,) of the first so many bits of (B, N)."""
    inside = torch.arange(bits.shape[1], device=bits.device) < lengths[:, None]
    return (bits * inside).sum(1) / lengths


def stream(voices: Voices, recordings: Recordings, seed: int) -> np.ndarray:
    """The codes of all recordings, one after the other in a random order: (M,) int64."""
    order = np.random.default_rng(seed).permutation(len(recordings)).tolist()
    with tqdm(order, unit="recording", desc="encode", leave=False) as bar:
        return np.concatenate([voices.encode(recordings.read(number)).numpy() for number in bar])


def use_threads(threads: int) -> None:
    """Let torch use so many; a ValueError for less than one."""
    if threads < 1:
        raise ValueError(f"--threads must be 1 or more, got {threads}")
    torch.set_num_threads(threads)
