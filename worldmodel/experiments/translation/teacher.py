"""The autoregressive Transformer: teacher of the latent models, and the baseline that they are compared with."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.experiments.translation.batches import TextBatch
from worldmodel.experiments.translation.config import TransformerConfig
from worldmodel.experiments.translation.layers import (
    CausalDecoder,
    Source,
    SourceEncoder,
    build_embedding,
    select_rows,
    word_loss,
)
from worldmodel.experiments.translation.subwords import BOS, EOS, PAD


class Teacher(nn.Module):
    """An encoder-decoder Transformer whose embeddings of source, target and output are one matrix."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = build_embedding(config.vocab_size, config.embed_dim)
        self.encoder = SourceEncoder(config)
        self.decoder = CausalDecoder(config, config.decoder_layers)

    def forward(self, batch: TextBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the training loss, label-smoothed nats per subword, and metrics.

        Args:
            generator: source of the dropout masks.
        """
        source = self.encode_source(batch.source, generator)
        previous = F.pad(batch.target[:, :-1], (1, 0), value=BOS)
        features, _ = self.decoder(self.embedding, previous, source, generator=generator)
        loss, nats = word_loss(features, self.embedding, batch.target, batch.target != PAD, self.config.label_smoothing)
        return loss, {"bits_per_subword": nats / math.log(2)}

    def encode_source(self, source: Tensor, generator: torch.Generator | None = None) -> Source:
        """Encode source sentences (B, S) for the decoder."""
        return self.decoder.layers.project_source(self.encoder(self.embedding, source, generator), source != PAD)

    @torch.no_grad()
    def translate(self, source: Tensor, beam: int = 1) -> list[list[int]]:
        """Translate sentences (B, S), each ending with EOS, greedily or by beam search, into subwords."""
        limits = max_target_length((source != PAD).sum(1))
        encoded = self.encode_source(source)
        if beam == 1:
            return self.decoder.greedy(self.embedding, encoded, BOS, EOS, limits, self._logits).tolist()
        return self._beam_search(encoded, limits, beam).tolist()

    def _logits(self, features: Tensor) -> Tensor:
        return F.linear(features, self.embedding.weight)

    def _beam_search(self, source: Source, limits: Tensor, beam: int) -> Tensor:
        """Return the best of ``beam`` hypotheses by mean log-probability per subword, (B, N), filled with EOS.

        A finished hypothesis stays in the beam until better ones displace it.
        """
        batch = len(limits)
        first = torch.arange(batch, device=limits.device)[:, None] * beam  # (B, 1), row of each sentence's first
        source, limits = source.select(torch.arange(batch * beam, device=limits.device) // beam), limits[:, None]
        symbols, past = torch.full((batch * beam, 0), BOS, device=limits.device), None
        last = symbols.new_full((batch * beam, 1), BOS)
        scores = torch.full((batch, beam), float("-inf"), device=limits.device)
        scores[:, 0] = 0.0  # all hypotheses are equal at first, so that only one may be continued
        lengths = torch.zeros(batch, beam, dtype=torch.int64, device=limits.device)
        ended = (limits <= 0).expand(-1, beam)
        while not ended.all():
            features, past = self.decoder(self.embedding, last, source, past)
            log_probs = self._logits(features[:, -1]).float().log_softmax(-1).view(batch, beam, -1)
            only_end = torch.full_like(log_probs, float("-inf"))
            only_end[..., EOS] = 0.0
            totals = scores[..., None] + torch.where(ended[..., None], only_end, log_probs)  # (B, beam, vocab)
            lengths = lengths + ~ended
            best = (totals / lengths[..., None].clamp_min(1)).flatten(1).topk(beam).indices  # (B, beam)
            scores = totals.flatten(1).gather(1, best)
            chosen, word = best // log_probs.shape[-1], best % log_probs.shape[-1]
            lengths, rows = lengths.gather(1, chosen), (first + chosen).flatten()
            last, past = word.view(-1, 1), select_rows(past, rows)
            symbols = torch.cat([symbols[rows], last], 1)
            ended = (word == EOS) | (limits <= symbols.shape[1])
        return symbols[(first[:, 0] + (scores / lengths.clamp_min(1)).argmax(1))]


def max_target_length(lengths: Tensor) -> Tensor:
    """Return the maximum number of subwords of translations, twice those of the source (B,) plus ten."""
    return 2 * lengths + 10
