"""The WaveNet: an autoregressive network over a sequence of codes, with a long context by dilated causal convolutions.

Each layer is a gated convolution of two taps, a position and one some distance before it (van den Oord et al. 2016,
"WaveNet", sections 2.1 to 2.4). The distance, called dilation, doubles from layer to layer and starts again at 1 after
each cycle, so the receptive field of a few layers grows as a power of two. Sampling keeps each layer's inputs as far
back as it looks in a ring buffer: a code costs one position of each layer (Le Paine et al. 2016).
"""

from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.models.autoregressive.sampling import load_kernel, sample_categorical
from worldmodel.models.layers import dropout, gated_activation, module_list

MAX_COMPILED_BATCH = 64  # sequences; for more, the loop in torch is faster than the compiled kernel


class WaveNet(nn.Module):
    """p(codes | condition) along (N,) positions.

    Args:
        embedding: embedding of the codes, (K, E); E is also the number of skip channels, into which the layers' outputs
            are summed.
        condition_channels: number of channels C of the condition.
        hidden_channels: number of channels of each layer.
        num_layers: number of layers.
        dilation_cycle: number of layers after which the dilations start again at 1.
        dropout: dropout probability of each layer's output.

    Raises:
        ValueError: if the number of layers or the cycle is less than 1.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        condition_channels: int,
        hidden_channels: int,
        num_layers: int,
        dilation_cycle: int = 9,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_layers < 1 or dilation_cycle < 1:
            raise ValueError(
                f"expected 1 or more layers and a cycle of 1 or more, got {num_layers} and {dilation_cycle}"
            )
        (codes, dim), hidden = embedding.weight.shape, hidden_channels
        self.embedding = embedding
        self.hidden, self.num_layers, self.dropout = hidden, num_layers, dropout
        self.dilations = tuple(2 ** (number % dilation_cycle) for number in range(num_layers))
        self.first = nn.Linear(dim, hidden)
        self.dilated = module_list(nn.Linear(2 * hidden, 2 * hidden, bias=False) for _ in range(num_layers))
        self.residual = module_list(nn.Linear(hidden, hidden) for _ in range(num_layers - 1))
        self.condition = nn.Linear(condition_channels, num_layers * 2 * hidden)
        self.readout = nn.Linear(num_layers * hidden, dim)  # the skip connections of all layers, summed
        self.head = nn.Linear(dim, dim)
        self.logits = nn.Linear(dim, codes)

    @property
    def receptive_field(self) -> int:
        """The number of preceding codes that a position's logits depend on."""
        return 1 + sum(self.dilations)

    def forward(self, codes: Tensor, condition: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the logits of all positions in parallel, each given the codes before it.

        Args:
            codes: (B, N) int64.
            condition: (B, M, C), or (1, M, C) to share one condition; each of the M covers N / M positions.
            generator: source of the dropout masks.

        Returns:
            (B, N, K).

        Raises:
            ValueError: if N is not a multiple of M.
        """
        check_lengths(codes.shape[1], condition.shape[1])
        outputs, x = [], self.first(self._shift(self.embedding(codes), 1))  # (B, N, hidden)
        for layer, bias in enumerate(self.condition(condition).chunk(self.num_layers, -1)):
            gates = self._convolve(layer, x).unflatten(1, (bias.shape[1], -1))  # (B, M, N / M, 2·hidden)
            out = gated_activation(gates, condition=bias[:, :, None]).flatten(1, 2)
            if self.training and self.dropout:
                out = dropout(out, self.dropout, generator)
            outputs.append(out)
            if layer < self.num_layers - 1:
                x = x + self.residual[layer](out)
        return self.logits(F.relu(self.head(F.relu(self.readout(torch.cat(outputs, -1))))))

    @torch.no_grad()
    def sample(self, condition: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Sample codes one by one, at the cost of one position of each layer.

        Up to rounding, the codes are those that full passes would give. Small batches in float32 on the CPU are sampled
        by a compiled kernel if Numba is installed.

        Args:
            condition: (B, M, C) or (1, M, C), as in :meth:`forward`.
            uniforms: (B, N) in [0, 1), inverted through the cumulative distribution at each position.
            temperature: divisor of the logits; 0 takes the most probable code.

        Returns:
            (B, N) int64.

        Raises:
            ValueError: if N is not a multiple of M, or the condition is for another number of sequences.
        """
        if uniforms.ndim != 2 or condition.ndim != 3:
            raise ValueError(
                f"uniforms must be (B, N) and the condition (B, M, C), got {tuple(uniforms.shape)} and "
                f"{tuple(condition.shape)}"
            )
        batch, length = uniforms.shape
        check_lengths(length, condition.shape[1])
        if len(condition) not in (1, batch):
            raise ValueError(
                f"expected a condition for each of {batch} sequences, or one for all, got {len(condition)}"
            )
        if batch <= MAX_COMPILED_BATCH and self._is_compilable(condition) and (kernel := load_kernel("wavenet")):
            return self._sample_compiled(kernel, condition, uniforms, temperature)
        hop = length // condition.shape[1]
        biases = self.condition(condition).expand(batch, -1, -1).unflatten(-1, (self.num_layers, -1))
        biases = biases.permute(1, 2, 0, 3).contiguous()  # (M, layers, B, 2·hidden)
        rings = [condition.new_zeros(dilation, batch, self.hidden) for dilation in self.dilations]
        past, current = zip(*(layer.weight.t().contiguous().chunk(2) for layer in self.dilated), strict=True)
        codes = torch.empty(batch, length, dtype=torch.int64, device=condition.device)
        outputs = condition.new_empty(batch, self.num_layers * self.hidden)
        layer_outputs = outputs.split(self.hidden, 1)
        embedded = condition.new_zeros(batch, self.embedding.embedding_dim)
        for position in range(length):
            x = self.first(embedded)
            for layer, (ring, out) in enumerate(zip(rings, layer_outputs, strict=True)):
                slot = ring[position % len(ring)]  # (B, hidden), the layer's input one dilation ago
                gates = torch.addmm(biases[position // hop, layer], slot, past[layer]).addmm_(x, current[layer])
                slot.copy_(x)
                out.copy_(gated_activation(gates))
                if layer < self.num_layers - 1:
                    x = x + self.residual[layer](out)
            logits = self.logits(F.relu(self.head(F.relu(self.readout(outputs)))))  # (B, K)
            codes[:, position] = code = sample_categorical(logits, uniforms[:, position], temperature)
            embedded = self.embedding(code)
        return codes

    def _is_compilable(self, condition: Tensor) -> bool:
        inputs = self.hidden, self.embedding.embedding_dim, self.condition.in_features
        fits = all(size % 8 == 0 for size in inputs)  # the kernel reads eight inputs at a time
        return fits and condition.device.type == "cpu" and condition.dtype == self.first.weight.dtype == torch.float32

    def _sample_compiled(self, kernel: ModuleType, condition: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
        readout = self.readout.weight.unflatten(1, (self.num_layers, -1)).permute(1, 2, 0)  # (layers, hidden, E)
        residual = readout.new_zeros(self.num_layers, self.hidden, self.hidden)
        bias = readout.new_zeros(self.num_layers, self.hidden)
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
        codes = kernel.sample(
            condition.detach().contiguous().numpy(),
            uniforms.float().contiguous().numpy(),
            temperature,
            kernel.Weights(*(weight.detach().contiguous().numpy() for weight in weights)),
            self.dilations,
        )
        return torch.from_numpy(codes)

    def _convolve(self, layer: int, x: Tensor) -> Tensor:
        """Apply a layer's dilated causal convolution: (B, N, hidden) -> (B, N, 2·hidden).

        Uses a 2-D convolution over images one pixel high, channels last in memory, which is faster on a CPU.
        """
        dilation = self.dilations[layer]
        weight = self.dilated[layer].weight.unflatten(1, (2, -1)).transpose(1, 2)  # (2·hidden, hidden, 2)
        padded = F.pad(x, (0, 0, dilation, 0)).unsqueeze(1).permute(0, 3, 1, 2)
        return F.conv2d(padded, weight[:, :, None], dilation=(1, dilation)).permute(0, 2, 3, 1).squeeze(1)

    @staticmethod
    def _shift(x: Tensor, distance: int) -> Tensor:
        """Delay a sequence (B, N, C) by some positions, filling in zeros."""
        return F.pad(x, (0, 0, distance, 0))[:, : x.shape[1]]


def check_lengths(positions: int, conditions: int) -> None:
    """Raise a ValueError unless every condition covers the same number of positions."""
    if not conditions or positions % conditions:
        raise ValueError(f"{positions} positions must be a multiple of the {conditions} conditions")
