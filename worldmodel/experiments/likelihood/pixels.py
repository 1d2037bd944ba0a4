"""What a decoder's outputs say of a picture: a distribution over the 256 values of every pixel and channel."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.models.vqvae import denormalize

Likelihood = Literal["logistic", "softmax"]
OUTPUTS = {"logistic": 2, "softmax": 256}  # that a decoder gives for each channel of a picture
NARROWEST, WIDEST = -8.0, 3.0  # logarithms of the scale of a logistic, where black and white are 1 apart
START = -2.0  # the one that an output of 0 means: half the mass lies within ±0.15


def log_likelihood(outputs: Tensor, pictures: Tensor, likelihood: Likelihood) -> Tensor:
    """log p(x | z) in nats of each picture, a sum over its pixels and channels.

    Pictures are the whole numbers that they are, 0 to 255, and the probabilities of those add up to 1, so that these
    are likelihoods of the data, not densities.

    Args:
        outputs: (B, OUTPUTS · C, H, W) of the decoder.
        pictures: (B, H, W, C) uint8.

    Returns:
        (B,) float32.

    Raises:
        ValueError: if pictures are no uint8, or the outputs are of other pictures.
    """
    expected = (len(pictures), OUTPUTS[likelihood] * pictures.shape[-1], *pictures.shape[1:3])
    if pictures.dtype != torch.uint8 or outputs.shape != expected:
        raise ValueError(
            f"a {likelihood} likelihood of uint8 pictures {tuple(pictures.shape)} needs outputs {expected}, "
            f"got {pictures.dtype} pictures and outputs {tuple(outputs.shape)}"
        )
    x = pictures.movedim(-1, 1)  # (B, C, H, W)
    if likelihood == "logistic":
        return _logistic(outputs.float(), x).sum((1, 2, 3))
    logits = outputs.float().unflatten(1, (256, -1))  # (B, 256, C, H, W)
    return -F.cross_entropy(logits, x.long(), reduction="none").sum((1, 2, 3))


def likeliest(outputs: Tensor, likelihood: Likelihood) -> Tensor:
    """The picture that is likeliest, each pixel by itself: (B, OUTPUTS · C, H, W) -> (B, H, W, C) uint8."""
    if likelihood == "logistic":
        return denormalize(outputs.chunk(2, 1)[0])
    return outputs.unflatten(1, (256, -1)).argmax(1).to(torch.uint8).movedim(1, -1).contiguous()


def _logistic(outputs: Tensor, x: Tensor) -> Tensor:
    """The discretised logistic (Salimans et al. 2017, section 2.1) of each value: (B, 2·C, H, W), (B, C, H, W) -> same.

    A value has the mass between the middles to its neighbours, and 0 and 255 have the tails beyond as well. With those
    middles at ``high`` and ``low`` in units of the scale, σ(high) - σ(low) = σ(high) · σ(-low) · (1 - exp(low - high)):
    a product, so that its logarithm is exact far out, too.
    """
    mean, log_scale = outputs.chunk(2, 1)  # of values between -0.5 and 0.5
    scale = (log_scale + START).clamp(NARROWEST, WIDEST).exp()
    distance = x.float() / 255 - 0.5 - mean
    high, low = (distance + 0.5 / 255) / scale, (distance - 0.5 / 255) / scale
    between = (-torch.expm1(-1 / (255 * scale))).log()
    inner = F.logsigmoid(high) + F.logsigmoid(-low) + between
    return torch.where(x == 0, F.logsigmoid(high), torch.where(x == 255, F.logsigmoid(-low), inner))
