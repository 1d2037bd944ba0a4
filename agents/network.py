"""What an agent thinks with: a small convolutional net over codes or frames, in plain torch."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldmodel.checks import check

SMALLEST = 6  # the grid is halved until it has no more places a side than this


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of an agent's net.

    Attributes:
        width: channels of its convolutions.
        hidden: units of the layer that the two heads share.
        embedding: numbers that stand for a code; at first a random projection of its vector in the VQ-VAE's codebook.
        codes: in the codebook, or 0 for frames; that of the world.
        shape: of an observation, that of the world: (h, w) codes, or (history, h, w), or (H, W, 3·history) frames.
        actions: number of actions; that of the world.
        value_scale: how large returns are, about; 0 measures it on the world's rewards.
    """

    width: int = 32
    hidden: int = 256
    embedding: int = 16
    codes: int = 0
    shape: tuple[int, ...] = ()
    actions: int = 0
    value_scale: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))  # YAML gives lists
        if len(self.shape) == 4:  # an older agent's (history, H, W, 3): the same channels in the same order
            history, height, width, channels = self.shape
            object.__setattr__(self, "shape", (height, width, channels * history))
        check("model", self, ("width", "hidden", "embedding"), ("codes", "actions", "value_scale"))


class Network(nn.Module):
    """Observations (B, *shape) -> logits of the actions (B, A) and values (B,), in units of reward.

    Args:
        config: sizes.
        codebook: (K, D) vectors of the codes that are seen: near ones are near at first.
    """

    def __init__(self, config: NetworkConfig, codebook: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        places = self.places = config.shape[-2:] if config.codes else config.shape[:2]
        if config.codes:
            self.embedding = nn.Embedding(config.codes, config.embedding)
            if codebook is not None:
                projected = codebook @ torch.randn(codebook.shape[1], config.embedding)
                self.embedding.weight.data.copy_(projected / projected.square().mean().sqrt())
        channels = config.embedding * math.prod(config.shape[:-2]) if config.codes else config.shape[2]
        layers: list[nn.Module] = []
        while not layers or max(places) > SMALLEST:
            layers += [nn.Conv2d(channels, config.width, 3, 2, 1), nn.ReLU()]
            channels, places = config.width, tuple((side + 1) // 2 for side in places)
        layers += [nn.Flatten(), nn.Linear(config.width * math.prod(places), config.hidden), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.policy = nn.Linear(config.hidden, config.actions)
        self.value = nn.Linear(config.hidden, 1)
        for head in (self.policy, self.value):  # an agent begins undecided
            nn.init.normal_(head.weight, std=0.01 / math.sqrt(config.hidden))
            nn.init.zeros_(head.bias)

    def features(self, observations: Tensor) -> Tensor:
        """Observations (B, *shape) -> what both heads look at (B, hidden)."""
        if self.config.codes:
            pictures = self.embedding(observations.long().reshape(len(observations), -1, *self.places))
            return self.body(pictures.permute(0, 1, 4, 2, 3).flatten(1, 2))  # (B, history·C, h, w)
        return self.body(observations.permute(0, 3, 1, 2).float() / 127.5 - 1)  # (B, 3·history, H, W)

    def logits(self, features: Tensor) -> Tensor:
        """Features (B, hidden) -> logits of the actions (B, A)."""
        return self.policy(features)

    def values(self, features: Tensor) -> Tensor:
        """Features (B, hidden) -> expected returns (B,)."""
        return self.value(features).squeeze(-1) * self.config.value_scale

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(observations)
        return self.logits(features), self.values(features)
