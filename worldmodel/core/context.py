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
        return self._within(x + self.over_time(seen.transpose(2, 3).flatten(3).transpose(1, 2)))

    def look(self, x: Tensor, keys: Tensor, values: Tensor, hidden: Tensor) -> Tensor:
        """The same for one frame (B, 1, patches, width), the newest of those remembered, oldest first.

        Products of whole tensors and their sums: matrix products of a single query are slower.

        Args:
            hidden: (B, M) bool, the remembered frames that are none.
        """
        query, keys, values = (
            part.unflatten(-1, (self.heads, -1)) for part in (self.query(self.norms[0](x)), keys, values)
        )
        bias = self.lag_bias.flip(1).T[:, None]  # (M, 1, heads)
        scores = (query * query.shape[-1] ** -0.5 * keys).sum(-1) + bias  # (B, M, patches, heads)
        shares = scores.masked_fill(hidden[:, :, None, None], float("-inf")).softmax(1)
        return self._within(x + self.over_time((shares[..., None] * values).sum(1, keepdim=True).flatten(3)))

    def _within(self, x: Tensor) -> Tensor:
        """What happens within each frame."""
        parts = self.spatial(self.norms[1](x)).flatten(0, 1).chunk(3, -1)  # three dimensions: what is fast asks for it
        seen = F.scaled_dot_product_attention(*map(self._heads, parts))  # (B·Q, heads, patches, width/heads)
        x = x + self.over_space(seen.transpose(1, 2).flatten(2).view_as(x))
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
