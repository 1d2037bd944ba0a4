"""The network of an agent: a small convolutional network over codes or frames, in plain torch."""

import math

import torch
from torch import Tensor, nn

from agents.config import MAX_FEATURE_SIDE, NetworkConfig


class Network(nn.Module):
    """Maps observations (B, *shape) to action logits (B, A) and values (B,) in units of reward.

    Args:
        config: sizes of the network.
        codebook: (K, D) codebook vectors, from which the embedding is initialized: similar codes start out similar.
    """

    def __init__(self, config: NetworkConfig, codebook: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        grid = self.grid = config.observation_shape[-2:] if config.codebook_size else config.observation_shape[:2]
        if config.codebook_size:
            self.embedding = nn.Embedding(config.codebook_size, config.embed_dim)
            if codebook is not None:
                projected = codebook @ torch.randn(codebook.shape[1], config.embed_dim)
                self.embedding.weight.data.copy_(projected / projected.square().mean().sqrt())
        channels = (
            config.embed_dim * math.prod(config.observation_shape[:-2])
            if config.codebook_size
            else config.observation_shape[2]
        )
        layers: list[nn.Module] = []
        while not layers or max(grid) > MAX_FEATURE_SIDE:
            layers += [nn.Conv2d(channels, config.conv_channels, 3, 2, 1), nn.ReLU()]
            channels, grid = config.conv_channels, tuple((side + 1) // 2 for side in grid)
        layers += [nn.Flatten(), nn.Linear(config.conv_channels * math.prod(grid), config.hidden_units), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.policy = nn.Linear(config.hidden_units, config.num_actions)
        self.value = nn.Linear(config.hidden_units, 1)
        for head in (self.policy, self.value):  # the initial policy is nearly uniform
            nn.init.normal_(head.weight, std=0.01 / math.sqrt(config.hidden_units))
            nn.init.zeros_(head.bias)

    def features(self, observations: Tensor) -> Tensor:
        """Return the features (B, hidden) of observations (B, *shape) that both heads share."""
        if self.config.codebook_size:
            embedded = self.embedding(observations.long().reshape(len(observations), -1, *self.grid))
            return self.body(embedded.permute(0, 1, 4, 2, 3).flatten(1, 2))  # (B, history·C, h, w)
        return self.body(observations.permute(0, 3, 1, 2).float() / 127.5 - 1)  # (B, 3·history, H, W)

    def logits(self, features: Tensor) -> Tensor:
        """Return the action logits (B, A) of features (B, hidden)."""
        return self.policy(features)

    def values(self, features: Tensor) -> Tensor:
        """Return the expected returns (B,) of features (B, hidden)."""
        return self.value(features).squeeze(-1) * self.config.value_scale

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(observations)
        return self.logits(features), self.values(features)
