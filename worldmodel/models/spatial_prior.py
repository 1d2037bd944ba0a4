"""The spatial prior: p(codes of an image | its class), an autoregressive network over the grid of codes.

Audio has a spatial prior too. Its grid is a sequence of any length, so the network is not given a position embedding.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.models.autoregressive.kinds import build_autoregressive, init_from_codebook, standardize
from worldmodel.models.config import SpatialPriorConfig


class CodeBatch(NamedTuple):
    """A training batch of encoded images or sequences; *grid is (H, W) or (N,)."""

    codes: Tensor  # (B, *grid) int64; or (B, m, *grid), m samples for every position
    labels: Tensor  # (B,) int64, classes; ignored by an unconditional prior


class SpatialPrior(nn.Module):
    """An autoregressive network conditioned on a learned position map and the class; a wavenet on the class only.

    Args:
        codebook: (K, D) initial embeddings, D being ``code_dim``.

    Raises:
        ValueError: if the network cannot have such a grid.
    """

    def __init__(self, config: SpatialPriorConfig, codebook: Tensor | None = None) -> None:
        super().__init__()
        is_sequence = config.net == "wavenet"
        if len(config.grid) != (1 if is_sequence else 2):
            expected = "one number" if is_sequence else "a height and a width"
            raise ValueError(f"model.grid must be {expected} for --model.net {config.net}, got {list(config.grid)}")
        self.config = config
        self.net = build_autoregressive(
            config.net,
            nn.Embedding(config.codebook_size, config.code_dim),
            config.hidden_channels,
            config.hidden_channels,
            config.num_layers,
            config.kernel_size,
            config.dropout,
            config.dilation_cycle,
        )
        positions = (1,) if is_sequence else config.grid
        self.position = nn.Parameter(0.1 * torch.randn(*positions, config.hidden_channels))
        self.label = nn.Embedding(config.num_classes, config.hidden_channels) if config.num_classes else None
        if codebook is not None:
            init_from_codebook(self.net, standardize(codebook))

    def forward(self, batch: CodeBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the training loss, in nats per code, and metrics.

        With m samples for every position, the target is the average of their one-hot vectors (Roy et al. 2018, section
        3.2), and the context is one of the samples, chosen for each image: samples at different positions are
        independent, so that one is a sample of the whole image.

        Args:
            generator: source of the choice of samples and of the dropout masks.
        """
        is_single = batch.codes.ndim == 1 + len(self.config.grid)
        codes = batch.codes[:, None] if is_single else batch.codes  # (B, m, *grid)
        context = codes[:, 0]
        if codes.shape[1] > 1:
            chosen = torch.randint(codes.shape[1], (len(codes),), generator=generator, device=codes.device)
            context = codes[torch.arange(len(codes), device=codes.device), chosen]
        options = {} if self.config.net == "wavefront" else {"generator": generator}
        logits = self.net(context, self._condition(batch.labels), **options).float()
        nats = nats_per_code(logits, codes).mean()
        return nats, {"bits_per_code": nats.detach() / math.log(2)}

    @torch.no_grad()
    def bits_per_code(self, batch: CodeBatch) -> Tensor:
        """Return the bits per code of each image or sequence (B,), from codes (B, *grid); sequences of any length."""
        logits = self.net(batch.codes, self._condition(batch.labels)).float()
        return nats_per_code(logits, batch.codes[:, None]).flatten(1).mean(1) / math.log(2)

    @torch.no_grad()
    def sample(self, labels: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Sample images of classes (B,) from uniforms (B, H, W) in [0, 1): codes (B, H, W) int64.

        A wavenet samples sequences of any length N, from uniforms (B, N).

        Raises:
            ValueError: if the prior has another grid, or no such class.
        """
        grid = tuple(uniforms.shape[1:]) if self.config.net == "wavenet" else self.config.grid
        if uniforms.ndim != 1 + len(self.config.grid) or uniforms.shape != (len(labels), *grid):
            expected = ", ".join(["N"] if self.config.net == "wavenet" else map(str, grid))
            raise ValueError(
                f"the prior samples (B, {expected}) codes from one label and as many uniforms each, got "
                f"{tuple(uniforms.shape)} for {len(labels)} labels"
            )
        if self.label is not None and len(labels) and not 0 <= labels.min() <= labels.max() < self.config.num_classes:
            raise ValueError(f"labels must be in [0, {self.config.num_classes}), got {labels.tolist()}")
        condition = self._condition(labels)
        return self.net.sample(condition.expand(len(labels), *condition.shape[1:]), uniforms, temperature)

    def _condition(self, labels: Tensor) -> Tensor:
        """Return (B, *grid, hidden), or (1, *grid, hidden) without classes; *grid is (1,) for a wavenet."""
        if self.label is None:
            return self.position[None]
        return self.position + self.label(labels).view(-1, *[1] * len(self.config.grid), self.config.hidden_channels)


def nats_per_code(logits: Tensor, codes: Tensor) -> Tensor:
    """Return the cross-entropy at each position, mean over m samples: (B, *grid, K), (B, m, *grid) -> (B, *grid)."""
    chosen = logits.gather(-1, codes.movedim(1, -1)).mean(-1)
    return logits.logsumexp(-1) - chosen
