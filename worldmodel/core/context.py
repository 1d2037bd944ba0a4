"""What the dynamics prior makes of the past: attention over remembered patches, convolutions over recent frames."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.core.layers import gated


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

    def remember(self, remembered: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of frames: (B, T, patches, width) -> two of the same shape."""
        return self.keys_values(remembered).chunk(2, -1)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, lags: Tensor) -> Tensor:
        """Query frames (B, Q, patches, width), remembered frames (B, M, patches, width) and their lags (Q, M)."""
        context = self.lag_bias.shape[1]
        visible = (lags >= 0) & (lags < context)
        bias = self.lag_bias[:, lags.clamp(0, context - 1)].masked_fill(~visible, float("-inf"))  # (heads, Q, M)

        query = self._heads(self.query(self.norms[0](x)).transpose(1, 2))  # (B, patches, heads, Q, width/heads)
        seen = F.scaled_dot_product_attention(
            query,
            self._heads(keys.transpose(1, 2)),
            self._heads(values.transpose(1, 2)),
            attn_mask=bias.to(query.dtype),
        )
        x = x + self.over_time(seen.transpose(2, 3).flatten(3).transpose(1, 2))
        query, key, value = (self._heads(part) for part in self.spatial(self.norms[1](x)).chunk(3, -1))
        seen = F.scaled_dot_product_attention(query, key, value)  # (B, Q, heads, patches, width/heads)
        x = x + self.over_space(seen.transpose(2, 3).flatten(3))
        return x + self.feed_forward(self.norms[2](x))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)


class Motion(nn.Module):
    """Gated 3×3 convolutions over two frames at full resolution, told the coarse context and the actions."""

    def __init__(self, dim: int, channels: int, layers: int, width: int) -> None:
        super().__init__()
        sizes = [2 * dim + channels] + [channels] * (layers - 1)
        self.convolutions = nn.ModuleList(nn.Conv2d(size, 2 * channels, 3, padding=1) for size in sizes)
        self.action = nn.Linear(width, layers * 2 * channels)

    def forward(self, fine: Tensor, coarse: Tensor, actions: Tensor) -> Tensor:
        """(N, H, W, 2·dim), (N, H, W, channels), (N, width) -> (N, H, W, channels)."""
        told = self.action(actions).chunk(len(self.convolutions), -1)
        x, carried = torch.cat([fine, coarse], -1), coarse
        for convolution, action in zip(self.convolutions, told, strict=True):
            change = convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # channels last throughout
            x = carried = carried + gated(change + action[:, None, None])
        return x
