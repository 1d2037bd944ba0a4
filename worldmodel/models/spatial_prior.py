"""The spatial prior: p(codes of a picture | its class), by an autoregressive net over the grid of codes.

Sound has one too: its grid is a line, which may be of any length, so the net is not told where on it a code lies.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.checks import check
from worldmodel.models.autoregressive.kinds import Kind, autoregressive, standardized, start_near


@dataclass(frozen=True)
class SpatialPriorConfig:
    """The sizes of a spatial prior.

    Attributes:
        net: pixelcnn sees everything before a position, wavefront a part of it, and draws a diagonal at a time; wavenet
            is for a line of codes, as sound has.
        codes: K of the codebook.
        grid: height and width of the codes of a picture, or the length of a line of them to learn from.
        classes: of pictures or lines, one of which it is told; 0 for a prior that knows none.
        dim: of a code's embedding.
        hidden: channels of the net.
        layers: of it.
        kernel: positions that a layer of a pixelcnn is wide, an odd number.
        dropout: share of the outputs of a pixelcnn's or wavenet's layers left out in training.
        cycle: layers of a wavenet after which the distances that they look back begin with 1 again.
    """

    net: Kind = "pixelcnn"
    codes: int = 512
    grid: tuple[int, ...] = (32, 32)
    classes: int = 0
    dim: int = 64
    hidden: int = 64
    layers: int = 10
    kernel: int = 3
    dropout: float = 0.0
    cycle: int = 9

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))  # YAML gives a list
        check("model", self, ("codes", "dim", "hidden", "layers", "kernel", "cycle"), ("classes",))
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must be in [0, 1), got {self.dropout}")
        if self.dropout and self.net == "wavefront":
            raise ValueError(f"model.dropout is for --model.net pixelcnn or wavenet, got {self.dropout} with wavefront")


class CodeBatch(NamedTuple):
    """Pictures or lines to learn from, as codes; *grid is (H, W) or (N,)."""

    codes: Tensor  # (B, *grid) int64; or (B, m, *grid), m draws for every position
    labels: Tensor  # (B,) int64, their classes; any number for a prior that knows none


class SpatialPrior(nn.Module):
    """A net over the grid, told where it is, by a learnt map, and the class of the picture; a wavenet only the class.

    Args:
        codebook: (K, D) to begin with as embeddings, D being ``dim``.

    Raises:
        ValueError: for a grid that is none of the net's.
    """

    def __init__(self, config: SpatialPriorConfig, codebook: Tensor | None = None) -> None:
        super().__init__()
        line = config.net == "wavenet"
        if len(config.grid) != (1 if line else 2):
            expected = "one number" if line else "a height and a width"
            raise ValueError(f"model.grid must be {expected} for --model.net {config.net}, got {list(config.grid)}")
        self.config = config
        embedding, sizes = nn.Embedding(config.codes, config.dim), (config.hidden, config.hidden, config.layers)
        self.net = autoregressive(config.net, embedding, *sizes, config.kernel, config.dropout, config.cycle)
        places = (1,) if line else config.grid
        self.position = nn.Parameter(0.1 * torch.randn(*places, config.hidden))
        self.label = nn.Embedding(config.classes, config.hidden) if config.classes else None
        if codebook is not None:
            start_near(self.net, standardized(codebook))

    def forward(self, batch: CodeBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss, nats per code.

        With m draws for every position, these are the nats against the averaged one-hot vectors of the draws (Roy et
        al. 2018, section 3.2), and what the net is told came before is one of the draws, each picture's own choice:
        draws at different positions are independent, so that one is a draw of the whole picture.

        Args:
            generator: for the choice of a draw, and dropout.
        """
        one = batch.codes.ndim == 1 + len(self.config.grid)
        codes = batch.codes[:, None] if one else batch.codes  # (B, m, *grid)
        known = codes[:, 0]
        if codes.shape[1] > 1:
            chosen = torch.randint(codes.shape[1], (len(codes),), generator=generator, device=codes.device)
            known = codes[torch.arange(len(codes), device=codes.device), chosen]
        more = {} if self.config.net == "wavefront" else {"generator": generator}
        logits = self.net(known, self._condition(batch.labels), **more).float()
        nats = nats_per_code(logits, codes).mean()
        return nats, {"bits_per_code": nats.detach() / math.log(2)}

    @torch.no_grad()
    def bits(self, batch: CodeBatch) -> Tensor:
        """Bits per code of each picture or line (B,), from codes (B, *grid); lines may be of any length."""
        logits = self.net(batch.codes, self._condition(batch.labels)).float()
        return nats_per_code(logits, batch.codes[:, None]).flatten(1).mean(1) / math.log(2)

    @torch.no_grad()
    def sample(self, labels: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Draw pictures of classes (B,) from uniforms (B, H, W) in [0, 1): codes (B, H, W) int64.

        A wavenet draws lines of any length N, from uniforms (B, N).

        Raises:
            ValueError: for another grid than the prior's, or a class that it does not know.
        """
        grid = tuple(uniforms.shape[1:]) if self.config.net == "wavenet" else self.config.grid
        if uniforms.ndim != 1 + len(self.config.grid) or uniforms.shape != (len(labels), *grid):
            expected = ", ".join(["N"] if self.config.net == "wavenet" else map(str, grid))
            raise ValueError(
                f"the prior draws (B, {expected}) codes from one label and as many uniforms each, got "
                f"{tuple(uniforms.shape)} for {len(labels)} labels"
            )
        if self.label is not None and len(labels) and not 0 <= labels.min() <= labels.max() < self.config.classes:
            raise ValueError(f"labels must be in [0, {self.config.classes}), got {labels.tolist()}")
        condition = self._condition(labels)
        return self.net.sample(condition.expand(len(labels), *condition.shape[1:]), uniforms, temperature)

    def _condition(self, labels: Tensor) -> Tensor:
        """(B, H, W, hidden), or (1, H, W, hidden) if it is the same for all; (B, 1, hidden) and so on for a wavenet."""
        if self.label is None:
            return self.position[None]
        return self.position + self.label(labels).view(-1, *[1] * len(self.config.grid), self.config.hidden)


def nats_per_code(logits: Tensor, codes: Tensor) -> Tensor:
    """Cross-entropy at each position, mean over m draws: logits (B, *grid, K), codes (B, m, *grid) -> (B, *grid)."""
    chosen = logits.gather(-1, codes.movedim(1, -1)).mean(-1)
    return logits.logsumexp(-1) - chosen
