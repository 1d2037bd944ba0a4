"""Measures of latents: whether the decoder uses them, how well they are predicted, and which words they go with."""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, NamedTuple

import torch

from worldmodel.experiments.translation.batches import TextBatch, group_by_length, pad
from worldmodel.experiments.translation.corpus import Pairs
from worldmodel.experiments.translation.model import LatentTranslator
from worldmodel.experiments.translation.scores import bleu
from worldmodel.experiments.translation.subwords import Subwords
from worldmodel.experiments.translation.translator import BATCH_TOKENS
from worldmodel.models.quantizers.interface import perplexity

MIN_PAIR_COUNT = 5  # occurrences of a latent with a word, below which their mutual information is noise
NUM_CODES_SHOWN, NUM_WORDS_SHOWN = 20, 5
NUM_SENTENCES_SHOWN = 12


class TrueLatents(NamedTuple):
    """The latents of one reference, and what the predictor makes of each given those before it."""

    codes: list[int]
    correct: list[bool]  # whether the most likely code, or end, is the true one; the last is that of the end
    words: list[int]  # decoded from them, subwords
    shuffled_words: list[int]  # decoded from the latents of another sentence


def measure_latents(network: LatentTranslator, subwords: Subwords, pairs: Pairs, counted: Pairs) -> dict[str, Any]:
    """Return the scores of :func:`score_latents` on ``pairs``, and :func:`mutual_information` on ``counted``."""
    pairs, counted = pairs.without_empty(), counted.without_empty()
    codes = encode_targets(network, subwords, counted)
    return {
        **score_latents(network, subwords, read_latents(network, subwords, pairs), pairs.targets),
        "mutual_information": mutual_information(
            subwords, counted.targets, codes, subwords_per_latent=1 << network.config.num_downsamples
        ),
    }


@torch.no_grad()
def read_latents(network: LatentTranslator, subwords: Subwords, pairs: Pairs) -> list[TrueLatents]:
    """Encode and decode the targets of pairs; another sentence is one of similar length."""
    found: dict[int, TrueLatents] = {}
    for rows, batch in _batches(network, subwords, pairs):
        codes, counts = network.encode(batch)
        source = network.encode_source(batch.source)
        words = network.decode(codes, counts, source.decoder)
        others = network.decode(codes.roll(1, 0), counts.roll(1), source.decoder)
        logits = network.code_logits(codes, source.predictor)
        truth = torch.cat([codes, codes.new_full((len(codes), 1), network.end)], 1)
        correct = logits.argmax(-1) == truth  # (B, M + 1)
        num_predicted = counts + (network.config.latent_length == "end_symbol")
        for number, row in enumerate(rows):
            found[row] = TrueLatents(
                codes[number, : counts[number]].tolist(),
                correct[number, : num_predicted[number]].tolist(),
                words[number],
                others[number],
            )
    return [found[row] for row in range(len(found))]


@torch.no_grad()
def encode_targets(network: LatentTranslator, subwords: Subwords, pairs: Pairs) -> list[list[int]]:
    """Return the codes of the targets of pairs."""
    found: dict[int, list[int]] = {}
    for rows, batch in _batches(network, subwords, pairs):
        codes, counts = network.encode(batch)
        found |= {row: codes[number, : counts[number]].tolist() for number, row in enumerate(rows)}
    return [found[row] for row in range(len(found))]


def score_latents(
    network: LatentTranslator, subwords: Subwords, latents: list[TrueLatents], references: list[str]
) -> dict[str, Any]:
    """Return BLEU from the true latents and from another sentence's, if any, and statistics of codes and predictor."""
    counts = torch.bincount(torch.tensor([code for line in latents for code in line.codes]), minlength=network.end)
    last, num_last = Counter(line.codes[-1] for line in latents).most_common(1)[0]
    flat = [value for line in latents for value in line.correct]
    shuffled = [subwords.decode(line.shuffled_words) for line in latents]
    return {
        "bleu_true_latents": bleu([subwords.decode(line.words) for line in latents], references),
        **({"bleu_shuffled_latents": bleu(shuffled, references)} if len(latents) > 1 else {}),
        "predictor_accuracy": sum(flat) / len(flat),
        "predictor_accuracy_by_position": [
            sum(filter(None, column)) / sum(value is not None for value in column)
            for column in zip_longest(*(line.correct for line in latents))
        ],
        "perplexity": float(perplexity(counts.float())),
        "codes_used": int((counts > 0).sum()),
        "latents_per_sentence": float(counts.sum()) / len(latents),
        "last_latent": {"code": last, "fraction_of_sentences": num_last / len(latents)},
        "sentences": [line.codes for line in latents[:NUM_SENTENCES_SHOWN]],
    }


def mutual_information(
    subwords: Subwords, targets: list[str], codes: list[list[int]], subwords_per_latent: int
) -> dict[str, Any]:
    """Return the pointwise mutual information, in bits, of latents and the words that they cover.

    A word occurs with every latent that covers one of its subwords. ``mean_bits`` is the mutual information of a latent
    and a word; ``mean_bits_shuffled`` that of latents of other sentences, the bias of so few counts.
    """
    words = [_covered_words(subwords, line, subwords_per_latent) for line in targets]
    joint = _count_pairs(words, codes)
    shuffled = _count_pairs(words, codes[1:] + codes[:1])
    total, by_code, by_word = _margins(joint)
    top: dict[str, list[tuple[str, float, int]]] = {}
    for code, _ in by_code.most_common(NUM_CODES_SHOWN):
        found = [
            (word, math.log2(count * total / (by_code[code] * by_word[word])), count)
            for (other, word), count in joint.items()
            if other == code and count >= MIN_PAIR_COUNT
        ]
        top[str(code)] = sorted(found, key=lambda entry: -entry[1])[:NUM_WORDS_SHOWN]
    return {
        "mean_bits": _mean_information(joint),
        "mean_bits_shuffled": _mean_information(shuffled),
        "sentences": len(targets),
        "top_words": {code: [{"word": w, "bits": b, "count": n} for w, b, n in found] for code, found in top.items()},
    }


def _batches(network: LatentTranslator, subwords: Subwords, pairs: Pairs) -> Iterator[tuple[list[int], TextBatch]]:
    """Yield the pairs in batches of similar length, with their numbers; none is alone unless it is the only one."""
    encoded = [(subwords.encode(a), subwords.encode(b)) for a, b in zip(*pairs, strict=True)]
    device = network.embedding.weight.device
    groups = group_by_length([max(map(len, pair)) for pair in encoded], BATCH_TOKENS)
    while len(groups) > 1 and len(groups[-1]) == 1:  # the longest
        groups[-2:] = [groups[-2] + groups[-1]]
    for rows in groups:
        yield rows, TextBatch(*(pad([encoded[row][side] for row in rows]).to(device) for side in range(2)))


def _covered_words(subwords: Subwords, sentence: str, size: int) -> list[set[str]]:
    """Return the words that each block of ``size`` subwords of a sentence covers, at least in part."""
    words, starts = sentence.split(), []
    for piece in subwords.processor.encode(sentence, out_type=str):
        starts.append((starts[-1] if starts else -1) + piece.startswith("▁"))  # the number of the piece's word
    numbers = [starts[at : at + size] for at in range(0, len(starts), size)]
    return [{words[number] for number in block if 0 <= number < len(words)} for block in numbers]


def _count_pairs(words: list[list[set[str]]], codes: list[list[int]]) -> Counter[tuple[int, str]]:
    return Counter(
        (code, word)
        for blocks, line in zip(words, codes, strict=True)
        for block, code in zip(blocks, line, strict=False)
        for word in block
    )


def _margins(joint: Counter[tuple[int, str]]) -> tuple[int, Counter[int], Counter[str]]:
    by_code, by_word = Counter[int](), Counter[str]()
    for (code, word), count in joint.items():
        by_code[code] += count
        by_word[word] += count
    return by_code.total(), by_code, by_word


def _mean_information(joint: Counter[tuple[int, str]]) -> float:
    total, by_code, by_word = _margins(joint)
    return sum(
        count / total * math.log2(count * total / (by_code[code] * by_word[word]))
        for (code, word), count in joint.items()
    )
