"""The state of a dream."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Memory(NamedTuple):
    """What a dream carries from frame to frame."""

    frames: tuple[Tensor, ...]  # the context's, oldest first: keys and values (B, patches, blocks·2·width)
    actions: Tensor  # (B, context) int64, -1 before the first
    filled: Tensor  # (B,) int64, how many of the context are real
    codes: Tensor  # (B, 2, H, W) int64, the last two frames; K stands for "none"

    def rows(self, part: slice) -> "Memory":
        """Some of the B dreams."""
        return _each([self], lambda tensor: tensor[part])

    def replaced(self, rows: Tensor, others: "Memory") -> "Memory":
        """The same with ``others`` (of N dreams) in the place of the dreams ``rows`` (N,) int64."""
        return _each([self, others], lambda mine, new: mine.index_copy(0, rows, new))

    @staticmethod
    def joined(parts: Sequence["Memory"]) -> "Memory":
        """The dreams of several memories, one after the other."""
        return _each(parts, lambda *tensors: torch.cat(tensors))


def _each(memories: Sequence[Memory], function: Callable[..., Tensor]) -> Memory:
    """A memory of what a function makes of the same tensor in each of some memories."""
    frames, *others = zip(*memories, strict=True)
    return Memory(tuple(map(function, *frames)), *(function(*tensors) for tensors in others))
