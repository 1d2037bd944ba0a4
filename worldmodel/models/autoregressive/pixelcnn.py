"""The gated PixelCNN: an autoregressive net over a grid of codes, row by row, that overlooks none of those before.

Two stacks of gated convolutions (van den Oord et al. 2016, section 2). The vertical one sees the rows above a position,
as wide as its kernels reach; the horizontal one sees the row itself, left of the position, and is told what the
vertical one sees. One stack of masked convolutions instead would have a blind spot in the upper right.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.models.autoregressive.sampling import check_uniforms, draw
from worldmodel.models.layers import dropped, gated


class PixelCNN(nn.Module):
    """p(codes | condition) over an (H, W) grid, in raster order.

    Args:
        embedding: of the codes, (K, E).
        condition: channels C of the condition.
        hidden: channels of each layer.
        layers: of them, two or more.
        kernel: an odd number of positions, 3 or more; a layer sees half of them to each side.
        dropout: share of each layer's outputs left out in training.

    Raises:
        ValueError: for another number of layers or another kernel.
    """

    def __init__(
        self, embedding: nn.Embedding, condition: int, hidden: int, layers: int, kernel: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if layers < 2 or kernel < 3 or kernel % 2 == 0:
            raise ValueError(f"expected 2 or more layers and an odd kernel of 3 or more, got {layers} and {kernel}")
        codes, dim = embedding.weight.shape
        self.embedding = embedding
        self.hidden, self.layers, self.reach, self.dropout = hidden, layers, kernel // 2, dropout
        # What a layer takes at a position already knows nothing of its code, but for the first layer: that one must
        # not see the position's own row, or in it the position itself.
        own = [0] + [1] * (layers - 1)
        inputs = [dim] + [hidden] * (layers - 1)
        self.vertical = nn.ModuleList(
            nn.Conv2d(size, 2 * hidden, (self.reach + row, kernel), bias=False)
            for size, row in zip(inputs, own, strict=True)
        )
        self.horizontal = nn.ModuleList(
            nn.Conv2d(size, 2 * hidden, (1, self.reach + column), bias=False)
            for size, column in zip(inputs, own, strict=True)
        )
        self.down = nn.ModuleList(nn.Conv2d(2 * hidden, 2 * hidden, 1, bias=False) for _ in range(layers))
        self.residual = nn.ModuleList(nn.Conv2d(hidden, hidden, 1, bias=False) for _ in range(layers - 1))
        self.condition = nn.Linear(condition, layers * 4 * hidden + dim)
        self.readout = nn.Linear(layers * hidden, dim, bias=False)
        self.logits = nn.Linear(dim, codes)

    def forward(self, codes: Tensor, condition: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Logits of every position given the codes before it, all at once.

        Args:
            codes: (B, H, W) int64.
            condition: (B, H, W, C), or (1, H, W, C) for the same in every grid.
            generator: for dropout.

        Returns:
            (B, H, W, K).
        """
        *conditions, last = self._split(self.condition(condition))
        across = x = self.embedding(codes).movedim(-1, 1)  # (B, E, H, W); across and x: what either stack has made
        read = []
        for number, told in enumerate(conditions):
            told_above, told_beside = told.movedim(-1, 1).chunk(2, 1)
            above = self._above(number, across) + told_above  # (B, 2·hidden, H, W)
            beside = self._beside(number, x) + self.down[number](above) + told_beside
            out = gated(beside, 1)  # (B, hidden, H, W)
            if self.training and self.dropout:
                out = dropped(out, self.dropout, generator)
            read.append(out)
            if number < self.layers - 1:
                across = gated(above, 1)
                x = self.residual[number](out) + (x if number else 0)
        return self.logits(F.relu(self.readout(torch.cat(read, 1).movedim(1, -1)) + last))

    @torch.no_grad()
    def sample(self, condition: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Draw all codes one by one; each costs one position of the horizontal stack, and each row one of the vertical.

        The codes are those that full passes would give, but for rounding.

        Args:
            condition: (B, H, W, C).
            uniforms: (B, H, W) in [0, 1): position by position, the code drawn is the one at which the cumulated
                probability passes this number.
            temperature: divides the logits; 0 takes the likeliest code.

        Returns:
            (B, H, W) int64.

        Raises:
            ValueError: if the condition and the uniforms are of other shapes.
        """
        check_uniforms(uniforms, condition)
        batch, height, width = uniforms.shape
        *conditions, lasts = self._split(self.condition(condition))
        told = torch.stack(conditions, 3).unflatten(-1, (2, -1))  # (B, H, W, layers, 2, 2·hidden)
        above = _Above(self, batch, height, width)
        beside = _Beside(self, batch, width)
        codes = torch.empty(batch, height, width, dtype=torch.int64, device=condition.device)
        for row in range(height):
            beside.told.copy_(
                above.see(row, told[:, row]).permute(1, 2, 0, 3)
            )  # (B, W, layers, ·) to (W, layers, B, ·)
            for column in range(width):
                x = torch.addmm(lasts[:, row, column], beside.see(column), beside.readout).relu_()
                logits = torch.addmm(self.logits.bias, x, beside.logits)  # (B, K)
                codes[:, row, column] = drawn = draw(logits, uniforms[:, row, column], temperature)
                beside.tell(column, self.embedding(drawn))
            above.tell(row, self.embedding(codes[:, row]))
        return codes

    def _above(self, number: int, x: Tensor) -> Tensor:
        """What layer ``number`` of the vertical stack sees at every position: (B, ·, H, W) -> (B, 2·hidden, H, W)."""
        below = 0 if number else -1
        return self.vertical[number](F.pad(x, (self.reach, self.reach, self.reach, below)))

    def _beside(self, number: int, x: Tensor) -> Tensor:
        """The same of the horizontal stack."""
        right = 0 if number else -1
        return self.horizontal[number](F.pad(x, (self.reach, right, 0, 0)))

    def _split(self, told: Tensor) -> tuple[Tensor, ...]:
        return told.split([4 * self.hidden] * self.layers + [self.embedding.embedding_dim], dim=-1)


class _Above:
    """The vertical stack, a row at a time; what its layers take is kept, with a border of zeros."""

    def __init__(self, net: PixelCNN, batch: int, height: int, width: int) -> None:
        self.net, reach = net, net.reach
        like, sizes = net.embedding.weight, [layer.in_channels for layer in net.vertical]
        self.kept = [
            like.new_zeros(batch, height + reach, width + 2 * reach, size).movedim(-1, 1) for size in sizes
        ]  # (B, ·, H + reach, W + 2·reach)
        self.within = slice(reach, reach + width)

    def see(self, row: int, told: Tensor) -> Tensor:
        """What the horizontal stack is told in a row, (B, W, layers, 2·hidden), from (B, W, layers, 2, 2·hidden)."""
        net, reach, parts = self.net, self.net.reach, []
        for number, (kept, layer) in enumerate(zip(self.kept, net.vertical, strict=True)):
            seen = layer(kept[:, :, row : row + layer.kernel_size[0]])[:, :, 0].movedim(1, -1)  # (B, W, 2·hidden)
            seen = seen + told[:, :, number, 0]
            if number < net.layers - 1:
                self.kept[number + 1][:, :, row + reach, self.within] = gated(seen).movedim(-1, 1)
            parts.append(F.linear(seen, net.down[number].weight[:, :, 0, 0]) + told[:, :, number, 1])
        return torch.stack(parts, 2)

    def tell(self, row: int, embedded: Tensor) -> None:
        """The codes of a row, (B, W, E)."""
        self.kept[0][:, :, row + self.net.reach, self.within] = embedded.movedim(-1, 1)


class _Beside:
    """The horizontal stack, a position at a time, with as few calls as that takes: what they write to is there already.

    Each layer is a product with what it took at the positions before, for all layers at once, and then one with what it
    takes here.
    """

    def __init__(self, net: PixelCNN, batch: int, width: int) -> None:
        reach, hidden, layers = net.reach, net.hidden, net.layers
        like, dim = net.embedding.weight, net.embedding.embedding_dim
        taps = [layer.weight[:, :, 0].permute(2, 1, 0) for layer in net.horizontal]  # (columns, inputs, 2·hidden)
        self.first = taps[0].flatten(0, 1)  # (reach·E, 2·hidden)
        self.before = torch.stack([tap[:-1].flatten(0, 1) for tap in taps[1:]])  # (layers - 1, reach·hidden, 2·hidden)
        here = [tap[-1].contiguous() for tap in taps[1:]]
        residual = [layer.weight[:, :, 0, 0].t().contiguous() for layer in net.residual]
        self.readout, self.logits = (linear.weight.t().contiguous() for linear in (net.readout, net.logits))
        self.told = like.new_empty(width, layers, batch, 2 * hidden)
        self.embedded = like.new_zeros(batch, (width + reach) * dim)
        self.kept = like.new_zeros(layers - 1, batch, (width + reach) * hidden)
        self.read = like.new_empty(batch, layers * hidden)
        self.nothing = like.new_zeros(batch, hidden)
        reads = self.read.split(hidden, 1)
        kept = self.kept.unflatten(-1, (-1, hidden))[:, :, reach:]  # (layers - 1, B, W, hidden)
        # At every column, for every layer but the last: gates, their two halves, output, where the next layer's input
        # goes, and the weights that make it and that see it.
        self.steps = [
            [
                (told, *told.chunk(2, 1), out, x, *weights)
                for told, out, x, *weights in zip(
                    self.told[column], reads[:-1], kept[:, :, column], residual, here, strict=False
                )
            ]
            for column in range(width)
        ]
        self.reach, self.dim, self.hidden, self.last = reach, dim, hidden, reads[-1]

    def see(self, column: int) -> Tensor:
        """The outputs of all layers at a position, (B, layers·hidden)."""
        told = self.told[column]  # (layers, B, 2·hidden), added to in place
        start, stop = column * self.dim, (column + self.reach) * self.dim
        told[0].addmm_(self.embedded[:, start:stop], self.first)
        start, stop = column * self.hidden, (column + self.reach) * self.hidden
        told[1:].baddbmm_(self.kept[:, :, start:stop], self.before)
        x, following = self.nothing, told.unbind()[1:]
        for (_, a, b, out, place, residual, here), gates in zip(self.steps[column], following, strict=True):
            torch.mul(a.tanh_(), b.sigmoid_(), out=out)
            torch.addmm(x, out, residual, out=place)
            gates.addmm_(place, here)
            x = place
        a, b = told[-1].chunk(2, 1)
        torch.mul(a.tanh_(), b.sigmoid_(), out=self.last)
        return self.read

    def tell(self, column: int, embedded: Tensor) -> None:
        """The code at a position, (B, E)."""
        start = (column + self.reach) * self.dim
        self.embedded[:, start : start + self.dim] = embedded
