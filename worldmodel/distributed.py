"""What several processes that train one model tell each other; one process alone talks to nobody."""

import torch
from torch import Tensor, distributed


def place() -> tuple[int, int]:
    """Which of how many workers this process is: (0, 1) unless ``torch.distributed`` has been started."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


@torch.no_grad()
def total(tensor: Tensor) -> Tensor:
    """The sum over all workers."""
    if place()[1] > 1:
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
    return tensor


def mean(tensor: Tensor) -> Tensor:
    """The mean over all workers."""
    return total(tensor) / place()[1]


@torch.no_grad()
def gathered(rows: Tensor) -> Tensor:
    """The rows (N, …) of every worker, one worker after the other: (workers·N, …)."""
    if place()[1] > 1:
        parts = [torch.empty_like(rows) for _ in range(place()[1])]
        distributed.all_gather(parts, rows.contiguous())
        rows = torch.cat(parts)
    return rows


@torch.no_grad()
def from_first(tensor: Tensor) -> Tensor:
    """What the first worker drew: the others' generators are at other places."""
    if place()[1] > 1:
        distributed.broadcast(tensor, 0)
    return tensor
