"""The gated PixelCNN: an autoregressive network over a grid of codes in raster order, without a blind spot.

It has two stacks of gated convolutions (van den Oord et al. 2016, section 2). The vertical stack sees the rows above a
position, as far to each side as its kernels reach; the horizontal stack sees the positions to the left in the same row,
and the output of the vertical stack. A single stack of masked convolutions would have a blind spot in the upper right.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.models.autoregressive.sampling import check_uniforms, sample_categorical
from worldmodel.models.layers import dropout, gated_activation, module_list


class PixelCNN(nn.Module):
    """p(codes | condition) over an (H, W) grid, in raster order.

    Args:
        embedding: embedding of the codes, (K, E).
        condition_channels: number of channels C of the condition.
        hidden_channels: number of channels of each layer.
        num_layers: number of layers, 2 or more.
        kernel_size: kernel width in positions, an odd number of 3 or more.
        dropout: dropout probability of each layer's output.

    Raises:
        ValueError: if the number of layers or the kernel size is not allowed.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        condition_channels: int,
        hidden_channels: int,
        num_layers: int,
        kernel_size: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_layers < 2 or kernel_size < 3 or kernel_size % 2 == 0:
            raise ValueError(
                f"expected 2 or more layers and an odd kernel of 3 or more, got {num_layers} and {kernel_size}"
            )
        (codes, dim), hidden = embedding.weight.shape, hidden_channels
        self.embedding = embedding
        self.hidden, self.num_layers, self.reach, self.dropout = hidden, num_layers, kernel_size // 2, dropout
        # Only the first layer's input depends on the position's own code. So its vertical kernels leave out the
        # position's own row, and its horizontal kernels the position itself; those of later layers include them.
        own = [0] + [1] * (num_layers - 1)
        inputs = [dim] + [hidden] * (num_layers - 1)
        self.vertical = module_list(
            nn.Conv2d(size, 2 * hidden, (self.reach + row, kernel_size), bias=False)
            for size, row in zip(inputs, own, strict=True)
        )
        self.horizontal = module_list(
            nn.Conv2d(size, 2 * hidden, (1, self.reach + column), bias=False)
            for size, column in zip(inputs, own, strict=True)
        )
        self.down = module_list(nn.Conv2d(2 * hidden, 2 * hidden, 1, bias=False) for _ in range(num_layers))
        self.residual = module_list(nn.Conv2d(hidden, hidden, 1, bias=False) for _ in range(num_layers - 1))
        self.condition = nn.Linear(condition_channels, num_layers * 4 * hidden + dim)
        self.readout = nn.Linear(num_layers * hidden, dim, bias=False)
        self.logits = nn.Linear(dim, codes)

    def forward(self, codes: Tensor, condition: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the logits of all positions in parallel, each given the codes before it.

        Args:
            codes: (B, H, W) int64.
            condition: (B, H, W, C), or (1, H, W, C) to share one condition.
            generator: source of the dropout masks.

        Returns:
            (B, H, W, K).
        """
        *conditions, last = self._split(self.condition(condition))
        across = x = self.embedding(codes).movedim(-1, 1)  # (B, E, H, W); across: vertical stack, x: horizontal stack
        outputs = []
        for layer, bias in enumerate(conditions):
            vertical_bias, horizontal_bias = bias.movedim(-1, 1).chunk(2, 1)
            vertical = self._convolve_vertical(layer, across) + vertical_bias  # (B, 2·hidden, H, W)
            horizontal = self._convolve_horizontal(layer, x) + self.down[layer](vertical) + horizontal_bias
            out = gated_activation(horizontal, 1)  # (B, hidden, H, W)
            if self.training and self.dropout:
                out = dropout(out, self.dropout, generator)
            outputs.append(out)
            if layer < self.num_layers - 1:
                across = gated_activation(vertical, 1)
                x = self.residual[layer](out) + (x if layer else 0)
        return self.logits(F.relu(self.readout(torch.cat(outputs, 1).movedim(1, -1)) + last))

    @torch.no_grad()
    def sample(self, condition: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Sample codes one by one: each costs one position of the horizontal stack, each row one of the vertical stack.

        Up to rounding, the codes are those that full passes would give.

        Args:
            condition: (B, H, W, C).
            uniforms: (B, H, W) in [0, 1), inverted through the cumulative distribution at each position.
            temperature: divisor of the logits; 0 takes the most probable code.

        Returns:
            (B, H, W) int64.

        Raises:
            ValueError: if the shapes of condition and uniforms do not match.
        """
        check_uniforms(uniforms, condition)
        batch, height, width = uniforms.shape
        *conditions, last = self._split(self.condition(condition))
        biases = torch.stack(conditions, 3).unflatten(-1, (2, -1))  # (B, H, W, layers, 2, 2·hidden)
        vertical = _VerticalStack(self, batch, height, width)
        horizontal = _HorizontalStack(self, batch, width)
        codes = torch.empty(batch, height, width, dtype=torch.int64, device=condition.device)
        for row in range(height):
            gates = vertical.forward_row(row, biases[:, row])  # (B, W, layers, 2·hidden)
            horizontal.gates.copy_(gates.permute(1, 2, 0, 3))
            for column in range(width):
                outputs = horizontal.forward_position(column)
                x = torch.addmm(last[:, row, column], outputs, horizontal.readout).relu_()
                logits = torch.addmm(self.logits.bias, x, horizontal.logits)  # (B, K)
                code = sample_categorical(logits, uniforms[:, row, column], temperature)
                codes[:, row, column] = code
                horizontal.append(column, self.embedding(code))
            vertical.append_row(row, self.embedding(codes[:, row]))
        return codes

    def _convolve_vertical(self, layer: int, x: Tensor) -> Tensor:
        """Apply a layer of the vertical stack, causal over rows: (B, ·, H, W) -> (B, 2·hidden, H, W)."""
        below = 0 if layer else -1
        return self.vertical[layer](F.pad(x, (self.reach, self.reach, self.reach, below)))

    def _convolve_horizontal(self, layer: int, x: Tensor) -> Tensor:
        """Apply a layer of the horizontal stack, causal over columns: (B, ·, H, W) -> (B, 2·hidden, H, W)."""
        right = 0 if layer else -1
        return self.horizontal[layer](F.pad(x, (self.reach, right, 0, 0)))

    def _split(self, condition: Tensor) -> tuple[Tensor, ...]:
        return condition.split([4 * self.hidden] * self.num_layers + [self.embedding.embedding_dim], dim=-1)


class _VerticalStack:
    """The vertical stack, evaluated row by row; the layers' inputs are cached, with a border of zeros."""

    def __init__(self, net: PixelCNN, batch: int, height: int, width: int) -> None:
        self.net, reach = net, net.reach
        like, sizes = net.embedding.weight, [layer.in_channels for layer in net.vertical]
        self.inputs = [
            like.new_zeros(batch, height + reach, width + 2 * reach, size).movedim(-1, 1) for size in sizes
        ]  # (B, ·, H + reach, W + 2·reach)
        self.inside = slice(reach, reach + width)

    def forward_row(self, row: int, biases: Tensor) -> Tensor:
        """Return what a row adds to the horizontal stack's gates: (B, W, layers, 2, 2·hidden) -> (B, W, layers, ·)."""
        net, reach, outputs = self.net, self.net.reach, []
        for number, (inputs, layer) in enumerate(zip(self.inputs, net.vertical, strict=True)):
            gates = layer(inputs[:, :, row : row + layer.kernel_size[0]])[:, :, 0].movedim(1, -1)  # (B, W, 2·hidden)
            gates = gates + biases[:, :, number, 0]
            if number < net.num_layers - 1:
                self.inputs[number + 1][:, :, row + reach, self.inside] = gated_activation(gates).movedim(-1, 1)
            outputs.append(F.linear(gates, net.down[number].weight[:, :, 0, 0]) + biases[:, :, number, 1])
        return torch.stack(outputs, 2)

    def append_row(self, row: int, embedded: Tensor) -> None:
        """Store the embedded codes of a row, (B, W, E)."""
        self.inputs[0][:, :, row + self.net.reach, self.inside] = embedded.movedim(-1, 1)


class _HorizontalStack:
    """The horizontal stack, evaluated position by position with few calls into preallocated tensors.

    Each layer is one product with its inputs at the previous positions, for all layers at once, and one with its input
    at the current position.
    """

    def __init__(self, net: PixelCNN, batch: int, width: int) -> None:
        reach, hidden, layers = net.reach, net.hidden, net.num_layers
        like, dim = net.embedding.weight, net.embedding.embedding_dim
        taps = [layer.weight[:, :, 0].permute(2, 1, 0) for layer in net.horizontal]  # (columns, inputs, 2·hidden)
        self.first = taps[0].flatten(0, 1)  # (reach·E, 2·hidden)
        self.past = torch.stack([tap[:-1].flatten(0, 1) for tap in taps[1:]])  # (layers - 1, reach·hidden, 2·hidden)
        current = [tap[-1].contiguous() for tap in taps[1:]]
        residual = [layer.weight[:, :, 0, 0].t().contiguous() for layer in net.residual]
        self.readout, self.logits = (linear.weight.t().contiguous() for linear in (net.readout, net.logits))
        self.gates = like.new_empty(width, layers, batch, 2 * hidden)
        self.embedded = like.new_zeros(batch, (width + reach) * dim)
        self.inputs = like.new_zeros(layers - 1, batch, (width + reach) * hidden)
        self.outputs = like.new_empty(batch, layers * hidden)
        self.zeros = like.new_zeros(batch, hidden)
        outputs = self.outputs.split(hidden, 1)
        inputs = self.inputs.unflatten(-1, (-1, hidden))[:, :, reach:]  # (layers - 1, B, W, hidden)
        # At every column, for every layer but the last: both halves of the gates, the output, the next layer's input,
        # the weights that compute this input, and the weights that multiply it.
        self.steps = [
            [
                (*gates.chunk(2, 1), out, following, *weights)
                for gates, out, following, *weights in zip(
                    self.gates[column], outputs[:-1], inputs[:, :, column], residual, current, strict=False
                )
            ]
            for column in range(width)
        ]
        self.reach, self.dim, self.hidden, self.last = reach, dim, hidden, outputs[-1]

    def forward_position(self, column: int) -> Tensor:
        """Return the outputs of all layers at a position, (B, layers·hidden)."""
        gates = self.gates[column]  # (layers, B, 2·hidden), added to in place
        start, stop = column * self.dim, (column + self.reach) * self.dim
        gates[0].addmm_(self.embedded[:, start:stop], self.first)
        start, stop = column * self.hidden, (column + self.reach) * self.hidden
        gates[1:].baddbmm_(self.inputs[:, :, start:stop], self.past)
        x, next_gates = self.zeros, gates.unbind()[1:]
        for (a, b, out, following, residual, current), after in zip(self.steps[column], next_gates, strict=True):
            torch.mul(a.tanh_(), b.sigmoid_(), out=out)
            torch.addmm(x, out, residual, out=following)
            after.addmm_(following, current)
            x = following
        a, b = gates[-1].chunk(2, 1)
        torch.mul(a.tanh_(), b.sigmoid_(), out=self.last)
        return self.outputs

    def append(self, column: int, embedded: Tensor) -> None:
        """Store the embedded code at a position, (B, E)."""
        start = (column + self.reach) * self.dim
        self.embedded[:, start : start + self.dim] = embedded
