"""Pixel likelihoods: a distribution over the 256 values of every pixel and channel from a decoder's outputs."""

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.experiments.likelihood.config import Likelihood
from worldmodel.models.vqvae import denormalize

OUTPUTS_PER_CHANNEL = {"logistic": 2, "softmax": 256}  # decoder outputs for each image channel
MIN_LOG_SCALE, MAX_LOG_SCALE = -8.0, 3.0  # of a logistic, where black and white are 1 apart
LOG_SCALE_OFFSET = -2.0  # log scale of an output of 0: half the mass lies within ±0.15


def log_likelihood(outputs: Tensor, images: Tensor, likelihood: Likelihood) -> Tensor:
    """Return log p(x | z) in nats of each image, summed over its pixels and channels.

    Images are integers from 0 to 255 whose probabilities sum to 1, so these are likelihoods of the data, not densities.

    Args:
        outputs: (B, OUTPUTS_PER_CHANNEL · C, H, W) of the decoder.
        images: (B, H, W, C) uint8.

    Returns:
        (B,) float32.

    Raises:
        ValueError: if the images are not uint8, or the outputs have another shape than the images need.
    """
    expected = (len(images), OUTPUTS_PER_CHANNEL[likelihood] * images.shape[-1], *images.shape[1:3])
    if images.dtype != torch.uint8 or outputs.shape != expected:
        raise ValueError(
            f"a {likelihood} likelihood of uint8 images {tuple(images.shape)} needs outputs {expected}, "
            f"got {images.dtype} images and outputs {tuple(outputs.shape)}"
        )
    x = images.movedim(-1, 1)  # (B, C, H, W)
    if likelihood == "logistic":
        return _discretized_logistic(outputs.float(), x).sum((1, 2, 3))
    logits = outputs.float().unflatten(1, (256, -1))  # (B, 256, C, H, W)
    return -F.cross_entropy(logits, x.long(), reduction="none").sum((1, 2, 3))


def mode(outputs: Tensor, likelihood: Likelihood) -> Tensor:
    """Return the most likely value of each pixel: (B, OUTPUTS_PER_CHANNEL · C, H, W) -> (B, H, W, C) uint8."""
    if likelihood == "logistic":
        return denormalize(outputs.chunk(2, 1)[0])
    return outputs.unflatten(1, (256, -1)).argmax(1).to(torch.uint8).movedim(1, -1).contiguous()


def _discretized_logistic(outputs: Tensor, x: Tensor) -> Tensor:
    """Log-probability of each value (Salimans et al. 2017, section 2.1): (B, 2·C, H, W), (B, C, H, W) -> (B, C, H, W).

    A value has the mass between the midpoints to its neighbors; 0 and 255 also have the tails. With these midpoints at
    ``high`` and ``low`` in units of the scale, σ(high) - σ(low) = σ(high) · σ(-low) · (1 - exp(low - high)): a product,
    whose logarithm is exact in the tails, too.
    """
    mean, log_scale = outputs.chunk(2, 1)  # of values between -0.5 and 0.5
    scale = (log_scale + LOG_SCALE_OFFSET).clamp(MIN_LOG_SCALE, MAX_LOG_SCALE).exp()
    distance = x.float() / 255 - 0.5 - mean
    high, low = (distance + 0.5 / 255) / scale, (distance - 0.5 / 255) / scale
    log_width = (-torch.expm1(-1 / (255 * scale))).log()
    inner = F.logsigmoid(high) + F.logsigmoid(-low) + log_width
    return torch.where(x == 0, F.logsigmoid(high), torch.where(x == 255, F.logsigmoid(-low), inner))
