"""A second VQ-VAE over the codes of a first: a few codes for a whole image (van den Oord et al. 2017, section 4.2).

The encoder maps all codes of an image to a few vectors, each quantized with its own codebook; an autoregressive network
conditioned on these vectors predicts the codes. Such a network does well unconditionally, so it may ignore the vectors.
Two measures prevent this: an auxiliary linear readout must predict each code from the vectors alone, and in training
some of the autoregressive network's input codes are replaced by random ones.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.experiments.global_codes.config import GlobalCodesConfig
from worldmodel.models.autoregressive.kinds import build_autoregressive, init_from_codebook, standardize
from worldmodel.models.config import VQVAEConfig
from worldmodel.models.layers import module_list
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.models.quantizers.interface import perplexity
from worldmodel.models.quantizers.kinds import build_quantizer
from worldmodel.models.vqvae import Decoder, Encoder


class GlobalCodes(nn.Module):
    """VQ-VAE from ``codes`` (B, H, W) of a first VQ-VAE to ``latents`` (B, num_latents).

    Args:
        codebook: (K, D) vectors that initialize the embeddings and the output, so that similar codes start similar.
    """

    def __init__(self, config: GlobalCodesConfig, codebook: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        sizes = VQVAEConfig(
            in_channels=config.hidden_channels,
            hidden_channels=config.hidden_channels,
            residual_channels=config.residual_channels,
            num_residual_blocks=config.num_residual_blocks,
            num_downsamples=config.num_downsamples,
            quantizer=QuantizerConfig(code_dim=config.hidden_channels),
        )
        scale = 2**config.num_downsamples
        if min(config.grid) < scale:
            raise ValueError(
                f"model.num_downsamples {config.num_downsamples} needs {scale}×{scale} codes, got {config.grid}"
            )
        num_positions = math.prod(side // scale for side in config.grid)
        self.coarse = tuple(-(-side // scale) for side in config.grid)  # upsampled to the grid, or slightly more
        self.quantizers = module_list(build_quantizer(config.quantizer) for _ in range(config.num_latents))
        self.position = nn.Parameter(torch.randn(config.hidden_channels, *self.coarse) * 0.5)
        if config.num_latents:
            length = config.num_latents * config.quantizer.code_dim
            self.embedding = nn.Embedding(config.codebook_size, config.code_dim)
            self.encoder = Encoder(replace(sizes, in_channels=config.code_dim))
            self.vectors = nn.Linear(config.hidden_channels * num_positions, length)
            self.placed = nn.Linear(length, self.position.numel(), bias=False)
        self.decoder = Decoder(sizes)
        self.plain = nn.Linear(config.hidden_channels, config.codebook_size)
        embedding = nn.Embedding(config.codebook_size, config.code_dim)
        self.net = build_autoregressive(
            config.net, embedding, config.hidden_channels, config.ar_channels, config.ar_layers
        )
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # training steps so far
        if codebook is not None:
            self._init_from_codebook(codebook)

    def forward(self, codes: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the training loss of codes (B, H, W): nats per code of network and readout, and quantizer terms.

        Args:
            generator: random generator for code dropout and the quantizers.
        """
        pairs = zip(self.quantizers, self._encode_vectors(codes), strict=True)
        quantized = [quantizer(vectors, generator) for quantizer, vectors in pairs]
        condition = self.condition(self._concatenate([part.vectors for part in quantized], codes))
        nats = self._nats(self.net(self.drop_codes(codes, generator), condition), codes)
        aux_nats = self._nats(self.plain(condition), codes)
        quantizer_loss = sum((part.loss for part in quantized), nats.new_zeros(()))
        perplexities = {f"perplexity_{i}": perplexity(part.counts) for i, part in enumerate(quantized)}
        return nats.mean() + self.config.aux_weight * aux_nats.mean() + quantizer_loss, {
            "bits_per_code": nats.detach().mean() / math.log(2),
            "aux_bits_per_code": aux_nats.detach().mean() / math.log(2),
            "quantizer_loss": quantizer_loss.detach(),
            **perplexities,
        }

    def encode(self, codes: Tensor) -> Tensor:
        """Encode codes as the nearest latents: (B, H, W) int64 -> (B, num_latents) int64."""
        pairs = zip(self.quantizers, self._encode_vectors(codes), strict=True)
        nearest = [quantizer.encode(vectors)[:, 0] for quantizer, vectors in pairs]
        return torch.stack(nearest, 1) if nearest else codes.new_zeros(len(codes), 0)

    def logits(self, codes: Tensor, latents: Tensor) -> Tensor:
        """Return logits (B, H, W, K) of codes (B, H, W) given latents (B, num_latents) and the preceding codes."""
        return self.net(codes, self.condition(self._embed(latents)))

    def bits_per_code(self, codes: Tensor, latents: Tensor) -> Tensor:
        """Return bits per code (B,) of codes (B, H, W) given latents (B, num_latents)."""
        return self._nats(self.logits(codes, latents), codes).mean((1, 2)) / math.log(2)

    @torch.no_grad()
    def sample(self, latents: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Sample codes: latents (B, num_latents), uniforms (B, H, W) in [0, 1) -> codes (B, H, W) int64."""
        return self.net.sample(self.condition(self._embed(latents)), uniforms, temperature)

    def condition(self, vectors: Tensor) -> Tensor:
        """Return the conditioning features at each position: (B, num_latents·D) -> (B, H, W, hidden_channels)."""
        height, width = self.config.grid
        coarse = self.position.expand(len(vectors), -1, -1, -1)
        if self.config.num_latents:
            coarse = coarse + self.placed(vectors).view_as(coarse)
        return self.decoder(coarse)[:, :, :height, :width].permute(0, 2, 3, 1)

    def drop_codes(self, codes: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the input codes of the autoregressive network; in training, some are replaced by random ones."""
        if not self.training:
            return codes
        remaining = 1 - self.steps / self.config.code_dropout_steps if self.config.code_dropout_steps else 1
        self.steps += 1
        if not self.config.code_dropout:
            return codes
        probability = self.config.code_dropout * remaining
        dropped = torch.rand(codes.shape, generator=generator, device=codes.device) < probability
        random = torch.randint(self.config.codebook_size, codes.shape, generator=generator, device=codes.device)
        return torch.where(dropped, random, codes)

    def _encode_vectors(self, codes: Tensor) -> Sequence[Tensor]:
        """Return the unquantized vector of each latent, (B, D, 1)."""
        self._check_shape(codes)
        if not self.config.num_latents:
            return ()
        features = self.encoder(self.embedding(codes).movedim(-1, 1)).flatten(1)
        return self.vectors(features)[..., None].chunk(self.config.num_latents, 1)

    def _embed(self, latents: Tensor) -> Tensor:
        """Return the code vectors of latents, (B, num_latents·D)."""
        parts = zip(self.quantizers, latents.unbind(1), strict=True)
        return self._concatenate([quantizer.decode(part[:, None]) for quantizer, part in parts], latents)

    def _concatenate(self, vectors: list[Tensor], like: Tensor) -> Tensor:
        return torch.cat([part[..., 0] for part in vectors], 1) if vectors else self.position.new_zeros(len(like), 0)

    def _nats(self, logits: Tensor, codes: Tensor) -> Tensor:
        """Cross-entropy in nats: logits (B, H, W, K), codes (B, H, W) -> (B, H, W)."""
        return F.cross_entropy(logits.float().flatten(0, 2), codes.flatten(), reduction="none").view(codes.shape)

    @torch.no_grad()
    def _init_from_codebook(self, codebook: Tensor) -> None:
        vectors = standardize(codebook)
        if self.config.num_latents:
            self.embedding.weight.copy_(vectors)
        init_from_codebook(self.net, vectors)

    def _check_shape(self, codes: Tensor) -> None:
        if codes.ndim != 3 or codes.shape[1:] != self.config.grid:
            raise ValueError(f"codes must be (B, {', '.join(map(str, self.config.grid))}), got {tuple(codes.shape)}")
