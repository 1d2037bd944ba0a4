"""Transformer layers for sequences of symbols: attention with an explicit cache, stacks, and greedy decoding."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.experiments.translation.config import TransformerConfig
from worldmodel.experiments.translation.subwords import PAD
from worldmodel.models.layers import dropout, module_list
from worldmodel.models.transformer import attention

KeysValues = tuple[Tensor, Tensor]  # each (B, heads, N, embed_dim / heads)


class Source(NamedTuple):
    """What a decoder attends to: the encoded source sentence, projected for each of its layers."""

    keys_values: list[KeysValues]
    bias: Tensor  # (B, 1, 1, S), minus infinity at padding

    def select(self, rows: Tensor) -> "Source":
        """Return the sources of these rows (R,) int64 of the batch."""
        return Source(select_rows(self.keys_values, rows), self.bias[rows])


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2); keys and values are computed apart, to be cached."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.keys_values = nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, 2 * embed_dim)
        self.output = nn.Linear(embed_dim, embed_dim)

    def project(self, x: Tensor) -> KeysValues:
        """Return the keys and values of (B, N, embed_dim)."""
        keys, values = self.keys_values(x).chunk(2, -1)
        return self._split_heads(keys), self._split_heads(values)

    def forward(self, x: Tensor, keys_values: KeysValues, bias: Tensor | None) -> Tensor:
        """Attend from (B, Q, embed_dim) to the keys and values; ``bias`` is added to the scores (B, heads, Q, N)."""
        attended = attention(self._split_heads(self.query(x)), *keys_values, bias)
        return self.output(attended.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class TransformerLayer(nn.Module):
    """Self-attention, attention to a source if there is one, and a feed-forward network, each after a layer norm."""

    def __init__(self, config: TransformerConfig, attends_to_source: bool) -> None:
        super().__init__()
        width = config.embed_dim
        self.dropout = config.dropout
        self.self_attention = Attention(width, config.num_heads)
        self.source_attention = Attention(width, config.num_heads) if attends_to_source else None
        self.feed_forward = nn.Sequential(
            nn.Linear(width, config.feed_forward_dim), nn.ReLU(), nn.Linear(config.feed_forward_dim, width)
        )
        self.norms = module_list(nn.LayerNorm(width) for _ in range(3 if attends_to_source else 2))

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None,
        source: tuple[KeysValues, Tensor] | None,
        past: KeysValues | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, KeysValues]:
        """Apply the layer to (B, N, embed_dim); also return the keys and values of the past and of these positions."""
        hidden = self.norms[0](x)
        keys, values = self.self_attention.project(hidden)
        if past is not None:
            keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
        x = x + self._drop(self.self_attention(hidden, (keys, values), bias), generator)
        if self.source_attention is not None and source is not None:
            x = x + self._drop(self.source_attention(self.norms[1](x), *source), generator)
        return x + self._drop(self.feed_forward(self.norms[-1](x)), generator), (keys, values)

    def _drop(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return dropout(x, self.dropout, generator) if self.training and self.dropout else x


class Transformer(nn.Module):
    """A stack of layers over (B, N, embed_dim), and a last norm."""

    def __init__(self, config: TransformerConfig, num_layers: int, attends_to_source: bool = False) -> None:
        super().__init__()
        self.layers = module_list(TransformerLayer(config, attends_to_source) for _ in range(num_layers))
        self.norm = nn.LayerNorm(config.embed_dim)

    def project_source(self, encoded: Tensor, valid: Tensor) -> Source:
        """Return the source that the layers attend to, from its encoding (B, S, embed_dim) and mask (B, S) bool."""
        attentions = [layer.source_attention for layer in self.layers]
        return Source([part.project(encoded) for part in attentions if part is not None], padding_bias(valid))

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        source: Source | None = None,
        past: list[KeysValues] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """Apply the layers.

        Args:
            x: features of the positions, (B, N, embed_dim), after those in ``past``.
            bias: added to the scores of the self-attention, (B, 1, N or 1, N), minus infinity where it must not look.
            past: keys and values of earlier positions for each layer.
            generator: source of the dropout masks.

        Returns:
            The features (B, N, embed_dim), and the keys and values of all positions so far.
        """
        cache = []
        for number, layer in enumerate(self.layers):
            attended = None if source is None else (source.keys_values[number], source.bias)
            x, keys_values = layer(x, bias, attended, None if past is None else past[number], generator)
            cache.append(keys_values)
        return self.norm(x), cache


class SourceEncoder(nn.Module):
    """Encodes source sentences (B, S) as features (B, S, embed_dim) by bidirectional self-attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.layers = Transformer(config, config.encoder_layers)

    def forward(self, embedding: nn.Embedding, source: Tensor, generator: torch.Generator | None = None) -> Tensor:
        x = embed(embedding, source)
        if self.training and self.dropout:
            x = dropout(x, self.dropout, generator)
        return self.layers(x, padding_bias(source != PAD), generator=generator)[0]


class CausalDecoder(nn.Module):
    """An autoregressive Transformer over symbols, which attends to a source.

    Without ``past``, it reads whole sequences in parallel; with it, the symbols that follow. Both give equal features.
    """

    def __init__(self, config: TransformerConfig, num_layers: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.layers = Transformer(config, num_layers, attends_to_source=True)

    def forward(
        self,
        embedding: nn.Embedding,
        symbols: Tensor,
        source: Source,
        past: list[KeysValues] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """Return features (B, N, embed_dim) that depend on each of the symbols (B, N) and those before it."""
        start, length = (past[0][0].shape[2] if past else 0), symbols.shape[1]
        x = embed(embedding, symbols, start)
        if self.training and self.dropout:
            x = dropout(x, self.dropout, generator)
        return self.layers(x, causal_bias(length, start, x.device), source, past, generator)

    def greedy(
        self,
        embedding: nn.Embedding,
        source: Source,
        begin: int,
        end: int,
        limits: Tensor,
        to_logits: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Decode the most likely next symbol again and again, after ``begin``.

        Args:
            end: symbol after which a sequence ends.
            limits: maximum number of symbols of each sequence before its end, (B,) int64.
            to_logits: maps features (B, embed_dim) to logits (B, symbols).

        Returns:
            Symbols (B, N) int64, filled with ``end`` after each sequence.
        """
        symbols, past, decoded = torch.full_like(limits, begin), None, []
        ended = limits <= 0
        while not ended.all():
            features, past = self(embedding, symbols[:, None], source, past)
            symbols = to_logits(features[:, -1]).argmax(-1).masked_fill(ended, end)
            decoded.append(symbols)
            ended = (symbols == end) | (limits <= len(decoded))
        return torch.stack(decoded, 1) if decoded else limits.new_zeros(len(limits), 0)


def build_embedding(num_symbols: int, embed_dim: int) -> nn.Embedding:
    """Build an embedding for input and output: scaled up at the input, its logits start near zero."""
    embedding = nn.Embedding(num_symbols, embed_dim)
    nn.init.normal_(embedding.weight, std=embed_dim**-0.5)
    return embedding


def embed(embedding: nn.Embedding, symbols: Tensor, start: int = 0) -> Tensor:
    """Embed symbols (B, N) at positions from ``start`` on: (B, N, embed_dim) of about unit variance."""
    x = embedding(symbols) * math.sqrt(embedding.embedding_dim)
    return x + positions(start, symbols.shape[1], x)


def positions(start: int, length: int, like: Tensor) -> Tensor:
    """Return sinusoidal position embeddings (length, D) for ``like`` (…, D) (Vaswani et al. 2017, section 3.5)."""
    half = like.shape[-1] // 2
    rates = torch.exp(torch.arange(half, device=like.device) * (-math.log(10_000) / half))
    angles = torch.arange(start, start + length, device=like.device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1).to(like.dtype)


def padding_bias(valid: Tensor) -> Tensor:
    """Return the attention bias that hides padding: (B, N) bool -> (B, 1, 1, N)."""
    return torch.zeros_like(valid, dtype=torch.float32).masked_fill(~valid, float("-inf"))[:, None, None]


def causal_bias(length: int, start: int, device: torch.device) -> Tensor | None:
    """Return the bias (length, start + length) that hides later positions; None for one position, the last."""
    if length == 1:
        return None
    return torch.full((length, start + length), float("-inf"), device=device).triu(start + 1)


def select_rows(past: list[KeysValues], rows: Tensor) -> list[KeysValues]:
    """Return the keys and values of these rows (R,) int64 of the batch."""
    return [(keys[rows], values[rows]) for keys, values in past]


def word_loss(
    features: Tensor, embedding: nn.Embedding, target: Tensor, valid: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Return the training loss and the cross-entropy, both in nats per word, without padding.

    Args:
        features: decoder output (B, N, embed_dim).
        embedding: embedding of words, which is also the output layer (Press & Wolf 2017).
        target: words (B, N) int64.
        valid: mask of the words that count, (B, N) bool.
    """
    logits = F.linear(features[valid], embedding.weight).float().log_softmax(-1)  # (W, vocab)
    nats = -logits.gather(1, target[valid][:, None]).mean()
    return (1 - label_smoothing) * nats - label_smoothing * logits.mean(), nats.detach()
