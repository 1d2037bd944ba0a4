"""Translation through discrete latents (Roy et al. 2018, section 5.1 and figure 2; Kaiser et al. 2018).

An autoencoder of target sentences: strided convolutions turn each 2^n_c subwords into one latent, a quantizer makes it
discrete, and up-convolutions and a Transformer that attends to the source write all words at once. An autoregressive
predictor of the latents from the source replaces the encoder when there is no target yet.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.experiments.translation.batches import TextBatch
from worldmodel.experiments.translation.config import LatentConfig
from worldmodel.experiments.translation.layers import (
    CausalDecoder,
    Source,
    SourceEncoder,
    Transformer,
    build_embedding,
    padding_bias,
    positions,
    word_loss,
)
from worldmodel.experiments.translation.subwords import PAD
from worldmodel.experiments.translation.teacher import max_target_length
from worldmodel.models.config import VQVAEConfig
from worldmodel.models.layers import dropout, init_he
from worldmodel.models.quantizers.interface import perplexity
from worldmodel.models.quantizers.kinds import VectorQuantizer, build_quantizer
from worldmodel.models.spatial_prior import nats_per_code
from worldmodel.models.vqvae import Decoder, Encoder


class Encoded(NamedTuple):
    """An encoded source sentence, for the two networks that attend to it."""

    decoder: Source
    predictor: Source
    lengths: Tensor  # (B,) int64, subwords with EOS


class LatentTranslator(nn.Module):
    """Autoencoder of target sentences, and predictor of its latents from the source.

    ``codes`` are (B, M) int64, M latents of which each sentence has the first ``counts`` (B,). Its other latents have
    no effect, so that a sentence is encoded and decoded alike in every batch.
    """

    def __init__(self, config: LatentConfig) -> None:
        super().__init__()
        self.config, sizes = config, config.transformer
        self.embedding = build_embedding(sizes.vocab_size, sizes.embed_dim)
        self.source_encoder = SourceEncoder(sizes)
        convolutions = VQVAEConfig(
            in_channels=sizes.embed_dim,
            hidden_channels=sizes.embed_dim,
            residual_channels=sizes.embed_dim,
            num_residual_blocks=config.num_residual_blocks,
            num_downsamples=config.num_downsamples,
            quantizer=config.quantizer,
        )
        self.target_encoder = Encoder(convolutions, dims=1)
        init_he(self.target_encoder)
        self.quantizer = build_quantizer(config.quantizer)
        self.upsample = Decoder(convolutions, dims=1)
        self.decoder = Transformer(sizes, sizes.decoder_layers, attends_to_source=True)
        self.end, self.begin = config.quantizer.codebook_size, config.quantizer.codebook_size + 1
        self.code_embedding = build_embedding(config.quantizer.codebook_size + 2, sizes.embed_dim)
        self.predictor = CausalDecoder(sizes, config.predictor_layers)
        self.steps = nn.Buffer(torch.zeros((), dtype=torch.int64))  # training steps so far

    def forward(self, batch: TextBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the training loss and metrics.

        The loss is the nats per subword given the latents of the target, the nats per latent given the source, and the
        quantizer's own terms.

        Args:
            generator: source of all noise of training: dropout, quantizer, and noise on the targets.
        """
        source = self.encode_source(batch.source, generator)
        counts = self.count_latents(batch)
        rows = self.encode_to_vectors(self._add_noise(batch.target, generator), counts)  # (L, D, 1)
        loss, metrics = torch.zeros((), device=rows.device), {}
        if self.training and self.steps < self.config.quantizer_warmup_steps:
            vectors = rows
        else:
            quantized = self.quantizer(rows, generator)
            vectors, loss = quantized.vectors, quantized.loss
            metrics = {"quantizer_loss": loss.detach(), "perplexity": perplexity(quantized.counts)}
            if not self.training or self.steps >= self.config.predictor_warmup_steps:
                samples = quantized.codes if quantized.samples is None else quantized.samples[..., 0]  # (L, m)
                sequences = _to_sequences(samples, counts, self.end)
                logits = self.code_logits(sequences[..., 0], source.predictor, generator)
                nats = self.predictor_nats(logits, sequences, counts)
                loss, metrics["bits_per_latent"] = loss + nats, nats.detach() / math.log(2)
                vectors = self._mix_in_predicted(vectors, logits, counts, generator)
        if self.training:
            self.steps += 1
        features = self.decode_vectors(_to_sequences(vectors[..., 0], counts, 0.0), counts, source.decoder, generator)
        target = F.pad(batch.target, (0, features.shape[1] - batch.target.shape[1]), value=PAD)
        words, nats = word_loss(
            features, self.embedding, target, target != PAD, self.config.transformer.label_smoothing
        )
        return loss + words, {"bits_per_subword": nats / math.log(2), **metrics}

    def encode_source(self, source: Tensor, generator: torch.Generator | None = None) -> Encoded:
        """Encode source sentences (B, S), each ending with EOS."""
        encoded, valid = self.source_encoder(self.embedding, source, generator), source != PAD
        return Encoded(
            self.decoder.project_source(encoded, valid),
            self.predictor.layers.project_source(encoded, valid),
            valid.sum(1),
        )

    def count_latents(self, batch: TextBatch) -> Tensor:
        """Return the number of latents of each target (B,): up to its EOS, or as many as the source asks for."""
        counts = self._latents_of((batch.target != PAD).sum(1))
        if self.config.latent_length == "twice_source":
            counts = counts.maximum(self._latents_of(2 * (batch.source != PAD).sum(1)))
        return counts

    def encode_to_vectors(self, target: Tensor, counts: Tensor) -> Tensor:
        """Encode targets (B, N) as the vectors to be quantized, (L, D, 1): those of all sentences, without padding."""
        length = int(counts.max()) << self.config.num_downsamples
        target = F.pad(target, (0, length - target.shape[1]), value=PAD)
        x = self.embedding(target) * math.sqrt(self.embedding.embedding_dim) * (target != PAD)[..., None]
        x = _apply_within(self.target_encoder, x.transpose(1, 2), counts)  # (B, D, M)
        return x.transpose(1, 2)[_mask(counts, x.shape[2])][..., None]

    @torch.no_grad()
    def encode(self, batch: TextBatch) -> tuple[Tensor, Tensor]:
        """Return the codes (B, M) of targets, filled with ``end``, and their numbers (B,)."""
        counts = self.count_latents(batch)
        codes = self.quantizer.encode(self.encode_to_vectors(batch.target, counts))
        return _to_sequences(codes[:, 0], counts, self.end), counts

    def decode_vectors(
        self, vectors: Tensor, counts: Tensor, source: Source, generator: torch.Generator | None = None
    ) -> Tensor:
        """Decode vectors (B, M, D) into features of all words at once, (B, M · 2^n_c, embed_dim)."""
        x = _apply_within(self.upsample, vectors.transpose(1, 2), counts).transpose(1, 2)
        x = x + positions(0, x.shape[1], x)
        if self.training and (probability := self.config.transformer.dropout):
            x = dropout(x, probability, generator)
        valid = _mask(counts << self.config.num_downsamples, x.shape[1])
        return self.decoder(x, padding_bias(valid), source, generator=generator)[0]

    @torch.no_grad()
    def decode(self, codes: Tensor, counts: Tensor, source: Source) -> list[list[int]]:
        """Return the most likely words of each sentence, given its codes and source."""
        rows = self.quantizer.decode(codes[_mask(counts, codes.shape[1])][:, None])  # (L, D, 1)
        words = F.linear(
            self.decode_vectors(_to_sequences(rows[..., 0], counts, 0.0), counts, source), self.embedding.weight
        ).argmax(-1)
        lengths = (counts << self.config.num_downsamples).tolist()
        return [line[:length] for line, length in zip(words.tolist(), lengths, strict=True)]

    @torch.no_grad()
    def predict(self, source: Encoded) -> tuple[Tensor, Tensor]:
        """Predict the codes of translations greedily: (B, M), filled with ``end``, and their numbers (B,)."""
        if self.config.latent_length == "twice_source":
            limits = self._latents_of(2 * source.lengths)
        else:
            limits = self._latents_of(max_target_length(source.lengths))
        codes = self.predictor.greedy(
            self.code_embedding, source.predictor, self.begin, self.end, limits, self._code_logits
        )
        return codes, (codes != self.end).sum(1)

    @torch.no_grad()
    def translate(self, source: Tensor, beam: int = 1) -> list[list[int]]:
        """Translate sentences (B, S), each ending with EOS, into subwords.

        Raises:
            ValueError: if a beam is asked for: latents are decoded greedily, as in the paper.
        """
        if beam != 1:
            raise ValueError(f"latents are decoded greedily, got --beam {beam}; use --beam 1")
        encoded = self.encode_source(source)
        codes, counts = self.predict(encoded)
        return self.decode(codes, counts, encoded.decoder) if counts.any() else [[] for _ in codes]

    def code_logits(self, codes: Tensor, source: Source, generator: torch.Generator | None = None) -> Tensor:
        """Return the predictor's logits for every latent and the end after them: (B, M) -> (B, M + 1, K + 1)."""
        previous = F.pad(codes, (1, 0), value=self.begin)
        features, _ = self.predictor(self.code_embedding, previous, source, generator=generator)
        return self._code_logits(features)

    def predictor_nats(self, logits: Tensor, codes: Tensor, counts: Tensor) -> Tensor:
        """Return the mean nats per latent, from logits (B, M + 1, K + 1) given the first of m samples, (B, M, m).

        The target is the average of the samples' one-hot vectors (Roy et al. 2018, section 3.2); they are filled with
        ``end`` beyond the ``counts`` (B,) of each sentence.
        """
        logits = logits.float()
        targets = F.pad(codes, (0, 0, 0, 1), value=self.end)
        if self.config.latent_length == "end_symbol":
            counts = counts + 1
        else:  # these have no end to be predicted
            logits, targets = logits[:, :-1], targets[:, :-1]
        valid = _mask(counts, logits.shape[1])
        return nats_per_code(logits[valid], targets[valid]).mean()

    def _code_logits(self, features: Tensor) -> Tensor:
        num_symbols = self.begin if self.config.latent_length == "end_symbol" else self.end
        return F.linear(features, self.code_embedding.weight[:num_symbols])

    def _mix_in_predicted(
        self, vectors: Tensor, logits: Tensor, counts: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Replace some of the vectors (L, D, 1) in training by those of the most likely codes."""
        fraction = self.config.predicted_fraction
        if not self.training or not fraction:
            return vectors
        codes = logits[:, :-1, : self.end].argmax(-1)  # (B, M)
        predicted = self.quantizer.decode(codes[_mask(counts, codes.shape[1])][:, None])
        if isinstance(self.quantizer, VectorQuantizer):  # its codebook is not trained by the words
            predicted = predicted.detach()
        replaced = torch.rand(len(vectors), 1, 1, generator=generator, device=vectors.device) < fraction
        return torch.where(replaced, predicted, vectors)

    def _latents_of(self, lengths: Tensor) -> Tensor:
        """Return the number of latents that cover so many subwords."""
        return -(-lengths >> self.config.num_downsamples)

    def _add_noise(self, target: Tensor, generator: torch.Generator | None) -> Tensor:
        """Permute and hide subwords of targets (B, N) in training, as a denoising autoencoder does."""
        if self.training and self.config.word_shuffle:
            target = shuffle_words(target, self.config.word_shuffle, generator)
        if self.training and self.config.word_dropout:
            hidden = torch.rand(target.shape, generator=generator, device=target.device) < self.config.word_dropout
            target = target.masked_fill(hidden, PAD)
        return target


def shuffle_words(target: Tensor, reach: float, generator: torch.Generator | None) -> Tensor:
    """Permute the subwords before EOS by sorting position + U(0, 1 + reach): (B, N) -> (B, N) (Lample et al. 2018)."""
    place = torch.arange(target.shape[1], device=target.device).expand(target.shape)
    noise = torch.rand(target.shape, generator=generator, device=target.device) * (1 + reach)
    last = (target != PAD).sum(1, keepdim=True) - 1  # EOS
    keys = torch.where(place < last, (place + noise).minimum(last - 0.5), place.to(noise.dtype))
    return target.gather(1, keys.argsort(dim=1, stable=True))


def _mask(counts: Tensor, length: int) -> Tensor:
    """Return which of ``length`` positions are among the first ``counts`` (B,) of their row: (B, length) bool."""
    return torch.arange(length, device=counts.device) < counts[:, None]


def _to_sequences(rows: Tensor, counts: Tensor, fill: float) -> Tensor:
    """Lay rows (L, …) of all sentences out as (B, M, …), with ``fill`` beyond the ``counts`` (B,) of each."""
    mask = _mask(counts, int(counts.max()))
    laid = rows.new_full((*mask.shape, *rows.shape[1:]), fill)
    return laid.masked_scatter(mask.view(*mask.shape, *[1] * (rows.ndim - 1)), rows)


def _apply_within(layers: nn.Sequential, x: Tensor, counts: Tensor) -> Tensor:
    """Apply convolutions to (B, channels, n), and set to zero what lies beyond each sentence after every layer.

    Convolutions pad with zeros, too, so the codes of a sentence do not depend on the longer ones in its batch.
    """
    num_latents = int(counts.max())
    for layer in layers:
        x = layer(x)
        x = x * _mask(counts * x.shape[2] // num_latents, x.shape[2])[:, None]
    return x
