"""Sentences to synthesize: lines of a file, or sentences of a small grammar."""

import math
from pathlib import Path

import numpy as np

from worldmodel.files import read_lines

GRAMMAR = """\
the, my, your, our, their, this, that, every, each, another
quick, young, old, thirsty, huge, joyful, gentle, unusual, yellow, cheerful, noisy, weary, rough, pure, tall, bright
fox, boy, girl, cow, bird, teacher, judge, nurse, horse, mouse, sheep, thief, king, baker, child, dragon
found, heard, saw, chased, pulled, took, bought, measured, enjoyed, drew, followed, thanked, shook, caught, hid, moved
the, my, your, our, their, this, that, every, each, another
bridge, window, apple, treasure, boat, chair, toy, book, engine, feather, house, garage, cheese, spoon, ring, path
near the river, under a tree, by the sea, on the roof, behind the church, in the south, at the zoo, over there, \
before breakfast, without a noise, five hours ago, after the show, beyond the hill, with both hands, in the usual way
"""
WORDS = [row.split(", ") for row in GRAMMAR.splitlines()]  # a sentence has one entry of each row


def read_sentences(path: Path) -> list[str]:
    """Return the distinct non-empty lines of a text file, plain or .gz, in order.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not UTF-8 text.
    """
    return [line for line in dict.fromkeys(read_lines(path)) if line]


def sample_sentences(sentences: list[str], count: int, seed: int) -> list[str]:
    """Return ``count`` of the sentences in a random order.

    Raises:
        ValueError: if there are fewer.
    """
    if count > len(sentences):
        raise ValueError(f"--count and --held_out ask for {count} sentences, and there are {len(sentences)} different")
    return [sentences[index] for index in np.random.default_rng(seed).permutation(len(sentences))[:count]]


def generate_sentences(count: int, seed: int) -> list[str]:
    """Return ``count`` different random sentences of the grammar, whose words cover all phonemes.

    Raises:
        ValueError: if that is more than half of all possible sentences.
    """
    possible = math.prod(map(len, WORDS))
    if count > possible // 2:
        raise ValueError(f"{count} is more than half of the {possible} generated sentences; give a file of --sentences")
    random, sentences = np.random.default_rng(seed), dict[str, None]()
    while len(sentences) < count:
        sentences[" ".join(row[random.integers(len(row))] for row in WORDS).capitalize() + "."] = None
    return list(sentences)
