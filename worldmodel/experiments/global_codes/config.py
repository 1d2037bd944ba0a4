"""Configuration of the second VQ-VAE."""

import math
from dataclasses import dataclass, field
from typing import get_args

from worldmodel.checks import check_ranges
from worldmodel.models.config import GridNetKind
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.run_kind import RunKind


@dataclass(frozen=True)
class GlobalCodesConfig:
    """Architecture of a second VQ-VAE.

    Attributes:
        codebook_size: number K of codes of the first VQ-VAE.
        grid: height and width of the first VQ-VAE's code grid.
        code_dim: dimension of the code embeddings.
        num_latents: number of latent codes for a whole image; 0 for an unconditional prior over the codes.
        quantizer: quantizer settings of each latent.
        hidden_channels: number of channels of the encoder and of the features decoded from the latents.
        residual_channels: number of channels between the two convolutions of a residual block.
        num_residual_blocks: number of residual blocks in the encoder and before the decoder.
        num_downsamples: number of strided convolutions of the encoder.
        net: autoregressive decoder, pixelcnn, or wavefront, which has less context and samples a diagonal at a time.
        ar_channels: number of channels of the autoregressive network.
        ar_layers: number of layers of the autoregressive network.
        aux_weight: weight of the nats per code of the auxiliary readout, which sees the latents alone.
        code_dropout: initial fraction of the autoregressive network's input codes replaced by random ones, in [0, 1].
        code_dropout_steps: steps over which code_dropout falls linearly to zero; 0 keeps it constant.
    """

    codebook_size: int = 512
    grid: tuple[int, int] = (21, 21)
    code_dim: int = 64
    num_latents: int = 3
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    hidden_channels: int = 64
    residual_channels: int = 32
    num_residual_blocks: int = 2
    num_downsamples: int = 2
    net: GridNetKind = "pixelcnn"
    ar_channels: int = 64
    ar_layers: int = 6
    aux_weight: float = 0.1
    code_dropout: float = 0.0
    code_dropout_steps: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))  # YAML gives a list
        counts = ("codebook_size", "code_dim", "hidden_channels", "residual_channels", "ar_channels", "ar_layers")
        weights = ("num_latents", "num_residual_blocks", "num_downsamples", "aux_weight", "code_dropout_steps")
        check_ranges("model", self, counts, weights, fractions=("code_dropout",))
        if self.net not in get_args(GridNetKind):
            raise ValueError(f"model.net must be {' or '.join(get_args(GridNetKind))}, got {self.net}")

    @property
    def bits_per_image(self) -> float:
        """Number of bits of all latents of an image."""
        return self.num_latents * math.log2(self.quantizer.codebook_size)


GLOBAL_CODES_RUN = RunKind(GlobalCodesConfig, "worldmodel.experiments.global_codes.model:GlobalCodes")
