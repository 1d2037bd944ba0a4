"""A trained speech VQ-VAE as a codec: recordings to codes, and codes to speech in the voice of any speaker."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from worldmodel import checkpoint, shipped
from worldmodel.checks import check_seed, check_temperature
from worldmodel.experiments.speech.config import DEFAULT_CODEC
from worldmodel.experiments.speech.data.audio import SILENCE, mu_law_decode
from worldmodel.experiments.speech.data.dataset import Recordings, Speech, describe
from worldmodel.experiments.speech.model import SpeechVQVAE
from worldmodel.models.precision import check_device
from worldmodel.suggest import unknown_name

SHIPPED = shipped.PRETRAINED / "voices"
DECODE_BATCH_SIZE = 16  # utterances


class SpeechCodec:
    """A speech VQ-VAE with the names of its training speakers.

    Args:
        rate: sample rate in Hz.
        run: run folder that the network was loaded from.
    """

    def __init__(self, network: SpeechVQVAE, speakers: Sequence[str], rate: int, run: Path) -> None:
        self.network, self.speakers, self.rate, self.run = network, tuple(speakers), rate, run

    @classmethod
    def load(cls, run: str | Path = DEFAULT_CODEC, device: str | torch.device = "cpu") -> "SpeechCodec":
        """Load a shipped codec by name, or that of a run of ``worldmodel.experiments.speech train``.

        Raises:
            FileNotFoundError: if there is none; the message lists the shipped names.
            ValueError: if a file is damaged, or the run is of another kind.
        """
        folder = shipped.find("voices", run, SHIPPED)
        network = cast(SpeechVQVAE, checkpoint.load_model(folder, "speech")).to(check_device(device))
        data = checkpoint.read_config(folder)["data"]
        return cls(network, data["speakers"], data["rate"], folder)

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.network.nothing.device

    @property
    def hop(self) -> int:
        """Samples per code."""
        return self.network.config.hop

    @property
    def codebook_size(self) -> int:
        """Number of different codes."""
        return self.network.config.quantizer.codebook_size

    def speaker_index(self, speaker: str) -> int:
        """Return the index of a training speaker.

        Raises:
            ValueError: for an unknown name.
        """
        if speaker not in self.speakers:
            raise ValueError(unknown_name("speaker", speaker, self.speakers))
        return self.speakers.index(speaker)

    @torch.no_grad()
    def encode(self, samples: np.ndarray) -> Tensor:
        """Encode mu-law samples (N,) uint8, padded with silence to whole codes, into codes (M,) int64."""
        padded = torch.from_numpy(pad_to_hop(samples, self.hop))[None].to(self.device)
        return self.network.encode(padded, torch.tensor([max(1, len(samples))], device=self.device))[0].cpu()

    def decode(
        self,
        codes: Sequence[Tensor],
        speakers: Sequence[int],
        seed: int = 0,
        temperature: float = 1.0,
        progress: bool = False,
    ) -> list[np.ndarray]:
        """Sample utterances from codes (M,) each, in the voices of ``speakers``.

        Args:
            seed: utterance n has its own random generator, seeded with ``seed + n``.
            temperature: sampling temperature; 0 takes the most likely sample.
            progress: show a progress bar.

        Returns:
            Waveforms (M·hop,) float32.

        Raises:
            ValueError: if the temperature is negative.
        """
        check_temperature(temperature)
        check_seed(seed)
        waveforms = [np.empty(0, np.float32)] * len(codes)
        order = sorted(range(len(codes)), key=lambda n: len(codes[n]))  # batches of similar lengths
        with tqdm(total=len(codes), unit="utterance", desc="decode", leave=False, disable=not progress) as bar:
            for start in range(0, len(order), DECODE_BATCH_SIZE):
                batch = order[start : start + DECODE_BATCH_SIZE]
                condition = pad_sequence([self._condition(codes[n], speakers[n]) for n in batch], batch_first=True)
                length = self.hop * len(codes[batch[-1]])
                generators = [torch.Generator().manual_seed(seed + n) for n in batch]
                uniforms = torch.stack([torch.rand(length, generator=generator) for generator in generators])
                samples = self.network.net.sample(condition, uniforms.to(self.device), temperature).cpu()
                for n, row in zip(batch, samples.numpy().astype(np.uint8), strict=True):
                    waveforms[n] = mu_law_decode(row[: len(codes[n]) * self.hop])
                bar.update(len(batch))
        return waveforms

    @torch.no_grad()
    def _condition(self, codes: Tensor, speaker: int) -> Tensor:
        """Return the conditioning vectors of codes (M,), computed alone so that they do not depend on the batch."""
        speakers = torch.tensor([speaker], device=self.device)
        return self.network.condition_on_codes(len(codes) * self.hop, speakers, codes[None].to(self.device))[0]


def pad_to_hop(samples: np.ndarray, hop: int) -> np.ndarray:
    """Pad mu-law samples (N,) uint8 with silence to a multiple of ``hop``, at least one hop."""
    return np.pad(samples, (0, -len(samples) % hop or hop * (not len(samples))), constant_values=SILENCE)


def check_same_speech(run: Path, speech: Speech) -> None:
    """Check that recordings are those that a run, if it has weights, was trained on and held out.

    Raises:
        ValueError: if speakers, rate, recordings or their splits differ.
    """
    if not checkpoint.is_begun(run):
        return
    known = checkpoint.read_config(run)["data"]
    for name, value in describe(speech).items():
        got = list(value) if isinstance(value, tuple) else value
        if known.get(name) != got:
            raise ValueError(
                f"{run} was trained on speech with {name} {known.get(name)}, got {got}; give the same recordings, or "
                "another run"
            )


def mean_bits(bits: Tensor, lengths: Tensor) -> Tensor:
    """Return the means (B,) over the first ``lengths`` (B,) samples of bits (B, N)."""
    valid = torch.arange(bits.shape[1], device=bits.device) < lengths[:, None]
    return (bits * valid).sum(1) / lengths


def encode_all(codec: SpeechCodec, recordings: Recordings, seed: int) -> np.ndarray:
    """Encode all recordings and concatenate their codes in a random order: (M,) int64."""
    order = np.random.default_rng(seed).permutation(len(recordings)).tolist()
    with tqdm(order, unit="recording", desc="encode", leave=False) as bar:
        return np.concatenate([codec.encode(recordings.mu_law(n)).numpy() for n in bar])
