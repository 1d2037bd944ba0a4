"""A tiny parallel corpus and tiny models for the tests of translation."""

import itertools
import random
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from worldmodel.experiments.translation.batches import TextBatch
from worldmodel.experiments.translation.config import LatentConfig, TransformerConfig
from worldmodel.experiments.translation.model import LatentTranslator
from worldmodel.experiments.translation.subwords import EOS
from worldmodel.experiments.translation.teacher import Teacher
from worldmodel.models.quantizers.config import QuantizerConfig

M = TypeVar("M", bound=nn.Module)
SIZES = TransformerConfig(
    vocab_size=300, embed_dim=16, num_heads=2, feed_forward_dim=16, encoder_layers=2, decoder_layers=2, dropout=0.1
)
QUANTIZER = QuantizerConfig(codebook_size=8, code_dim=16, update="soft_em", num_samples=3)
LATENTS = LatentConfig(SIZES, predictor_layers=2, num_downsamples=2, num_residual_blocks=1, quantizer=QUANTIZER)
WORDS = {"a": "ein", "the": "der", "man": "Mann", "dog": "Hund", "tree": "Baum", "sees": "sieht", "finds": "findet"}


def sentences() -> list[tuple[str, str]]:
    """Twenty sentences and their translations, word by word."""
    nouns, verbs, articles = ("man", "dog", "tree"), ("sees", "finds"), ("the", "a")
    possible = [" ".join(words) for words in itertools.product(articles, nouns, verbs, articles, nouns)]
    sources = random.Random(0).sample(possible, 20)
    return [(line, " ".join(WORDS[word] for word in line.split())) for line in sources]


def write_corpus(folder: Path) -> Path:
    """Write the sentences in Multi30K's layout: all to train on, some also as val and test."""
    folder.mkdir(parents=True)
    for split, rows in (("train", slice(20)), ("val", slice(4, 12)), ("test_2016_flickr", slice(8, 16))):
        for side, language in enumerate(("en", "de")):
            lines = [pair[side] for pair in sentences()[rows]]
            (folder / f"{split}.{language}").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def random_batch(lengths: list[tuple[int, int]], seed: int = 0) -> TextBatch:
    """Random subwords of these numbers in source and target, each sentence with EOS at its end."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for side in range(2):
        part = torch.zeros(len(lengths), max(pair[side] for pair in lengths), dtype=torch.int64)
        for row, pair in enumerate(lengths):
            part[row, : pair[side] - 1] = torch.randint(4, SIZES.vocab_size, (pair[side] - 1,), generator=generator)
            part[row, pair[side] - 1] = EOS
        parts.append(part)
    return TextBatch(*parts)


def build_teacher(seed: int = 0, config: TransformerConfig = SIZES) -> Teacher:
    """A teacher with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return enlarge(Teacher(config)).eval()


def build_latent(seed: int = 0, config: LatentConfig = LATENTS) -> LatentTranslator:
    """A latent model with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return enlarge(LatentTranslator(config)).eval()


@torch.no_grad()
def enlarge(network: M) -> M:
    """Multiply the weights of linear layers by three, so that an untrained network does not repeat one symbol."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.mul_(3)
    return network
