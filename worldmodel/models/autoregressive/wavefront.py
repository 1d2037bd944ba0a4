"""An autoregressive network over a grid of codes that samples a whole diagonal at a time, exactly.

Position (i, j) depends on (i, j-1), (i-1, j-1), (i-1, j) and (i-1, j+1), directly and through the layers. All of these
have a smaller j + 2i, so the positions with equal j + 2i, a wavefront, are independent of each other and are sampled
together: 21×21 codes take 61 steps instead of 441, and the distribution is that of sampling one after the other.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.models.autoregressive.sampling import check_uniforms, load_kernel, sample_categorical
from worldmodel.models.layers import gated_activation, module_list

# (rows up, columns left) that a layer sees; the last is the position itself, which the first layer must not see
TAPS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, 0))


class WavefrontNet(nn.Module):
    """p(codes | condition) over an (H, W) grid: gated layers of five taps, each conditioned.

    Args:
        embedding: embedding of the codes, (K, E).
        condition_channels: number of channels C of the condition.
        hidden_channels: number of channels of each layer.
        num_layers: number of layers, 2 or more.
    """

    def __init__(self, embedding: nn.Embedding, condition_channels: int, hidden_channels: int, num_layers: int) -> None:
        super().__init__()
        if num_layers < 2:
            raise ValueError(f"a wavefront network must have 2 layers or more, got {num_layers}")
        (codes, dim), hidden = embedding.weight.shape, hidden_channels
        self.embedding = embedding
        self.hidden, self.num_layers = hidden, num_layers
        self.first = nn.Linear((len(TAPS) - 1) * dim, 2 * hidden, bias=False)
        self.rest = module_list(nn.Linear(len(TAPS) * hidden, 2 * hidden, bias=False) for _ in range(num_layers - 1))
        self.condition = nn.Linear(condition_channels, num_layers * 2 * hidden + dim)
        self.readout = nn.Linear(hidden, dim, bias=False)
        self.logits = nn.Linear(dim, codes)

    def forward(self, codes: Tensor, condition: Tensor) -> Tensor:
        """Return the logits of all positions in parallel, each given the codes before it.

        Args:
            codes: (B, H, W) int64.
            condition: (B, H, W, C).

        Returns:
            (B, H, W, K).
        """
        *biases, last = self._split(self.condition(condition))
        taps = _gather_taps(self.embedding(codes), TAPS[:-1])
        x = gated_activation(self.first(taps), condition=biases[0])  # (B, H, W, hidden)
        for layer, bias in zip(self.rest, biases[1:], strict=True):
            x = x + gated_activation(layer(_gather_taps(x, TAPS)), condition=bias)
        return self.logits(F.relu(self.readout(x) + last))

    @torch.no_grad()
    def sample(
        self, condition: Tensor, uniforms: Tensor, temperature: float = 1.0, weights: tuple | None = None
    ) -> Tensor:
        """Sample all codes, a wavefront at a time.

        Float32 on the CPU is sampled by a compiled kernel if Numba is installed, with the same codes up to rounding.

        Args:
            condition: (B, H, W, C).
            uniforms: (B, H, W) in [0, 1), inverted through the cumulative distribution at each position.
            temperature: divisor of the logits; 0 takes the most probable code.
            weights: result of :meth:`pack_weights` for the current weights; by default they are packed at every call.

        Returns:
            (B, H, W) int64.

        Raises:
            ValueError: if the shapes of condition and uniforms do not match.
        """
        check_uniforms(uniforms, condition)
        if self._is_compilable(condition) and (kernel := load_kernel("wavefront")):
            biases, weights = self.condition(condition), weights or kernel.pack_weights(self)
            return torch.from_numpy(kernel.sample(biases.numpy(), uniforms.numpy(), temperature, weights))
        return self.sample_in_torch(condition, uniforms, temperature)

    @torch.no_grad()
    def sample_in_torch(self, condition: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Sample as :meth:`sample`, without the compiled kernel."""
        batch, height, width = uniforms.shape
        fronts, (order, inverse) = wavefronts(height, width), _wavefront_order(height, width, condition.device)
        uniforms = uniforms.flatten(1)[:, order]  # (B, H·W), in wavefront order
        *biases, last = self._split(self.condition(condition.flatten(1, 2)[:, order]))  # each (B, H·W, ·)
        # Row i of wavefront s is stored at [s + 3, :, i + 1]: the taps of a wavefront are slices of the three before
        # it. What was never written is the zero padding beyond the border.
        dim, shape = self.embedding.embedding_dim, (len(fronts) + 3, batch, height + 1)
        embedded = condition.new_zeros(*shape, dim)
        inputs = [condition.new_zeros(*shape, self.hidden) for _ in range(self.num_layers - 1)]
        codes = []
        for number, front in enumerate(fronts):
            low, high, part = front.low, front.high, slice(front.start, front.start + len(front.rows))
            taps = _gather_front_taps(embedded, number, low, high)[..., :-dim]
            x = gated_activation(self.first(taps) + biases[0][:, part])
            for layer, bias, history in zip(self.rest, biases[1:], inputs, strict=True):
                history[number + 3, :, low + 1 : high + 2] = x
                x = x + gated_activation(layer(_gather_front_taps(history, number, low, high)) + bias[:, part])
            logits = self.logits(F.relu(self.readout(x) + last[:, part]))  # (B, n, K)
            codes.append(sample_categorical(logits, uniforms[:, part], temperature))
            embedded[number + 3, :, low + 1 : high + 2] = self.embedding(codes[-1])
        return torch.cat(codes, 1)[:, inverse].view(batch, height, width)

    def pack_weights(self) -> tuple | None:
        """Return the weights in the kernel's layout, for :meth:`sample`; None if the kernel cannot be used."""
        kernel = load_kernel("wavefront") if self._is_compilable(self.embedding.weight) else None
        return kernel.pack_weights(self) if kernel else None

    def _is_compilable(self, tensor: Tensor) -> bool:
        return tensor.device.type == "cpu" and tensor.dtype == self.embedding.weight.dtype == torch.float32

    def _split(self, condition: Tensor) -> tuple[Tensor, ...]:
        return condition.split([2 * self.hidden] * self.num_layers + [self.embedding.embedding_dim], dim=-1)


class Wavefront(NamedTuple):
    """The positions (i, j) with equal j + 2i."""

    rows: Tensor  # (n,) int64, i from low to high
    columns: Tensor  # (n,) int64
    low: int
    high: int
    start: int  # number of positions in the wavefronts before


@cache
def wavefronts(height: int, width: int) -> list[Wavefront]:
    """Return all wavefronts of a grid in sampling order; together they hold each position once."""
    fronts, start = [], 0
    for number in range(width + 2 * (height - 1)):
        low, high = max(0, -((width - 1 - number) // 2)), min(height - 1, number // 2)
        rows = torch.arange(low, high + 1)
        fronts.append(Wavefront(rows, number - 2 * rows, low, high, start))
        start += len(rows)
    return fronts


@cache
def _wavefront_order(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the raster index of each position in wavefront order, and the inverse permutation; both (H·W,)."""
    order = torch.cat([front.rows * width + front.columns for front in wavefronts(height, width)])
    return order.to(device), order.argsort().to(device)


def _gather_taps(x: Tensor, taps: tuple[tuple[int, int], ...]) -> Tensor:
    """Concatenate what each position sees, zeros beyond the border: (B, H, W, C) -> (B, H, W, taps·C)."""
    height, width = x.shape[1:3]
    padded = F.pad(x, (0, 0, 1, 1, 1, 0))
    return torch.cat([padded[:, 1 - up : 1 - up + height, 1 - left : 1 - left + width] for up, left in taps], -1)


def _gather_front_taps(history: Tensor, number: int, low: int, high: int) -> Tensor:
    """Concatenate what each position of one wavefront sees: (S+3, B, H+1, C) -> (B, n, taps·C)."""
    parts = [history[number + 3 - left - 2 * up, :, low + 1 - up : high + 2 - up] for up, left in TAPS]
    return torch.cat(parts, -1)
