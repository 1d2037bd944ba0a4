"""What is said: the lines of a file, or sentences of a small grammar."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

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
WORDS = [row.split(", ") for row in GRAMMAR.splitlines()]  # a sentence has one of each row


def read_sentences(path: Path) -> list[str]:
    """The different lines of a text file, maybe .gz, that are not empty, in order.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of sentences {path}")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            return [line for line in dict.fromkeys(" ".join(line.split()) for line in file) if line]
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} must be UTF-8 text, one sentence a line: {error}") from error


def choose(sentences: list[str], count: int, seed: int) -> list[str]:
    """So many of the sentences, in an order of chance.

    Raises:
        ValueError: if there are fewer.
    """
    if count > len(sentences):
        raise ValueError(f"--count and --held_out ask for {count} sentences, and there are {len(sentences)} different")
    return [sentences[place] for place in np.random.default_rng(seed).permutation(len(sentences))[:count]]


def invent(count: int, seed: int) -> list[str]:
    """So many different sentences of the grammar, whose words have all phonemes.

    Raises:
        ValueError: if it has hardly so many.
    """
    possible = math.prod(map(len, WORDS))
    if count > possible // 2:
        raise ValueError(f"our own sentences are {possible}, and {count} is more than half; give a file of --sentences")
    random, found = np.random.default_rng(seed), dict[str, None]()
    while len(found) < count:
        found[" ".join(row[random.integers(len(row))] for row in WORDS).capitalize() + "."] = None
    return list(found)
