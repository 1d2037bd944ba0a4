"""An autoregressive net over a grid of codes that draws a whole diagonal at a time, exactly.

Position (i, j) sees (i, j-1), (i-1, j-1), (i-1, j) and (i-1, j+1), directly and through its layers. All of these have
a smaller j + 2i, so positions on one such line, the wavefront, do not see each other and are drawn together: 21×21
codes take 61 steps instead of 441, and the distribution is that of drawing one after the other.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.models.autoregressive.sampling import check_uniforms, compiled_loop, draw
from worldmodel.models.layers import gated

# (rows up, columns left) of what a layer sees; the last is the position itself, which the first layer must not see
TAPS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, 0))


class WavefrontNet(nn.Module):
    """p(codes | condition) over an (H, W) grid: gated layers of five taps, each told the condition.

    Args:
        embedding: of the codes, (K, E).
        condition: channels C of the condition.
        hidden: channels of each layer.
        layers: of them, two or more.
    """

    def __init__(self, embedding: nn.Embedding, condition: int, hidden: int, layers: int) -> None:
        super().__init__()
        codes, dim = embedding.weight.shape
        self.embedding = embedding
        self.hidden, self.layers = hidden, layers
        self.first = nn.Linear((len(TAPS) - 1) * dim, 2 * hidden, bias=False)
        self.rest = nn.ModuleList(nn.Linear(len(TAPS) * hidden, 2 * hidden, bias=False) for _ in range(layers - 1))
        self.condition = nn.Linear(condition, layers * 2 * hidden + dim)
        self.readout = nn.Linear(hidden, dim, bias=False)
        self.logits = nn.Linear(dim, codes)

    def forward(self, codes: Tensor, condition: Tensor) -> Tensor:
        """Logits of every position given the codes before it, all at once.

        Args:
            codes: (B, H, W) int64.
            condition: (B, H, W, C).

        Returns:
            (B, H, W, K).
        """
        *conditions, last = self._split(self.condition(condition))
        x = gated(self.first(_shifted(self.embedding(codes), TAPS[:-1])), told=conditions[0])  # (B, H, W, hidden)
        for layer, told in zip(self.rest, conditions[1:], strict=True):
            x = x + gated(layer(_shifted(x, TAPS)), told=told)
        return self.logits(F.relu(self.readout(x) + last))

    @torch.no_grad()
    def sample(
        self, condition: Tensor, uniforms: Tensor, temperature: float = 1.0, packed: tuple | None = None
    ) -> Tensor:
        """Draw all codes, a wavefront at a time.

        Float32 on the CPU is drawn by one compiled function if Numba is installed: the same codes, but for rounding.

        Args:
            condition: (B, H, W, C).
            uniforms: (B, H, W) in [0, 1): position by position, the code drawn is the one at which the cumulated
                probability passes this number.
            temperature: divides the logits; 0 takes the likeliest code.
            packed: what :meth:`packed` made of the present weights, which otherwise is made anew at every call.

        Returns:
            (B, H, W) int64.

        Raises:
            ValueError: if the condition and the uniforms are of other shapes.
        """
        check_uniforms(uniforms, condition)
        if self._compilable(condition) and (kernel := compiled_loop("wavefront")):
            told, weights = self.condition(condition), packed or kernel.weights_of(self)
            return torch.from_numpy(kernel.sample(told.numpy(), uniforms.numpy(), temperature, weights))
        return self.sample_in_torch(condition, uniforms, temperature)

    @torch.no_grad()
    def sample_in_torch(self, condition: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """What :meth:`sample` does wherever there is no compiled loop."""
        batch, height, width = uniforms.shape
        fronts, (order, back) = wavefronts(height, width), _order(height, width, condition.device)
        uniforms = uniforms.flatten(1)[:, order]  # (B, H·W), in wavefront order
        *conditions, lasts = self._split(self.condition(condition.flatten(1, 2)[:, order]))  # each (B, H·W, ·)
        # Row i of wavefront s lies at [s + 3, :, i + 1]: whatever a wavefront sees is a slice of one of the three
        # before it. What was never written is the zero beyond the border.
        shape = (len(fronts) + 3, batch, height + 1)
        embedded = condition.new_zeros(*shape, self.embedding.embedding_dim)
        maps = [condition.new_zeros(*shape, self.hidden) for _ in range(self.layers - 1)]
        codes = []
        for number, front in enumerate(fronts):
            low, high, here = front.low, front.high, slice(front.start, front.start + len(front.rows))
            x = gated(
                self.first(_seen(embedded, number, low, high)[..., : -self.embedding.embedding_dim])
                + conditions[0][:, here]
            )
            for layer, told, kept in zip(self.rest, conditions[1:], maps, strict=True):
                kept[number + 3, :, low + 1 : high + 2] = x
                x = x + gated(layer(_seen(kept, number, low, high)) + told[:, here])
            logits = self.logits(F.relu(self.readout(x) + lasts[:, here]))  # (B, n, K)
            codes.append(draw(logits, uniforms[:, here], temperature))
            embedded[number + 3, :, low + 1 : high + 2] = self.embedding(codes[-1])
        return torch.cat(codes, 1)[:, back].view(batch, height, width)

    def packed(self) -> tuple | None:
        """The weights as the compiled loop takes them, for :meth:`sample`; None where it cannot be used."""
        kernel = compiled_loop("wavefront") if self._compilable(self.embedding.weight) else None
        return kernel.weights_of(self) if kernel else None

    def _compilable(self, tensor: Tensor) -> bool:
        return tensor.device.type == "cpu" and tensor.dtype == self.embedding.weight.dtype == torch.float32

    def _split(self, told: Tensor) -> tuple[Tensor, ...]:
        return told.split([2 * self.hidden] * self.layers + [self.embedding.embedding_dim], dim=-1)


class Wavefront(NamedTuple):
    """The positions (i, j) with j + 2i equal to one number."""

    rows: Tensor  # (n,) int64, i from low to high
    columns: Tensor  # (n,) int64
    low: int
    high: int
    start: int  # positions in the wavefronts before


@cache
def wavefronts(height: int, width: int) -> list[Wavefront]:
    """All wavefronts of a grid, in the order in which they are drawn; together they hold each position once."""
    fronts, start = [], 0
    for number in range(width + 2 * (height - 1)):
        low, high = max(0, -((width - 1 - number) // 2)), min(height - 1, number // 2)
        rows = torch.arange(low, high + 1)
        fronts.append(Wavefront(rows, number - 2 * rows, low, high, start))
        start += len(rows)
    return fronts


@cache
def _order(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where in a flat grid each position in wavefront order lies, and the way back; both (H·W,)."""
    order = torch.cat([front.rows * width + front.columns for front in wavefronts(height, width)])
    return order.to(device), order.argsort().to(device)


def _shifted(x: Tensor, taps: tuple[tuple[int, int], ...]) -> Tensor:
    """What each position sees, side by side: (B, H, W, C) -> (B, H, W, taps·C), zeros beyond the border."""
    height, width = x.shape[1:3]
    padded = F.pad(x, (0, 0, 1, 1, 1, 0))
    return torch.cat([padded[:, 1 - up : 1 - up + height, 1 - left : 1 - left + width] for up, left in taps], -1)


def _seen(kept: Tensor, number: int, low: int, high: int) -> Tensor:
    """The same for the positions of one wavefront: (S+3, B, H+1, C) -> (B, n, taps·C)."""
    parts = [kept[number + 3 - left - 2 * up, :, low + 1 - up : high + 2 - up] for up, left in TAPS]
    return torch.cat(parts, -1)
