"""The table of autoregressive networks over a grid or sequence of codes, conditioned at each position.

Each has two methods: ``forward(codes, condition)`` returns the logits of all positions in parallel, and
``sample(condition, uniforms, temperature)`` samples codes one after the other.
"""

import torch
from torch import Tensor, nn

from worldmodel.models.autoregressive.pixelcnn import PixelCNN
from worldmodel.models.autoregressive.wavefront import WavefrontNet
from worldmodel.models.autoregressive.wavenet import WaveNet
from worldmodel.models.config import NetKind


def build_autoregressive(
    kind: NetKind,
    embedding: nn.Embedding,
    condition_channels: int,
    hidden_channels: int,
    num_layers: int,
    kernel_size: int = 3,
    dropout: float = 0.0,
    dilation_cycle: int = 9,
) -> PixelCNN | WavefrontNet | WaveNet:
    """Build a network of the given kind; :class:`PixelCNN` and :class:`WaveNet` describe the arguments.

    ``kernel_size`` is for a pixelcnn only, ``dilation_cycle`` for a wavenet only, and ``dropout`` for both.

    Raises:
        ValueError: if there is no such kind.
    """
    sizes = condition_channels, hidden_channels, num_layers
    if kind == "pixelcnn":
        return PixelCNN(embedding, *sizes, kernel_size, dropout)
    if kind == "wavefront":
        return WavefrontNet(embedding, *sizes)
    if kind == "wavenet":
        return WaveNet(embedding, *sizes, dilation_cycle, dropout)
    raise ValueError(f"the autoregressive net must be pixelcnn, wavefront or wavenet, got {kind}")


def standardize(codebook: Tensor) -> Tensor:
    """Shift and scale code vectors (K, D) to zero mean and unit standard deviation."""
    vectors = codebook - codebook.mean(0)
    return vectors / vectors.std()


@torch.no_grad()
def init_from_codebook(net: PixelCNN | WavefrontNet | WaveNet, vectors: Tensor) -> None:
    """Initialize embeddings and output weights with ``vectors`` (K, D), so that similar codes start out similar."""
    net.embedding.weight.copy_(vectors)
    net.logits.weight.copy_(vectors / vectors.shape[1] ** 0.5)
