"""Configuration of the translation models. Free of torch, so that ``--help`` is fast."""

from dataclasses import dataclass, field, replace
from typing import Literal

from worldmodel.checks import check_ranges
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.run_kind import RunKind

DEFAULT_TRANSLATOR = "en-de"


@dataclass(frozen=True)
class TransformerConfig:
    """Architecture of an encoder-decoder Transformer (Vaswani et al. 2017), with norms before the layers.

    Attributes:
        vocab_size: number of subwords, shared by source and target.
        embed_dim: dimension of embeddings and hidden layers, an even multiple of the number of heads.
        num_heads: number of attention heads in each layer.
        feed_forward_dim: hidden dimension of the feed-forward networks.
        encoder_layers: number of layers of the source encoder.
        decoder_layers: number of layers of the decoder of words.
        dropout: dropout probability of embeddings and of every sublayer's output, in [0, 1).
        label_smoothing: fraction of the target probability of words that is spread over all subwords, in [0, 1).
    """

    vocab_size: int = 6000
    embed_dim: int = 128
    num_heads: int = 4
    feed_forward_dim: int = 256
    encoder_layers: int = 4
    decoder_layers: int = 4
    dropout: float = 0.3
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "embed_dim", "num_heads", "feed_forward_dim", "encoder_layers", "decoder_layers")
        check_ranges("model", self, sizes, fractions=("dropout", "label_smoothing"))
        if self.embed_dim % self.num_heads or self.embed_dim % 2:
            raise ValueError(
                f"embed_dim must be even and a multiple of num_heads, got {self.embed_dim} and {self.num_heads}"
            )
        if 1 in (self.dropout, self.label_smoothing):
            raise ValueError("dropout and label_smoothing must be below 1")


@dataclass(frozen=True)
class LatentConfig:
    """Architecture and losses of the translation model with discrete latents.

    Attributes:
        transformer: sizes of the source encoder and the parallel decoder; the predictor shares all but the depth.
        predictor_layers: number of layers of the latent predictor.
        num_downsamples: number of stride-2 convolutions (n_c); a latent covers 2^n_c subwords.
        num_residual_blocks: number of residual blocks in the encoder of targets, and again before the up-convolutions.
        quantizer: quantizer between the encoder of targets and the decoder.
        latent_length: rule for the number of latents: end_symbol predicts an end after the last latent of a sentence;
            twice_source pads targets to twice the source's subwords, as the paper does, and predicts that many.
        word_dropout: probability that the encoder of targets does not see a subword in training.
        word_shuffle: reach of the permutation of target subwords before their encoder in training; 0 keeps their order.
        predicted_fraction: fraction of latents, once the predictor is trained, that the decoder of words gets from the
            predictor (its most likely code, given the target's latents before it) instead of from the target, so that
            it learns to cope with wrong ones; below 1. Not in the paper.
        quantizer_warmup_steps: training steps at the start without quantization, and without training the predictor.
        predictor_warmup_steps: training steps at the start without training the predictor, while codes change fast.
    """

    transformer: TransformerConfig = field(default_factory=lambda: TransformerConfig(label_smoothing=0.0))
    predictor_layers: int = 4
    num_downsamples: int = 3
    num_residual_blocks: int = 2
    quantizer: QuantizerConfig = field(default_factory=lambda: QuantizerConfig(codebook_size=1024, code_dim=128))
    latent_length: Literal["end_symbol", "twice_source"] = "end_symbol"
    word_dropout: float = 0.0
    word_shuffle: float = 0.0
    predicted_fraction: float = 0.0
    quantizer_warmup_steps: int = 0
    predictor_warmup_steps: int = 0

    def __post_init__(self) -> None:
        counts = ("predictor_layers", "num_downsamples")
        optional = ("num_residual_blocks", "word_shuffle", "quantizer_warmup_steps", "predictor_warmup_steps")
        check_ranges("model", self, counts, optional, fractions=("word_dropout", "predicted_fraction"))
        if self.predicted_fraction == 1:
            raise ValueError(
                "model.predicted_fraction must be below 1, or the words do not train the encoder of targets"
            )
        if self.num_downsamples > 8:
            raise ValueError(f"model.num_downsamples must be 8 or less, got {self.num_downsamples}")


TEXTS = ("corpus", "source", "target", "distilled")  # files or folders of sentences
TRANSLATION_RUN = RunKind(
    LatentConfig,
    "worldmodel.experiments.translation.model:LatentTranslator",
    paths=TEXTS,
    choices=(*TEXTS, "languages", "batch_tokens", "max_length"),
    types=dict.fromkeys((*TEXTS, "languages"), str),
)
TEACHER_RUN = replace(
    TRANSLATION_RUN, config=TransformerConfig, build="worldmodel.experiments.translation.teacher:Teacher"
)
