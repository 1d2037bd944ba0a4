"""What stands between the products of :meth:`Rollout.look`, compiled for the CPU: float32, one thread.

Each function reads and writes once what takes torch several passes over tensors that leave the cache.
"""

import numpy as np
import torch
from torch import Tensor

from worldmodel.core.compiled import LEAST, ZERO, cached, exp, gate


def recall(
    query: Tensor, frames: tuple[Tensor, ...], start: int, lag_bias: Tensor, filled: Tensor
) -> Tensor:
    """Attention of each patch to itself in the remembered frames.

    Args:
        query: (B, patches, width).
        frames: as :class:`worldmodel.core.memory.Memory` has them, the oldest first.
        start: the channel of the frames at which the keys begin; the values follow them.
        lag_bias: (heads, M), of the oldest frame first.
        filled: (B,) int64, how many of the frames are real: the newest.

    Returns:
        (B, patches, width).
    """
    out = torch.empty_like(query)
    arrays = tuple(frame.numpy() for frame in frames)
    _recall(query.numpy(), arrays, start, lag_bias.numpy(), filled.numpy(), out.numpy())
    return out


def add_gated(x: Tensor, change: Tensor, action: Tensor) -> Tensor:
    """As :func:`worldmodel.core.context.add_gated`."""
    out = torch.empty_like(x)
    arrays = (tensor.contiguous().numpy() for tensor in (x, change, action))
    _add_gated(*arrays, out.numpy())
    return out


@cached
def _recall(query, frames, start, lag_bias, filled, out):
    heads, count = lag_bias.shape
    batch, patches, width = query.shape
    size = width // heads
    scale = np.float32(1 / np.sqrt(size))
    scores = np.empty(count, np.float32)
    for b in range(batch):
        first = count - filled[b]
        for patch in range(patches):
            for head in range(heads):
                channel, keys = head * size, start + head * size
                most = np.float32(-np.inf)
                for m in range(first, count):
                    score = ZERO
                    for c in range(size):
                        score += query[b, patch, channel + c] * frames[m][b, patch, keys + c]
                    scores[m] = score * scale + lag_bias[head, m]
                    most = max(most, scores[m])
                total = ZERO
                for m in range(first, count):
                    scores[m] = exp(max(scores[m] - most, LEAST))
                    total += scores[m]
                for c in range(size):
                    out[b, patch, channel + c] = ZERO
                for m in range(first, count):
                    share = scores[m] / total
                    for c in range(size):
                        out[b, patch, channel + c] += share * frames[m][b, patch, keys + width + c]


@cached
def _add_gated(x, change, action, out):
    frames, height, width, channels = x.shape
    for n in range(frames):
        for i in range(height):
            for j in range(width):
                for c in range(channels):
                    a = change[n, i, j, c] + action[n, c]
                    b = change[n, i, j, channels + c] + action[n, channels + c]
                    out[n, i, j, c] = x[n, i, j, c] + gate(a, b)
