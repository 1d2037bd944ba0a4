"""The nets that draw a grid or a line of codes one after the other, told a condition at each place: which there are.

Each has two faces: ``forward(codes, condition)`` gives the logits of all places at once, ``sample(condition, uniforms,
temperature)`` draws.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from worldmodel.models.autoregressive.pixelcnn import PixelCNN
from worldmodel.models.autoregressive.wavefront import WavefrontNet
from worldmodel.models.autoregressive.wavenet import WaveNet

FlatKind = Literal["pixelcnn", "wavefront"]  # those over an (H, W) grid
Kind = Literal["pixelcnn", "wavefront", "wavenet"]


def autoregressive(
    kind: Kind,
    embedding: nn.Embedding,
    condition: int,
    hidden: int,
    layers: int,
    kernel: int = 3,
    dropout: float = 0.0,
    cycle: int = 9,
) -> PixelCNN | WavefrontNet | WaveNet:
    """The net of that kind; what the arguments say stands in :class:`PixelCNN` and :class:`WaveNet`.

    A kernel is for the one alone, a cycle for the other, and dropout for both.

    Raises:
        ValueError: if there is no such kind.
    """
    if kind == "pixelcnn":
        return PixelCNN(embedding, condition, hidden, layers, kernel, dropout)
    if kind == "wavefront":
        return WavefrontNet(embedding, condition, hidden, layers)
    if kind == "wavenet":
        return WaveNet(embedding, condition, hidden, layers, cycle, dropout)
    raise ValueError(f"the autoregressive net must be pixelcnn, wavefront or wavenet, got {kind}")


def standardized(codebook: Tensor) -> Tensor:
    """The vectors of a codebook (K, D) about zero, with deviation one."""
    vectors = codebook - codebook.mean(0)
    return vectors / vectors.std()


@torch.no_grad()
def start_near(net: PixelCNN | WavefrontNet | WaveNet, vectors: Tensor) -> None:
    """Let codes with near ``vectors`` (K, D) have near embeddings and near logits from the first step on."""
    net.embedding.weight.copy_(vectors)
    net.logits.weight.copy_(vectors / vectors.shape[1] ** 0.5)
