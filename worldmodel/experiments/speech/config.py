"""Configuration of the speech VQ-VAE."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from worldmodel.checks import check_ranges
from worldmodel.models.config import SpatialPriorConfig
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.run_kind import RunKind


@dataclass(frozen=True)
class SpeechConfig:
    """Architecture and auxiliary losses of the speech VQ-VAE.

    Attributes:
        num_speakers: number of speakers that the decoder is conditioned on.
        strides: strides of the encoder's convolutions; their product is the number of samples per code.
        encoder_input: input of the encoder: waveform, as in the paper, or spectrum or mel, which train much faster
            (Chorowski et al. 2019 use cepstra); their hop replaces the first strides. mel is log-mel every 10 ms, less
            its mean over the segment in training and over the recording afterwards, which depends on voice and
            microphone; the readout of aux_weight then predicts log-mel.
        sample_rate: sample rate in Hz of input mel, taken from --rate; 0 for other inputs.
        hidden_channels: channels of the encoder.
        residual_channels: channels between the two convolutions of a residual block.
        num_residual_blocks: number of residual blocks in the encoder, and again before the decoder.
        quantizer: settings of the codebook between encoder and decoder.
        condition_channels: channels of the conditioning vectors made from codes and speaker.
        decoder_channels: channels of the WaveNet's layers.
        decoder_layers: number of WaveNet layers.
        dilation_cycle: number of layers after which dilations restart at 1; ten layers see 1,023 samples back.
        skip_channels: channels of the WaveNet's skip connections.
        jitter: probability of replacing a code by a neighbor in training (Chorowski et al. 2019, section III-C).
        code_dropout: fraction of training segments decoded without codes; 1 trains a WaveNet conditioned on the speaker
            alone.
        aux_weight: weight of a linear readout that predicts each code's mean spectrum from the conditioning vectors
            alone, by squared error in nepers; without it the WaveNet hardly uses the codes.
        aux_only_steps: training steps at the start that skip the WaveNet and train the readout alone, at a fortieth of
            the cost.
        quantizer_warmup_steps: training steps at the start without quantization, as in the second paper's code, so that
            the codebook is initialized from meaningful vectors; too many let the vectors encode the speaker.
    """

    num_speakers: int = 1
    strides: tuple[int, ...] = (2, 2, 2, 2, 2, 2)
    encoder_input: Literal["waveform", "spectrum", "mel"] = "waveform"
    sample_rate: int = 0
    hidden_channels: int = 128
    residual_channels: int = 64
    num_residual_blocks: int = 2
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    condition_channels: int = 64
    decoder_channels: int = 64
    decoder_layers: int = 16
    dilation_cycle: int = 8
    skip_channels: int = 128
    jitter: float = 0.0
    code_dropout: float = 0.1
    aux_weight: float = 0.0
    aux_only_steps: int = 0
    quantizer_warmup_steps: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "strides", tuple(self.strides))  # YAML gives a list
        if not self.strides or min(self.strides) < 2:
            raise ValueError(f"model.strides must be numbers of 2 or more, got {list(self.strides)}")
        counts = (
            "num_speakers",
            "hidden_channels",
            "residual_channels",
            "condition_channels",
            "decoder_channels",
            "decoder_layers",
            "dilation_cycle",
            "skip_channels",
        )
        weights = ("sample_rate", "num_residual_blocks", "aux_weight", "aux_only_steps", "quantizer_warmup_steps")
        check_ranges("model", self, counts, weights, fractions=("jitter", "code_dropout"))
        if self.aux_only_steps and not self.aux_weight:
            raise ValueError(
                f"model.aux_only_steps = {self.aux_only_steps} steps train with model.aux_weight, which is 0; "
                "give it a weight"
            )

    @property
    def hop(self) -> int:
        """Samples per code."""
        return math.prod(self.strides)


DEFAULT_CODEC = "spoken-digits"


SPEECH_RUN = RunKind(
    SpeechConfig,
    "worldmodel.experiments.speech.model:SpeechVQVAE",
    paths=("speech",),
    choices=("speech", "segment_length"),
    types={"speech": str, "segment_length": int, "speakers": list},
)
SPEECH_PRIOR_RUN = replace(
    SPEECH_RUN,
    config=SpatialPriorConfig,
    build="worldmodel.models.spatial_prior:SpatialPrior",
    paths=("speech", "voices"),
)
