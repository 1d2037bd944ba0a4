"""The WaveNet: an autoregressive net over a line of codes, which sees far back through dilated causal convolutions.

Each layer is a gated convolution of two taps, a position and one some way before it (van den Oord et al. 2016,
"WaveNet", sections 2.1 to 2.4). The distance doubles from layer to layer and begins anew after each cycle, so what a
few layers see grows as a power of two. Drawing keeps what each layer took as far back as it looks, in a ring: a code
costs one position of each layer (Le Paine et al. 2016).
"""

from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.models.autoregressive.sampling import compiled_loop, draw
from worldmodel.models.layers import dropped, gated

FEW = 64  # lines, up to which the compiled loop is the faster one


class WaveNet(nn.Module):
    """p(codes | condition) along (N,) positions.

    Args:
        embedding: of the codes, (K, E); E is also the width of what the layers' outputs are summed into.
        condition: channels C of the condition.
        hidden: channels of each layer.
        layers: of them.
        cycle: layers after which the distances begin with 1 again.
        dropout: share of each layer's outputs left out in training.

    Raises:
        ValueError: for less than one layer or cycle.
    """

    def __init__(
        self, embedding: nn.Embedding, condition: int, hidden: int, layers: int, cycle: int = 9, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if layers < 1 or cycle < 1:
            raise ValueError(f"expected 1 or more layers and a cycle of 1 or more, got {layers} and {cycle}")
        codes, dim = embedding.weight.shape
        self.embedding = embedding
        self.hidden, self.layers, self.dropout = hidden, layers, dropout
        self.dilations = tuple(2 ** (number % cycle) for number in range(layers))
        self.first = nn.Linear(dim, hidden)
        self.dilated = nn.ModuleList(
            nn.Linear(2 * hidden, 2 * hidden, bias=False) for _ in range(layers)
        )  # before, here
        self.residual = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers - 1))
        self.condition = nn.Linear(condition, layers * 2 * hidden)
        self.readout = nn.Linear(layers * hidden, dim)  # the skip connections of all layers, summed
        self.head = nn.Linear(dim, dim)
        self.logits = nn.Linear(dim, codes)

    @property
    def receptive_field(self) -> int:
        """How many codes before a position its logits depend on."""
        return 1 + sum(self.dilations)

    def forward(self, codes: Tensor, condition: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Logits of every position given the codes before it, all at once.

        Args:
            codes: (B, N) int64.
            condition: (B, M, C), or (1, M, C) for the same in every line; each is told to N / M positions.
            generator: for dropout.

        Returns:
            (B, N, K).

        Raises:
            ValueError: if N is no multiple of M.
        """
        check_lengths(codes.shape[1], condition.shape[1])
        read, x = [], self.first(self._before(self.embedding(codes), 1))  # (B, N, hidden)
        for number, told in enumerate(self.condition(condition).chunk(self.layers, -1)):
            gates = self._dilated(number, x).unflatten(1, (told.shape[1], -1))  # (B, M, N / M, 2·hidden)
            out = gated(gates, told=told[:, :, None]).flatten(1, 2)
            if self.training and self.dropout:
                out = dropped(out, self.dropout, generator)
            read.append(out)
            if number < self.layers - 1:
                x = x + self.residual[number](out)
        return self.logits(F.relu(self.head(F.relu(self.readout(torch.cat(read, -1))))))

    @torch.no_grad()
    def sample(self, condition: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Draw all codes one by one, at the cost of one position of each layer.

        The codes are those that full passes would give, but for rounding. A few lines in float32 on the CPU are drawn
        by one compiled function if Numba is installed.

        Args:
            condition: (B, M, C) or (1, M, C), as :meth:`forward`.
            uniforms: (B, N) in [0, 1): position by position, the code drawn is the one at which the cumulated
                probability passes this number.
            temperature: divides the logits; 0 takes the likeliest code.

        Returns:
            (B, N) int64.

        Raises:
            ValueError: if N is no multiple of M, or the condition is of another number of lines.
        """
        if uniforms.ndim != 2 or condition.ndim != 3:
            raise ValueError(
                f"uniforms must be (B, N) and the condition (B, M, C), got {tuple(uniforms.shape)} and "
                f"{tuple(condition.shape)}"
            )
        batch, length = uniforms.shape
        check_lengths(length, condition.shape[1])
        if len(condition) not in (1, batch):
            raise ValueError(f"expected a condition for each of {batch} lines, or one for all, got {len(condition)}")
        if batch <= FEW and self._compilable(condition) and (kernel := compiled_loop("wavenet")):
            return self._sample_compiled(kernel, condition, uniforms, temperature)
        each = length // condition.shape[1]
        told = self.condition(condition).expand(batch, -1, -1).unflatten(-1, (self.layers, -1)).permute(1, 2, 0, 3)
        told = told.contiguous()  # (M, layers, B, 2·hidden)
        rings = [condition.new_zeros(dilation, batch, self.hidden) for dilation in self.dilations]
        before, here = zip(*(layer.weight.t().contiguous().chunk(2) for layer in self.dilated), strict=True)
        codes = torch.empty(batch, length, dtype=torch.int64, device=condition.device)
        read = condition.new_empty(batch, self.layers * self.hidden)
        parts = read.split(self.hidden, 1)
        embedded = condition.new_zeros(batch, self.embedding.embedding_dim)
        for position in range(length):
            x = self.first(embedded)
            for number, (ring, part) in enumerate(zip(rings, parts, strict=True)):
                slot = ring[position % len(ring)]  # (B, hidden), what this layer took that far back
                gates = torch.addmm(told[position // each, number], slot, before[number]).addmm_(x, here[number])
                slot.copy_(x)
                part.copy_(gated(gates))
                if number < self.layers - 1:
                    x = x + self.residual[number](part)
            logits = self.logits(F.relu(self.head(F.relu(self.readout(read)))))  # (B, K)
            codes[:, position] = drawn = draw(logits, uniforms[:, position], temperature)
            embedded = self.embedding(drawn)
        return codes

    def _compilable(self, condition: Tensor) -> bool:
        inputs = self.hidden, self.embedding.embedding_dim, self.condition.in_features
        fits = all(size % 8 == 0 for size in inputs)  # it takes eight at a time
        return fits and condition.device.type == "cpu" and condition.dtype == self.first.weight.dtype == torch.float32

    def _sample_compiled(self, kernel: ModuleType, condition: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
        readout = self.readout.weight.unflatten(1, (self.layers, -1)).permute(1, 2, 0)  # (layers, hidden, E)
        residual = readout.new_zeros(self.layers, self.hidden, self.hidden)
        bias = readout.new_zeros(self.layers, self.hidden)
        for number, layer in enumerate(self.residual):  # the last layer has none
            residual[number], bias[number] = layer.weight.t(), layer.bias
        first = self.first(F.pad(self.embedding.weight, (0, 0, 0, 1)))  # (K + 1, hidden)
        weights = (
            self.condition.weight.t(),
            self.condition.bias,
            torch.cat([first, self.readout.bias.expand(len(first), -1)], 1),
            torch.stack([layer.weight.t() for layer in self.dilated]),
            torch.cat([residual, readout], -1),
            bias,
            self.head.weight.t(),
            self.head.bias,
            self.logits.weight.t(),
            self.logits.bias,
        )
        drawn = kernel.sample(
            condition.detach().contiguous().numpy(),
            uniforms.float().contiguous().numpy(),
            temperature,
            kernel.Weights(*(weight.detach().contiguous().numpy() for weight in weights)),
            self.dilations,
        )
        return torch.from_numpy(drawn)

    def _dilated(self, number: int, x: Tensor) -> Tensor:
        """What a layer makes of each position and of the one that it looks back to: (B, N, hidden) -> (B, N, 2·hidden).

        A convolution of pictures one pixel high, channels last in memory: the faster one on a CPU.
        """
        distance, layer = self.dilations[number], self.dilated[number]
        weight = layer.weight.unflatten(1, (2, -1)).transpose(1, 2)[:, :, None]  # (2·hidden, hidden, 1, 2)
        padded = F.pad(x, (0, 0, distance, 0)).unsqueeze(1).permute(0, 3, 1, 2)
        return F.conv2d(padded, weight, dilation=(1, distance)).permute(0, 2, 3, 1).squeeze(1)

    @staticmethod
    def _before(x: Tensor, distance: int) -> Tensor:
        """What lies so far before each position, zeros beyond the beginning: (B, N, C) to the same."""
        return F.pad(x, (0, 0, distance, 0))[:, : x.shape[1]]


def check_lengths(positions: int, conditions: int) -> None:
    """Raise a ValueError unless every condition is for the same number of positions."""
    if not conditions or positions % conditions:
        raise ValueError(
            f"{positions} positions must be a multiple of the {conditions} conditions that are told to them"
        )
