"""The nets that draw a grid of codes one after the other, told a condition at each place: which ones there are.

Each is made of an embedding and the sizes of the condition and of itself, and has two faces: ``forward(codes,
condition)`` gives all logits at once, ``sample(condition, uniforms, temperature)`` draws.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from worldmodel.core.wavefront import WavefrontNet

Kind = Literal["pixelcnn", "wavefront"]
NETS = {"wavefront": WavefrontNet}


def autoregressive(kind: Kind, embedding: nn.Embedding, condition: int, hidden: int, layers: int) -> nn.Module:
    """Make the net of that kind; see it for its arguments.

    Raises:
        ValueError: if there is no such kind.
    """
    if kind not in NETS:
        raise ValueError(f"the autoregressive net must be one of {', '.join(NETS)}, got {kind}")
    return NETS[kind](embedding, condition, hidden, layers)


def standardized(codebook: Tensor) -> Tensor:
    """The vectors of a codebook (K, D) about zero, with deviation one."""
    vectors = codebook - codebook.mean(0)
    return vectors / vectors.std()


@torch.no_grad()
def start_near(net: nn.Module, vectors: Tensor) -> None:
    """Let codes with near ``vectors`` (K, D) have near embeddings and near logits from the first step on."""
    net.embedding.weight.copy_(vectors)
    net.logits.weight.copy_(vectors / vectors.shape[1] ** 0.5)
