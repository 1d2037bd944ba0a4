"""The state of a dream."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Memory(NamedTuple):
    """What a dream carries from frame to frame."""

    keys: Tensor  # (blocks, B, context, patches, width), oldest first
    values: Tensor  # (blocks, B, context, patches, width)
    actions: Tensor  # (B, context) int64, -1 before the first
    filled: Tensor  # (B,) int64, how many of the context are real
    codes: Tensor  # (B, 2, H, W) int64, the last two frames; K stands for "none"

    def rows(self, part: slice) -> "Memory":
        """Some of the B dreams."""
        return Memory(*(tensor[:, part] for tensor in self[:2]), *(tensor[part] for tensor in self[2:]))

    def replaced(self, rows: Tensor, others: "Memory") -> "Memory":
        """The same with ``others`` (of N dreams) in the place of the dreams ``rows`` (N,) int64."""
        places = zip(self, others, (1, 1, 0, 0, 0), strict=True)
        return Memory(*(mine.index_copy(dim, rows, new) for mine, new, dim in places))

    @staticmethod
    def joined(parts: Sequence["Memory"]) -> "Memory":
        """The dreams of several memories, one after the other."""
        columns = zip(zip(*parts, strict=True), (1, 1, 0, 0, 0), strict=True)
        return Memory(*(torch.cat(column, dim) for column, dim in columns))
