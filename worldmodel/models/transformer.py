"""What the dynamics prior makes of the past: attention over remembered patches, convolutions over recent frames."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from worldmodel.models.layers import gated


class Block(nn.Module):
    """Attention over the remembered frames, patch by patch; attention over the patches; a feed-forward net."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.lag_bias = nn.Parameter(torch.zeros(heads, context))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.query, self.keys_values = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.over_time = nn.Linear(width, width)
        self.spatial = nn.Linear(width, 3 * width)
        self.over_space = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, lags: Tensor) -> Tensor:
        """Query frames (B, Q, patches, width), remembered ones (B, M, patches, width) and their lags (B or 1, Q, M)."""
        context = self.lag_bias.shape[1]
        visible = (lags >= 0) & (lags < context)
        bias = self.lag_bias[:, lags.clamp(0, context - 1)].masked_fill(
            ~visible, float("-inf")
        )  # (heads, B or 1, Q, M)
        query = self._heads(self.queried(x).transpose(1, 2))  # (B, patches, heads, Q, width/heads)
        keys, values = (self._heads(part.transpose(1, 2)) for part in (keys, values))
        seen = _attention(query, keys, values, bias.movedim(0, 1)[:, None])
        x = x + self.over_time(seen.transpose(2, 3).flatten(3).transpose(1, 2))
        return self.within(x.flatten(0, 1)).view_as(x)

    def queried(self, x: Tensor) -> Tensor:
        """What each patch asks of the remembered frames."""
        return self.query(self.norms[0](x))

    def within(self, x: Tensor) -> Tensor:
        """What happens within each frame, (N, patches, width) to the same."""
        parts = self.spatial(self.norms[1](x)).chunk(3, -1)
        seen = _attention(*map(self._heads, parts))  # (N, heads, patches, width/heads)
        x = x + self.over_space(seen.transpose(1, 2).flatten(2))
        return x + self.feed_forward(self.norms[2](x))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)


def _attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention, (…, Q, D), (…, M, D), (…, M, D) -> (…, Q, D); bias (…, Q, M) adds to the scores.

    Two products and a softmax: for some tens of keys faster on a CPU than the fused kernel, above all backwards.
    """
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    return (scores if bias is None else scores + bias).softmax(-1).to(values.dtype) @ values


def add_gated(x: Tensor, change: Tensor, action: Tensor) -> Tensor:
    """Add a gated change, told the action: (N, H, W, C), (N, H, W, 2·C), (N, 2·C) -> (N, H, W, C)."""
    return x + gated(change, told=action[:, None, None])


class Motion(nn.Module):
    """Gated 3×3 convolutions over two frames at full resolution, told the coarse context and the actions."""

    def __init__(self, dim: int, channels: int, layers: int, width: int) -> None:
        super().__init__()
        sizes = [2 * dim + channels] + [channels] * (layers - 1)
        self.convolutions = nn.ModuleList(nn.Conv2d(size, 2 * channels, 3, padding=1) for size in sizes)
        self.action = nn.Linear(width, layers * 2 * channels)

    def forward(self, fine: Tensor, coarse: Tensor, actions: Tensor) -> Tensor:
        """(N, H, W, 2·dim), (N, H, W, channels), (N, width) -> (N, H, W, channels)."""
        return self.after_first(self._convolved(0, torch.cat([fine, coarse], -1)), coarse, actions)

    def after_first(self, change: Tensor, coarse: Tensor, actions: Tensor, add: Callable = add_gated) -> Tensor:
        """The same from what the first convolution made of its input, (N, H, W, 2·channels).

        Args:
            add: does what :func:`add_gated` does.
        """
        x = coarse
        for number, action in enumerate(self.action(actions).chunk(len(self.convolutions), -1)):
            x = add(x, self._convolved(number, x) if number else change, action)
        return x

    def _convolved(self, number: int, x: Tensor) -> Tensor:
        return self.convolutions[number](x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # channels last throughout
