"""A second VQ-VAE over the codes of a first: a few codes for a whole picture (van den Oord et al. 2017, section 4.2).

The encoder sees all codes of a picture and makes a few vectors of them, each quantized with a codebook of its own; an
autoregressive net, told these vectors, draws the codes again. Such a net does well without being told anything, so it
may leave the codes unused; two things make them worth something. A second, plain readout must guess each code from the
vectors alone, and in training some of the codes that the net draws from are replaced.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.checks import check
from worldmodel.models.autoregressive.kinds import FlatKind, autoregressive, standardized, start_near
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.models.quantizers.nearest import build, perplexity
from worldmodel.models.vqvae import Decoder, Encoder, VQVAEConfig


@dataclass(frozen=True)
class GlobalCodesConfig:
    """The sizes of a second VQ-VAE.

    Attributes:
        codes: K of the first one's codebook.
        grid: height and width of its codes.
        dim: of a code's embedding.
        latents: codes of a whole picture; 0 makes a prior over the first one's codes that is told nothing.
        quantizer: the codebook of each latent.
        width: channels of the encoder, and of what the decoder makes of the latents.
        residual_hidden: channels between the two convolutions of a residual block.
        residual_blocks: of them, in the encoder and before the decoder.
        halvings: strided convolutions of the encoder.
        net: the autoregressive decoder: pixelcnn, or wavefront, which sees less and draws a diagonal at a time.
        hidden: channels of its layers.
        layers: of it.
        plain: weight of the nats per code of the readout that is told the latents alone.
        drop: share of the codes told to the autoregressive net that are random ones, at the beginning of training.
        drop_steps: steps over which this share falls to zero; 0 keeps it as it is.
    """

    codes: int = 512
    grid: tuple[int, int] = (21, 21)
    dim: int = 64
    latents: int = 3
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    width: int = 64
    residual_hidden: int = 32
    residual_blocks: int = 2
    halvings: int = 2
    net: FlatKind = "pixelcnn"
    hidden: int = 64
    layers: int = 6
    plain: float = 0.1
    drop: float = 0.0
    drop_steps: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))  # YAML gives a list
        counts = ("codes", "dim", "width", "residual_hidden", "hidden", "layers")
        weights = ("latents", "residual_blocks", "halvings", "plain", "drop_steps")
        check("model", self, counts, weights, shares=("drop",))
        if self.net not in get_args(FlatKind):
            raise ValueError(f"model.net must be {' or '.join(get_args(FlatKind))}, got {self.net}")

    @property
    def bits(self) -> float:
        """Of all latents of a picture."""
        return self.latents * math.log2(self.quantizer.codes)


class GlobalCodes(nn.Module):
    """See the module. ``codes`` are those of the first VQ-VAE, (B, H, W); ``latents`` are its own, (B, latents).

    Args:
        codebook: (K, dim) vectors that the embeddings and the output start from, so that near codes look near.
    """

    def __init__(self, config: GlobalCodesConfig, codebook: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        sizes = VQVAEConfig(
            channels=config.width,
            hidden=config.width,
            residual_hidden=config.residual_hidden,
            residual_blocks=config.residual_blocks,
            halvings=config.halvings,
            quantizer=QuantizerConfig(dim=config.width),
        )
        scale = 2**config.halvings
        seen = math.prod(side // scale for side in config.grid)
        self.coarse = tuple(-(-side // scale) for side in config.grid)  # what becomes the grid, or a little more
        self.quantizers = nn.ModuleList(build(config.quantizer) for _ in range(config.latents))
        self.position = nn.Parameter(torch.randn(config.width, *self.coarse) * 0.5)
        if config.latents:
            length = config.latents * config.quantizer.dim
            self.embedding = nn.Embedding(config.codes, config.dim)
            self.encoder = Encoder(replace(sizes, channels=config.dim))
            self.vectors = nn.Linear(config.width * seen, length)
            self.placed = nn.Linear(length, self.position.numel(), bias=False)
        self.decoder = Decoder(sizes)
        self.plain = nn.Linear(config.width, config.codes)
        embedding = nn.Embedding(config.codes, config.dim)
        self.net = autoregressive(config.net, embedding, config.width, config.hidden, config.layers)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # of training, so far
        if codebook is not None:
            self._start_from(codebook)

    def forward(self, codes: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss of codes (B, H, W): nats per code, of the net and of the readout, and quantizers' terms.

        Args:
            generator: for the random choices of training.
        """
        quantized = [
            quantizer(part, generator) for quantizer, part in zip(self.quantizers, self._encoded(codes), strict=True)
        ]
        condition = self.condition(self._joined([part.vectors for part in quantized], codes))
        nats = self._nats(self.net(self.told(codes, generator), condition), codes)
        plain_nats = self._nats(self.plain(condition), codes)
        distance = sum((part.loss for part in quantized), nats.new_zeros(()))
        names = [f"perplexity_{number}" for number in range(len(quantized))]
        return nats.mean() + self.config.plain * plain_nats.mean() + distance, {
            "bits_per_code": nats.detach().mean() / math.log(2),
            "plain_bits_per_code": plain_nats.detach().mean() / math.log(2),
            "quantizer_loss": distance.detach(),
            **{name: perplexity(part.counts) for name, part in zip(names, quantized, strict=True)},
        }

    def encode(self, codes: Tensor) -> Tensor:
        """The latents of pictures, the nearest ones: (B, H, W) int64 -> (B, latents) int64."""
        nearest = [
            quantizer.encode(part)[:, 0] for quantizer, part in zip(self.quantizers, self._encoded(codes), strict=True)
        ]
        return torch.stack(nearest, 1) if nearest else codes.new_zeros(len(codes), 0)

    def logits(self, codes: Tensor, latents: Tensor) -> Tensor:
        """Of each code of pictures (B, H, W), told latents (B, latents) and the codes before it: (B, H, W, K)."""
        return self.net(codes, self.condition(self._looked_up(latents)))

    def bits(self, codes: Tensor, latents: Tensor) -> Tensor:
        """How surprising pictures (B, H, W) are, told latents (B, latents): bits per code (B,)."""
        return self._nats(self.logits(codes, latents), codes).mean((1, 2)) / math.log(2)

    @torch.no_grad()
    def sample(self, latents: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Draw pictures that have such latents: (B, latents), (B, H, W) in [0, 1) -> codes (B, H, W) int64."""
        return self.net.sample(self.condition(self._looked_up(latents)), uniforms, temperature)

    def condition(self, vectors: Tensor) -> Tensor:
        """What the net is told at each place: (B, latents·D) -> (B, H, W, width)."""
        height, width = self.config.grid
        coarse = self.position.expand(len(vectors), -1, -1, -1)
        if self.config.latents:
            coarse = coarse + self.placed(vectors).view_as(coarse)
        return self.decoder(coarse)[:, :, :height, :width].permute(0, 2, 3, 1)

    def told(self, codes: Tensor, generator: torch.Generator | None) -> Tensor:
        """The codes that the net is told came before: these, or in training some random ones."""
        if not self.training:
            return codes
        left = 1 - self.steps / self.config.drop_steps if self.config.drop_steps else 1
        self.steps += 1
        if not self.config.drop:
            return codes
        dropped = torch.rand(codes.shape, generator=generator, device=codes.device) < self.config.drop * left
        random = torch.randint(self.config.codes, codes.shape, generator=generator, device=codes.device)
        return torch.where(dropped, random, codes)

    def _encoded(self, codes: Tensor) -> Sequence[Tensor]:
        """The vectors to be quantized, for each latent (B, D, 1)."""
        self._check(codes)
        if not self.config.latents:
            return ()
        features = self.encoder(self.embedding(codes).movedim(-1, 1)).flatten(1)
        return self.vectors(features)[..., None].chunk(self.config.latents, 1)

    def _looked_up(self, latents: Tensor) -> Tensor:
        """The vectors of latents, (B, latents·D)."""
        parts = zip(self.quantizers, latents.unbind(1), strict=True)
        return self._joined([quantizer.decode(part[:, None]) for quantizer, part in parts], latents)

    def _joined(self, vectors: list[Tensor], like: Tensor) -> Tensor:
        return torch.cat([part[..., 0] for part in vectors], 1) if vectors else self.position.new_zeros(len(like), 0)

    def _nats(self, logits: Tensor, codes: Tensor) -> Tensor:
        """(B, H, W, K), (B, H, W) -> (B, H, W)."""
        return F.cross_entropy(logits.float().flatten(0, 2), codes.flatten(), reduction="none").view(codes.shape)

    @torch.no_grad()
    def _start_from(self, codebook: Tensor) -> None:
        vectors = standardized(codebook)
        if self.config.latents:
            self.embedding.weight.copy_(vectors)
        start_near(self.net, vectors)

    def _check(self, codes: Tensor) -> None:
        if codes.ndim != 3 or codes.shape[1:] != self.config.grid:
            raise ValueError(f"codes must be (B, {', '.join(map(str, self.config.grid))}), got {tuple(codes.shape)}")
