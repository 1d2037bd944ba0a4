"""A trained translation model as a translator of sentences."""

import sys
from pathlib import Path
from typing import cast

import torch
from tqdm import tqdm

from worldmodel import checkpoint, shipped
from worldmodel.experiments.translation.batches import group_by_length, pad
from worldmodel.experiments.translation.config import DEFAULT_TRANSLATOR
from worldmodel.experiments.translation.model import LatentTranslator
from worldmodel.experiments.translation.subwords import EOS, Subwords
from worldmodel.experiments.translation.teacher import Teacher
from worldmodel.models.precision import check_device

SHIPPED = shipped.PRETRAINED / "translation"
KINDS = ("translation_teacher", "translation")
MAX_SOURCE_LENGTH = 256  # subwords of a sentence; the rest is cut off
BATCH_TOKENS = 4096  # subwords translated together


class Translator:
    """A network with its subwords.

    Args:
        run: run folder that the network was loaded from.
    """

    def __init__(self, network: Teacher | LatentTranslator, subwords: Subwords, run: Path) -> None:
        self.network, self.subwords, self.run = network, subwords, run

    @classmethod
    def load(cls, run: str | Path = DEFAULT_TRANSLATOR, device: str | torch.device = "cpu") -> "Translator":
        """Load a shipped translator by name, or a run of ``train`` or ``train-teacher``.

        Raises:
            FileNotFoundError: if there is none; the message lists the shipped names.
            ValueError: if a file is damaged, or the run is of another kind.
        """
        folder = shipped.find("translator", run, SHIPPED)
        kind = checkpoint.read_config(folder)["kind"]
        network = checkpoint.load_model(folder, kind if kind in KINDS else KINDS[-1])
        return cls(cast(Teacher | LatentTranslator, network.to(check_device(device))), Subwords.load(folder), folder)

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.network.embedding.weight.device

    def translate(self, sentences: list[str], beam: int = 1, progress: bool = False) -> list[str]:
        """Translate sentences, those of similar length together; an empty one stays empty.

        Args:
            beam: number of hypotheses of an autoregressive model's beam search; 1 decodes greedily.
            progress: show a progress bar.

        Raises:
            ValueError: if ``beam`` is not 1 or more, or more than 1 for a model with latents.
        """
        self.check_beam(beam)
        translations = [""] * len(sentences)
        encoded = {number: self.encode_source(line) for number, line in enumerate(sentences) if line.strip()}
        numbers = list(encoded)
        groups = group_by_length([len(encoded[number]) for number in numbers], BATCH_TOKENS // beam)
        with tqdm(total=len(numbers), unit="sentence", desc="translate", leave=False, disable=not progress) as bar:
            for group in groups:
                rows = [numbers[place] for place in group]
                words = self.network.translate(pad([encoded[number] for number in rows]).to(self.device), beam)
                for number, line in zip(rows, words, strict=True):
                    translations[number] = self.subwords.decode(line)
                bar.update(len(rows))
        return translations

    def check_beam(self, beam: int, flag: str = "--beam") -> None:
        """Check that the network can decode with this number of hypotheses, which ``flag`` asked for.

        Raises:
            ValueError: if not.
        """
        if beam < 1:
            raise ValueError(f"{flag} must be 1 or more, got {beam}")
        if beam > 1 and isinstance(self.network, LatentTranslator):
            raise ValueError(f"{self.run} has latents, which are decoded greedily; {flag} must be 1, got {beam}")

    def encode_source(self, sentence: str) -> list[int]:
        """Return the subwords of a sentence and EOS; a very long one is cut off, which is said on standard error."""
        subwords = self.subwords.encode(sentence)
        if len(subwords) > MAX_SOURCE_LENGTH:
            print(
                f"a sentence of {len(subwords)} subwords is cut off after {MAX_SOURCE_LENGTH - 1}: {sentence[:40]}…",
                file=sys.stderr,
            )
            subwords = [*subwords[: MAX_SOURCE_LENGTH - 1], EOS]
        return subwords
