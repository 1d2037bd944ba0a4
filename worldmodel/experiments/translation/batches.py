"""Batches of sentence pairs by number of subwords.

A batch depends only on the seed and the training step, so a resumed run sees the batches of an uninterrupted one.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from worldmodel.experiments.translation.subwords import PAD


class TextBatch(NamedTuple):
    """Sentence pairs as subwords; each sentence ends with EOS and is then padded with PAD."""

    source: Tensor  # (B, S) int64
    target: Tensor  # (B, N) int64


class TokenBatches:
    """Random batches of pairs of similar length: ``batches(step)`` covers every pair once in each epoch.

    Args:
        sources: subwords of the source sentences, each ending with EOS.
        targets: those of the target sentences.
        batch_tokens: maximum number of subwords in a batch, with padding, on the longer side.

    Raises:
        ValueError: if there are no pairs, or one is longer than a batch.
    """

    def __init__(self, sources: list[list[int]], targets: list[list[int]], batch_tokens: int, seed: int) -> None:
        self.sources, self.targets, self.seed = sources, targets, seed
        self.lengths = np.array([max(len(a), len(b)) for a, b in zip(sources, targets, strict=True)])
        self.bounds = cut_by_tokens(np.sort(self.lengths), batch_tokens)
        self._epoch, self._order = -1, (np.empty(0), np.empty(0))

    def __call__(self, step: int, rank: int = 0, world_size: int = 1) -> TextBatch:
        epoch, number = divmod(step, len(self.bounds) - 1)
        order, numbers = self._shuffled(epoch)
        start, end = self.bounds[numbers[number]], self.bounds[numbers[number] + 1]
        rows = order[start + rank : end : world_size]
        return TextBatch(*(pad([part[row] for row in rows]) for part in (self.sources, self.targets)))

    def _shuffled(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the order of the pairs, by length and at random among equals, and that of the batches."""
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            order = np.lexsort([random.random(len(self.lengths)), self.lengths])
            self._epoch, self._order = epoch, (order, random.permutation(len(self.bounds) - 1))
        return self._order


def cut_by_tokens(lengths: np.ndarray, batch_tokens: int) -> list[int]:
    """Return the bounds of batches of increasing lengths (N,): each as large as ``batch_tokens`` allows when padded.

    Raises:
        ValueError: if there is nothing to cut, or a sentence is longer than a batch.
    """
    if not len(lengths):
        raise ValueError("no pair of sentences is left to train on; give other text, or raise --max_length")
    if lengths[-1] > batch_tokens:
        raise ValueError(
            f"--batch_tokens is {batch_tokens}, and the longest sentence has {lengths[-1]} subwords; "
            "raise it, or lower --max_length"
        )
    bounds = [0]
    for position, length in enumerate(lengths):
        if (position + 1 - bounds[-1]) * length > batch_tokens:
            bounds.append(position)
    return [*bounds, len(lengths)]


def group_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Return the numbers of all sentences in batches of similar lengths; a longer sentence is a batch of its own."""
    order = np.argsort(lengths, kind="stable")
    bounds = cut_by_tokens(np.minimum(lengths, batch_tokens)[order], batch_tokens) if len(order) else []
    return [order[start:end].tolist() for start, end in pairwise(bounds)]


def pad(sentences: Sequence[Sequence[int]]) -> Tensor:
    """Return sentences of subwords as a tensor padded with PAD, (B, longest) int64."""
    return pad_sequence([torch.tensor(line, dtype=torch.int64) for line in sentences], True, PAD)
