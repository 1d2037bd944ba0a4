"""The speech VQ-VAE: strided convolutions, a quantizer, and a WaveNet decoder conditioned on codes and speaker.

From van den Oord et al. 2017, section 4.3. Since the decoder gets the speaker, the codes need not encode it, and
decoding with another speaker converts the voice.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.experiments.speech.config import SpeechConfig
from worldmodel.experiments.speech.mel import MIN_RATE, NUM_BANDS, log_mel_of_batch, mel_hop
from worldmodel.models.autoregressive.wavenet import WaveNet
from worldmodel.models.config import VQVAEConfig
from worldmodel.models.layers import TRANSPOSED_CONVOLUTION, ResidualBlock, init_he
from worldmodel.models.quantizers.interface import perplexity
from worldmodel.models.quantizers.kinds import build_quantizer
from worldmodel.models.vqvae import Encoder

MU_LAW_LEVELS = 256
MIN_CONDITION_HOP = 8  # samples per conditioning vector; upsampling stops before it would go below
MIN_SPECTRUM_HOP = 64  # samples between two spectra, where the hop of the codes allows
MAGNITUDE_FLOOR = 1e-3  # added to magnitudes; a sine of amplitude 1 has 1/2


class SpeechBatch(NamedTuple):
    """Segments of recordings."""

    samples: Tensor  # (B, N) uint8, mu-law codes; shorter recordings are padded with silence, 128
    lengths: Tensor  # (B,) int64, number of samples before the padding
    speakers: Tensor  # (B,) int64


class SpeechVQVAE(nn.Module):
    """VQ-VAE of speech with a WaveNet decoder conditioned on codes and speaker.

    ``samples`` are mu-law codes (B, N) uint8, N a multiple of the hop; ``codes`` are (B, N / hop) int64.
    """

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        self.config = config
        sizes = VQVAEConfig(
            in_channels=1,
            hidden_channels=config.hidden_channels,
            residual_channels=config.residual_channels,
            num_residual_blocks=config.num_residual_blocks,
            quantizer=config.quantizer,
        )
        self.spectrum_hop = _spectrum_hop(config)
        num_bands = NUM_BANDS if config.encoder_input == "mel" else self.spectrum_hop + 1
        if config.encoder_input == "waveform":
            self.encoder: nn.Module = Encoder(sizes, dims=1, strides=config.strides)
        else:
            self.encoder = nn.Sequential(
                nn.Conv1d(num_bands, config.hidden_channels, 3, padding=1),
                nn.ReLU(),
                Encoder(
                    replace(sizes, in_channels=config.hidden_channels),
                    dims=1,
                    strides=_spectrum_encoder_strides(config, self.spectrum_hop),
                ),
            )
        init_he(self.encoder)
        self.quantizer = build_quantizer(config.quantizer)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # training steps so far
        self.nothing = nn.Parameter(torch.zeros(config.quantizer.code_dim))  # replaces the vectors of dropped codes
        self.speaker = nn.Embedding(config.num_speakers, config.condition_channels)
        self.widened = nn.Sequential(*_upsampling_layers(config))
        self.net = WaveNet(
            nn.Embedding(MU_LAW_LEVELS, config.skip_channels),
            config.condition_channels,
            config.decoder_channels,
            config.decoder_layers,
            config.dilation_cycle,
        )
        if config.aux_weight:
            self.plain = nn.Linear(config.condition_channels, num_bands)
            nn.init.constant_(self.plain.bias, math.log(MAGNITUDE_FLOOR))

    def forward(self, batch: SpeechBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the training loss, nats per sample plus the quantizer's and the readout's terms, and metrics.

        Args:
            generator: random generator for the quantizer, jitter and code dropout.
        """
        samples = batch.samples.long()
        aux_only = self.training and self.steps < self.config.aux_only_steps
        vectors, metrics = self.encode_to_vectors(samples, batch.lengths), {}
        loss = torch.zeros((), device=samples.device)
        if not self.training or self.steps >= self.config.quantizer_warmup_steps:
            quantized = self.quantizer(vectors, generator)
            vectors, loss = quantized.vectors, quantized.loss
            metrics = {"quantizer_loss": quantized.loss.detach(), "perplexity": perplexity(quantized.counts)}
        if self.training:
            self.steps += 1
        if self.training and self.config.jitter:
            vectors = jitter(vectors, self.config.jitter, generator)
        condition = self.condition_on_vectors(vectors, batch.speakers)
        if self.config.aux_weight:
            per_code = vectors.shape[2], -1
            target = self.spectra(samples).unflatten(1, per_code).mean(2)  # (B, N / hop, bands)
            error = F.mse_loss(self.plain(condition.unflatten(1, per_code).mean(2)).float(), target)
            loss, metrics["spectral_error"] = loss + self.config.aux_weight * error, error.detach()
        if aux_only:
            return loss, metrics
        if self.training and self.config.code_dropout:
            uniforms = torch.rand(len(samples), 1, 1, generator=generator, device=samples.device)
            unconditional = self.condition_on_codes(samples.shape[1], batch.speakers, None)
            condition = torch.where(uniforms >= self.config.code_dropout, condition, unconditional)
        nats = self._nats(samples, condition)
        valid = torch.arange(samples.shape[1], device=samples.device) < batch.lengths[:, None]
        mean = (nats * valid).sum() / valid.sum()
        return loss + mean, {"bits_per_sample": mean.detach() / math.log(2), **metrics}

    def encode_to_vectors(self, samples: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode samples (B, N) into the vectors (B, D, N / hop) to be quantized.

        Args:
            lengths: (B,) int64, numbers of samples before the padding, all N by default; of use to input mel alone.
        """
        if self.config.encoder_input == "waveform":
            return self.encoder(mu_law_to_float(samples))
        spectra = self.spectra(samples)
        if self.config.encoder_input == "spectrum":
            return self.encoder((spectra - math.log(MAGNITUDE_FLOOR)).movedim(-1, 1))
        starts = torch.arange(spectra.shape[1], device=samples.device) * self.spectrum_hop
        ends = torch.full_like(samples[:, 0], samples.shape[1]) if lengths is None else lengths
        heard = (starts < ends[:, None])[..., None]  # (B, N / spectrum_hop, 1)
        mean = (spectra * heard).sum(1, keepdim=True) / heard.sum(1, keepdim=True)
        return self.encoder(((spectra - mean) * heard).movedim(-1, 1))

    def spectra(self, samples: Tensor) -> Tensor:
        """Return log-magnitude spectra (B, N / spectrum_hop, bands) float32 of mu-law codes (B, N), in nepers."""
        if self.config.encoder_input == "mel":
            with torch.autocast(samples.device.type, enabled=False):
                return log_mel_of_batch(expand_mu_law(samples), self.config.sample_rate) / 2  # power to magnitude
        return log_spectra(samples, self.spectrum_hop)

    def encode(self, samples: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode samples (B, N) into codes (B, N / hop) int64; ``lengths`` as in :meth:`encode_to_vectors`.

        Raises:
            ValueError: if N is not a multiple of the hop.
        """
        if samples.shape[1] % self.config.hop:
            raise ValueError(
                f"{samples.shape[1]} samples must be a multiple of the {self.config.hop} samples of a code"
            )
        return self.quantizer.encode(self.encode_to_vectors(samples.long(), lengths))

    @torch.no_grad()
    def bits(self, samples: Tensor, speakers: Tensor, codes: Tensor | None) -> Tensor:
        """Return the negative log-likelihood in bits (B, N) of samples (B, N) given speakers (B,) and maybe codes."""
        return self._nats(samples.long(), self.condition_on_codes(samples.shape[1], speakers, codes)) / math.log(2)

    def condition_on_codes(self, length: int, speakers: Tensor, codes: Tensor | None) -> Tensor:
        """Return the conditioning vectors (B, length / n, C) of ``length`` samples; no ``codes``: unconditional."""
        if codes is None:
            vectors = self.nothing[:, None].expand(len(speakers), -1, length // self.config.hop)
        else:
            vectors = self.quantizer.decode(codes)
        return self.condition_on_vectors(vectors, speakers)

    def condition_on_vectors(self, vectors: Tensor, speakers: Tensor) -> Tensor:
        """Return the conditioning vectors (B, M · hop / n, C) of code vectors (B, D, M) and speakers (B,)."""
        return (self.widened(vectors) + self.speaker(speakers)[:, :, None]).movedim(1, -1)

    def _nats(self, samples: Tensor, condition: Tensor) -> Tensor:
        logits = self.net(samples, condition).float()
        return F.cross_entropy(logits.flatten(0, 1), samples.flatten(), reduction="none").view_as(samples)


def mu_law_to_float(samples: Tensor) -> Tensor:
    """Scale mu-law codes (B, N) to the encoder's input (B, 1, N) float32 in [-1, 1]; they stay companded."""
    return samples[:, None].float() * (2 / (MU_LAW_LEVELS - 1)) - 1


def expand_mu_law(samples: Tensor) -> Tensor:
    """Return the waveform in [-1, 1] of mu-law codes, both (B, N)."""
    companded = mu_law_to_float(samples)[:, 0]
    magnitudes = torch.expm1(companded.abs() * math.log(MU_LAW_LEVELS)) / (MU_LAW_LEVELS - 1)
    return companded.sign() * magnitudes


def log_spectra(samples: Tensor, hop: int) -> Tensor:
    """Return log-magnitude spectra (B, N / hop, hop + 1) float32 of mu-law codes (B, N).

    Each window is two hops wide and centered on its hop: too short to resolve the pitch of most voices.
    """
    with torch.autocast(samples.device.type, enabled=False):
        x = F.pad(expand_mu_law(samples), (hop // 2, hop - hop // 2))  # (B, N + hop)
        window = torch.hann_window(2 * hop, device=x.device)
        spectra = torch.stft(x, 2 * hop, hop, window=window, center=False, return_complex=True)
        return (spectra.abs() / hop + MAGNITUDE_FLOOR).log().movedim(1, -1)


def jitter(vectors: Tensor, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """Replace each of the vectors (B, D, M) by one of its two neighbors with a probability."""
    batch, _, length = vectors.shape
    uniforms = torch.rand(batch, length, generator=generator, device=vectors.device)
    offset = (uniforms < probability / 2).long() - (uniforms > 1 - probability / 2).long()  # (B, M): -1, 0 or 1
    indices = (torch.arange(length, device=vectors.device) + offset).clamp(0, length - 1)
    return vectors.gather(2, indices[:, None].expand_as(vectors))


def _spectrum_hop(config: SpeechConfig) -> int:
    """Return the samples between two spectra, which divide a code's samples: 10 ms for log-mel.

    For other spectra, they are a multiple of the conditioning hop.

    Raises:
        ValueError: if log-mel needs a higher rate or other strides.
    """
    if config.encoder_input == "mel":
        if config.sample_rate < MIN_RATE:
            raise ValueError(f"model.encoder_input mel needs --rate {MIN_RATE} or more, got {config.sample_rate}")
        if config.hop % mel_hop(config.sample_rate):
            raise ValueError(
                f"model.encoder_input mel needs a multiple of {mel_hop(config.sample_rate)} samples per code, 10 ms, "
                f"got {config.hop}, the product of model.strides"
            )
        return mel_hop(config.sample_rate)
    hop = _condition_hop(config)
    while hop < MIN_SPECTRUM_HOP and config.hop % (2 * hop) == 0:
        hop *= 2
    return hop


def _spectrum_encoder_strides(config: SpeechConfig, hop: int) -> tuple[int, ...]:
    """Return the strides from spectra ``hop`` samples apart to codes: the last of the config's, where they fit."""
    for first in range(len(config.strides) + 1):
        if math.prod(config.strides[:first]) == hop:
            return config.strides[first:]
    return (config.hop // hop,)


def _condition_hop(config: SpeechConfig) -> int:
    """Return the samples per conditioning vector."""
    hop = config.hop
    for stride in reversed(config.strides):
        if hop // stride < MIN_CONDITION_HOP:
            break
        hop //= stride
    return hop


def _upsampling_layers(config: SpeechConfig) -> list[nn.Module]:
    """Return layers that mix neighboring codes and upsample them: (B, D, M) -> (B, C, M · hop / conditioning hop)."""
    layers: list[nn.Module] = [nn.Conv1d(config.quantizer.code_dim, config.condition_channels, 3, padding=1)]
    layers += [
        ResidualBlock(1, config.condition_channels, config.residual_channels) for _ in range(config.num_residual_blocks)
    ]
    hop = config.hop
    for stride in reversed(config.strides):
        if hop == _condition_hop(config):
            break
        kernel, padding = 2 * stride - stride % 2, stride // 2
        hop //= stride
        layers += [
            nn.ReLU(),
            TRANSPOSED_CONVOLUTION[1](config.condition_channels, config.condition_channels, kernel, stride, padding),
        ]
    return layers
