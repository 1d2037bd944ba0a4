"""The VQ-VAE of sound: strided convolutions, the same quantizer, and a WaveNet that is told the codes and who speaks.

Of van den Oord et al. 2017, section 4.3. The decoder is told the speaker, so the codes need not hold who it is, and
telling it another one converts the voice.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.checks import check
from worldmodel.models.autoregressive.wavenet import WaveNet
from worldmodel.models.layers import TRANSPOSED_CONVOLUTION, ResidualBlock
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.models.quantizers.nearest import build, perplexity
from worldmodel.models.vqvae import Encoder, VQVAEConfig

LEVELS = 256  # of a sample, mu-law
TOLD_EVERY = 8  # samples that a code, widened by transposed convolutions, is told to at least
FRAME = 64  # samples between two spectra, at least
QUIET = 1e-3  # added to magnitudes; a sine of amplitude 1 has 1/2


class SpeechBatch(NamedTuple):
    """Pieces of recordings to learn from."""

    samples: Tensor  # (B, N) uint8, mu-law codes; silence, 128, after those that are shorter
    lengths: Tensor  # (B,) int64, how many are of the recording
    speakers: Tensor  # (B,) int64


@dataclass(frozen=True)
class SpeechConfig:
    """The sizes of a VQ-VAE of sound.

    Attributes:
        speakers: told apart by the decoder.
        strides: of the encoder's convolutions; their product is the samples of a code.
        hears: what the encoder is given: the waveform, as in the paper, or its spectrum (Chorowski et al. 2019 do with
            cepstra), from which it learns in minutes what a sound is; the last strides are then done by convolutions,
            and the first by the distance between two spectra.
        hidden: channels of the encoder.
        residual_hidden: channels between the two convolutions of a residual block.
        residual_blocks: of them, in the encoder and before the decoder.
        quantizer: the codebook between encoder and decoder.
        width: channels of what the decoder is told of codes and speaker.
        channels: of the decoder's layers.
        layers: of the decoder.
        cycle: of them, after which the distances that they look back begin with 1 again; ten look back 1,023 samples.
        skip: channels that the outputs of all layers are summed into.
        jitter: chance of a code to be replaced by a neighbour in training (Chorowski et al. 2019, section III-C).
        untold: share of the pieces whose codes the decoder is not told in training, so that it knows what to do then;
            with 1 it is a WaveNet that only knows who speaks.
        plain: weight of a plain readout, which must tell the mean spectrum of each code from what the decoder is told
            alone: its squared error in nepers. A WaveNet does well without codes: little else asks them for anything.
        alone: steps at the beginning in which nothing but that is learnt. They cost a fortieth, and the WaveNet finds
            codes that tell it something.
        startup: steps at the beginning that quantize nothing, as in the second paper's own code: a codebook should
            begin on vectors that mean something. In many of them the vectors come to hold who speaks.
    """

    speakers: int = 1
    strides: tuple[int, ...] = (2, 2, 2, 2, 2, 2)
    hears: Literal["waveform", "spectrum"] = "waveform"
    hidden: int = 128
    residual_hidden: int = 64
    residual_blocks: int = 2
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    width: int = 64
    channels: int = 64
    layers: int = 16
    cycle: int = 8
    skip: int = 128
    jitter: float = 0.0
    untold: float = 0.1
    plain: float = 0.0
    alone: int = 0
    startup: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "strides", tuple(self.strides))  # YAML gives a list
        if not self.strides or min(self.strides) < 2:
            raise ValueError(f"model.strides must be numbers of 2 or more, got {list(self.strides)}")
        counts = ("speakers", "hidden", "residual_hidden", "width", "channels", "layers", "cycle", "skip")
        weights = ("residual_blocks", "plain", "alone", "startup")
        check("model", self, counts, weights, shares=("jitter", "untold"))
        if self.alone and not self.plain:
            raise ValueError(f"model.alone = {self.alone} steps learn from model.plain, which is 0; give it a weight")

    @property
    def hop(self) -> int:
        """Samples of a code."""
        return math.prod(self.strides)


class SpeechVQVAE(nn.Module):
    """See the module. ``samples`` are mu-law codes (B, N) uint8, N a multiple of the hop, ``codes`` (B, N / hop)."""

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        self.config = config
        picture = VQVAEConfig(
            channels=1,
            hidden=config.hidden,
            residual_hidden=config.residual_hidden,
            residual_blocks=config.residual_blocks,
            quantizer=config.quantizer,
        )
        self.frame = _frame(config)
        if config.hears == "waveform":
            self.encoder: nn.Module = Encoder(picture, dims=1, strides=config.strides)
        else:
            self.encoder = nn.Sequential(
                nn.Conv1d(self.frame + 1, config.hidden, 3, padding=1),
                nn.ReLU(),
                Encoder(replace(picture, channels=config.hidden), dims=1, strides=_strides_left(config, self.frame)),
            )
        _keep_scale(self.encoder)
        self.quantizer = build(config.quantizer)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # of training, so far
        self.nothing = nn.Parameter(torch.zeros(config.quantizer.dim))  # in place of a code that is not told
        self.speaker = nn.Embedding(config.speakers, config.width)
        self.widened = nn.Sequential(*_widened(config))
        self.net = WaveNet(
            nn.Embedding(LEVELS, config.skip), config.width, config.channels, config.layers, config.cycle
        )
        if config.plain:
            self.plain = nn.Linear(config.width, self.frame + 1)
            nn.init.constant_(self.plain.bias, math.log(QUIET))

    def forward(self, batch: SpeechBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss: nats per sample, and the quantizer's terms.

        Args:
            generator: for the random choices of training.
        """
        samples, begun = batch.samples.long(), not self.training or self.steps >= self.config.alone
        vectors, metrics = self.vectors(samples), {}
        loss = torch.zeros((), device=samples.device)
        if not self.training or self.steps >= self.config.startup:
            quantized = self.quantizer(vectors, generator)
            vectors, loss = quantized.vectors, quantized.loss
            metrics = {"quantizer_loss": quantized.loss.detach(), "perplexity": perplexity(quantized.counts)}
        if self.training:
            self.steps += 1
        if self.training and self.config.jitter:
            vectors = jittered(vectors, self.config.jitter, generator)
        condition = self.condition(vectors, batch.speakers)
        if self.config.plain:
            parts = vectors.shape[2], -1  # of each code
            truth = spectra(samples, self.frame).unflatten(1, parts).mean(2)  # (B, codes, frame + 1)
            error = F.mse_loss(self.plain(condition.unflatten(1, parts).mean(2)).float(), truth)
            loss, metrics["spectral_error"] = loss + self.config.plain * error, error.detach()
        if not begun:
            return loss, metrics
        if self.training and self.config.untold:
            told = torch.rand(len(samples), 1, 1, generator=generator, device=samples.device) >= self.config.untold
            nothing = self.told(samples.shape[1], batch.speakers, None)
            condition = torch.where(told, condition, nothing)
        nats = self._nats(samples, condition)
        inside = torch.arange(samples.shape[1], device=samples.device) < batch.lengths[:, None]
        mean = (nats * inside).sum() / inside.sum()
        return loss + mean, {"bits_per_sample": mean.detach() / math.log(2), **metrics}

    def vectors(self, samples: Tensor) -> Tensor:
        """What the quantizer is given of samples (B, N): (B, D, N / hop)."""
        if self.config.hears == "waveform":
            return self.encoder(heard(samples))
        return self.encoder((spectra(samples, self.frame) - math.log(QUIET)).movedim(-1, 1))

    def encode(self, samples: Tensor) -> Tensor:
        """Samples (B, N) -> codes (B, N / hop) int64.

        Raises:
            ValueError: if N is no multiple of the hop.
        """
        if samples.shape[1] % self.config.hop:
            raise ValueError(
                f"{samples.shape[1]} samples must be a multiple of the {self.config.hop} samples of a code"
            )
        return self.quantizer.encode(self.vectors(samples.long()))

    @torch.no_grad()
    def bits(self, samples: Tensor, speakers: Tensor, codes: Tensor | None) -> Tensor:
        """How surprising samples (B, N) of speakers (B,) are, told codes (B, N / hop) or none: bits (B, N)."""
        return self._nats(samples.long(), self.told(samples.shape[1], speakers, codes)) / math.log(2)

    def told(self, length: int, speakers: Tensor, codes: Tensor | None) -> Tensor:
        """What the decoder is told of ``length`` samples: (B, length / n, width)."""
        if codes is None:
            vectors = self.nothing[:, None].expand(len(speakers), -1, length // self.config.hop)
        else:
            vectors = self.quantizer.decode(codes)
        return self.condition(vectors, speakers)

    def condition(self, vectors: Tensor, speakers: Tensor) -> Tensor:
        """The same from the codes' vectors (B, D, M)."""
        told = self.widened(vectors) + self.speaker(speakers)[:, :, None]
        return told.movedim(1, -1)

    def _nats(self, samples: Tensor, condition: Tensor) -> Tensor:
        logits = self.net(samples, condition).float()
        return F.cross_entropy(logits.flatten(0, 1), samples.flatten(), reduction="none").view_as(samples)


def heard(samples: Tensor) -> Tensor:
    """Mu-law codes (B, N) as the encoder takes them, companded: (B, 1, N) float32 in [-1, 1]."""
    return samples[:, None].float() * (2 / (LEVELS - 1)) - 1


def spectra(samples: Tensor, frame: int) -> Tensor:
    """Logarithms of the magnitudes of mu-law codes (B, N): (B, N / frame, frame + 1) float32.

    Each is of two frames of samples about the middle of one: too few to tell the pitch of most voices.
    """
    with torch.autocast(samples.device.type, enabled=False):
        curved = heard(samples)[:, 0]
        x = curved.sign() * torch.expm1(curved.abs() * math.log(LEVELS)) / (LEVELS - 1)  # G.711's curve undone
        x = F.pad(x, (frame // 2, frame - frame // 2))  # (B, N + frame)
        window = torch.hann_window(2 * frame, device=x.device)
        found = torch.stft(x, 2 * frame, frame, window=window, center=False, return_complex=True)
        return (found.abs() / frame + QUIET).log().movedim(1, -1)


def jittered(vectors: Tensor, chance: float, generator: torch.Generator | None = None) -> Tensor:
    """Replace each of the vectors (B, D, M), with some chance, by one of its two neighbours."""
    batch, _, length = vectors.shape
    drawn = torch.rand(batch, length, generator=generator, device=vectors.device)
    step = (drawn < chance / 2).long() - (drawn > 1 - chance / 2).long()  # (B, M): -1, 0 or 1
    places = (torch.arange(length, device=vectors.device) + step).clamp(0, length - 1)
    return vectors.gather(2, places[:, None].expand_as(vectors))


@torch.no_grad()
def _keep_scale(layers: nn.Module) -> None:
    """Begin convolutions so that ReLUs between them keep the scale (He et al. 2015, equation 10).

    As PyTorch begins them, six in a row leave of what changes from code to code a four-hundredth: the decoder learns
    to do without.
    """
    for layer in layers.modules():
        if isinstance(layer, nn.Conv1d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)


def _frame(config: SpeechConfig) -> int:
    """Samples between two spectra: some conditions, and a part of a code."""
    frame = _told_every(config)
    while frame < FRAME and config.hop % (2 * frame) == 0:
        frame *= 2
    return frame


def _strides_left(config: SpeechConfig, frame: int) -> tuple[int, ...]:
    """The strides from one spectrum each ``frame`` samples to a code: the last of those given, if they make it up."""
    for first in range(len(config.strides) + 1):
        if math.prod(config.strides[:first]) == frame:
            return config.strides[first:]
    return (config.hop // frame,)


def _told_every(config: SpeechConfig) -> int:
    """Samples between two conditions."""
    left = config.hop
    for stride in reversed(config.strides):
        if left // stride < TOLD_EVERY:
            break
        left //= stride
    return left


def _widened(config: SpeechConfig) -> list[nn.Module]:
    """Layers that see the neighbours of a code and tell it to fewer samples at a time: (B, D, M) -> (B, width, ·)."""
    layers: list[nn.Module] = [nn.Conv1d(config.quantizer.dim, config.width, 3, padding=1)]
    layers += [ResidualBlock(1, config.width, config.residual_hidden) for _ in range(config.residual_blocks)]
    left = config.hop
    for stride in reversed(config.strides):
        if left == _told_every(config):
            break
        window, padding = 2 * stride - stride % 2, stride // 2
        left //= stride
        layers += [nn.ReLU(), TRANSPOSED_CONVOLUTION[1](config.width, config.width, window, stride, padding)]
    return layers
