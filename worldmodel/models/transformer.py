"""Layers of the dynamics model: attention over past frames and patches, and convolutions over the last two frames."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from worldmodel.models.layers import gated_activation, module_list


class SpatioTemporalBlock(nn.Module):
    """Attention of each patch over past frames, attention over the patches of a frame, and a feed-forward network."""

    def __init__(self, embed_dim: int, num_heads: int, context_length: int) -> None:
        super().__init__()
        width, self.num_heads = embed_dim, num_heads
        self.lag_bias = nn.Parameter(torch.zeros(num_heads, context_length))
        self.norms = module_list(nn.LayerNorm(width) for _ in range(3))
        self.query, self.keys_values = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.over_time = nn.Linear(width, width)
        self.spatial = nn.Linear(width, 3 * width)
        self.over_space = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, lags: Tensor) -> Tensor:
        """Apply the block to Q frames: (B, Q, patches, width) to the same shape.

        Args:
            x: features of the query frames.
            keys: keys of M frames, (B, M, patches, width).
            values: values of M frames, (B, M, patches, width).
            lags: query time minus key time in frames, (B or 1, Q, M).
        """
        context_length = self.lag_bias.shape[1]
        visible = (lags >= 0) & (lags < context_length)
        bias = self.lag_bias[:, lags.clamp(0, context_length - 1)]  # (heads, B or 1, Q, M)
        bias = bias.masked_fill(~visible, float("-inf")).movedim(0, 1)[:, None]
        query = self._split_heads(self.project_query(x).transpose(1, 2))  # (B, patches, heads, Q, width/heads)
        keys, values = (self._split_heads(part.transpose(1, 2)) for part in (keys, values))
        attended = attention(query, keys, values, bias)
        x = x + self.over_time(attended.transpose(2, 3).flatten(3).transpose(1, 2))
        return self.forward_within_frames(x.flatten(0, 1)).view_as(x)

    def project_query(self, x: Tensor) -> Tensor:
        """Return the queries of the attention over time."""
        return self.query(self.norms[0](x))

    def forward_within_frames(self, x: Tensor) -> Tensor:
        """Apply the attention over space and the feed-forward network: (N, patches, width) to the same shape."""
        parts = self.spatial(self.norms[1](x)).chunk(3, -1)
        attended = attention(*map(self._split_heads, parts))  # (N, heads, patches, width/heads)
        x = x + self.over_space(attended.transpose(1, 2).flatten(2))
        return x + self.feed_forward(self.norms[2](x))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)


def attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention, (…, Q, D), (…, M, D), (…, M, D) -> (…, Q, D); bias (…, Q, M) is added to the scores.

    For some tens of keys, two products and a softmax are faster on a CPU than the fused kernel, above all backwards.
    """
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    return (scores if bias is None else scores + bias).softmax(-1).to(values.dtype) @ values


def add_gated(x: Tensor, update: Tensor, action: Tensor) -> Tensor:
    """Add a gated update, conditioned on the action: (N, H, W, C), (N, H, W, 2·C), (N, 2·C) -> (N, H, W, C)."""
    return x + gated_activation(update, condition=action[:, None, None])


class MotionConvs(nn.Module):
    """Gated 3×3 convolutions over two frames at full resolution, conditioned on coarse features and actions."""

    def __init__(self, code_dim: int, channels: int, num_layers: int, embed_dim: int) -> None:
        super().__init__()
        sizes = [2 * code_dim + channels] + [channels] * (num_layers - 1)
        self.convolutions = module_list(nn.Conv2d(size, 2 * channels, 3, padding=1) for size in sizes)
        self.action = nn.Linear(embed_dim, num_layers * 2 * channels)

    def forward(self, fine: Tensor, coarse: Tensor, actions: Tensor) -> Tensor:
        """(N, H, W, 2·dim), (N, H, W, channels), (N, width) -> (N, H, W, channels)."""
        return self.forward_after_first(self._convolve(0, torch.cat([fine, coarse], -1)), coarse, actions)

    def forward_after_first(self, update: Tensor, coarse: Tensor, actions: Tensor, add: Callable = add_gated) -> Tensor:
        """Continue from the output of the first convolution, (N, H, W, 2·channels).

        Args:
            add: implementation of :func:`add_gated`.
        """
        x = coarse
        for layer, action in enumerate(self.action(actions).chunk(len(self.convolutions), -1)):
            x = add(x, self._convolve(layer, x) if layer else update, action)
        return x

    def _convolve(self, layer: int, x: Tensor) -> Tensor:
        return self.convolutions[layer](x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # channels last throughout
