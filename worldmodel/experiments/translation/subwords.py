"""Subwords of both languages: a sentencepiece model that is trained once and kept in the run folder."""

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from worldmodel.files import write_atomically

PAD, BOS, EOS, UNK = range(4)
FILE_NAME = "subwords.model"


class Subwords:
    """A joint vocabulary of byte-pair merges (Sennrich et al. 2016); unknown characters are spelled as bytes.

    Args:
        model: sentencepiece model, as stored in a run.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def train(cls, sentences: Iterable[str], vocab_size: int) -> "Subwords":
        """Train a vocabulary of exactly this size, deterministically.

        Raises:
            ValueError: if the sentences cannot fill it, or cannot do with so few.
        """
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_writer=model,
                vocab_size=vocab_size,
                model_type="bpe",
                character_coverage=1.0,
                byte_fallback=True,
                pad_id=PAD,
                bos_id=BOS,
                eos_id=EOS,
                unk_id=UNK,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).split("] ")[-1]
            raise ValueError(f"vocab_size {vocab_size} does not fit the sentences: {reason}") from error
        return cls(model.getvalue())

    @classmethod
    def load(cls, run: Path) -> "Subwords":
        """Load the subwords of a run.

        Raises:
            FileNotFoundError: if it has none.
            ValueError: if they are damaged.
        """
        path = run / FILE_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{run} holds no {FILE_NAME}; train a model there, or give another folder")
        try:
            subwords = cls(path.read_bytes())
            if not len(subwords):
                raise RuntimeError("it is empty")
            return subwords
        except RuntimeError as error:
            raise ValueError(f"{path} is damaged ({error}); restore it, or train again") from error

    def save(self, run: Path) -> None:
        """Write the subwords into a run."""
        write_atomically(run / FILE_NAME, self.model)

    def __len__(self) -> int:
        return self.processor.get_piece_size()

    def encode(self, sentence: str) -> list[int]:
        """Return the subwords of a sentence, and EOS."""
        return [*self.processor.encode(sentence), EOS]

    def decode(self, subwords: list[int]) -> str:
        """Return the sentence of subwords up to the first EOS."""
        end = subwords.index(EOS) if EOS in subwords else len(subwords)
        return " ".join(self.processor.decode(subwords[:end]).split())
