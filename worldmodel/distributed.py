"""Collective operations over the workers that train one model; a single process communicates with nobody."""

import torch
from torch import Tensor, distributed


def rank_and_world_size() -> tuple[int, int]:
    """Return this worker's rank and the number of workers: (0, 1) unless ``torch.distributed`` is initialized."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


@torch.no_grad()
def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum of ``tensor`` over all workers."""
    if rank_and_world_size()[1] > 1:
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
    return tensor


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Return the mean of ``tensor`` over all workers."""
    return all_reduce_sum(tensor) / rank_and_world_size()[1]


@torch.no_grad()
def all_gather(rows: Tensor) -> Tensor:
    """Concatenate the rows (N, …) of all workers in rank order: (workers·N, …)."""
    if rank_and_world_size()[1] > 1:
        parts = [torch.empty_like(rows) for _ in range(rank_and_world_size()[1])]
        distributed.all_gather(parts, rows.contiguous())
        rows = torch.cat(parts)
    return rows


@torch.no_grad()
def broadcast(tensor: Tensor) -> Tensor:
    """Overwrite ``tensor`` with that of rank 0 and return it: each worker has its own random generator."""
    if rank_and_world_size()[1] > 1:
        distributed.broadcast(tensor, 0)
    return tensor
