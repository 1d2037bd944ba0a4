"""The state of a dream."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class DreamState(NamedTuple):
    """The state that B dreams carry from frame to frame."""

    kv_cache: tuple[Tensor, ...]  # keys and values of each context frame, oldest first: (B, patches, blocks·2·width)
    actions: Tensor  # (B, context) int64, -1 before the first
    cache_length: Tensor  # (B,) int64, number of context frames that are real
    codes: Tensor  # (B, 2, H, W) int64, the last two frames; K stands for "no frame"

    @property
    def latest_codes(self) -> Tensor:
        """Codes (B, H, W) int64 of the latest frame."""
        return self.codes[:, 1]

    def select(self, dreams: slice) -> "DreamState":
        """Return the state of some of the B dreams."""
        return _map_tensors([self], lambda tensor: tensor[dreams].contiguous())

    def replace_rows(self, rows: Tensor, others: "DreamState") -> "DreamState":
        """Return a copy in which the dreams ``rows`` (N,) int64 are replaced by ``others``, the state of N dreams."""
        return _map_tensors([self, others], lambda mine, new: mine.index_copy(0, rows, new))

    @staticmethod
    def concatenate(states: Sequence["DreamState"]) -> "DreamState":
        """Concatenate the dreams of several states."""
        return _map_tensors(states, lambda *tensors: torch.cat(tensors))


def _map_tensors(states: Sequence[DreamState], function: Callable[..., Tensor]) -> DreamState:
    """Apply a function to the corresponding tensors of some states."""
    caches, *others = zip(*states, strict=True)
    return DreamState(tuple(map(function, *caches)), *(function(*tensors) for tensors in others))
