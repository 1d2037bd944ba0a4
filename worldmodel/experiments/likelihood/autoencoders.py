"""Three autoencoders with a likelihood that differ only in their latents (van den Oord et al. 2017, section 4.1).

They are the VQ-VAE, the variational autoencoder with normal latents, and the one with categorical latents that is
trained with VIMCO.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.experiments.likelihood import elbo
from worldmodel.experiments.likelihood.config import AutoencoderConfig
from worldmodel.experiments.likelihood.pixel_likelihood import OUTPUTS_PER_CHANNEL, log_likelihood, mode
from worldmodel.models.config import VQVAEConfig
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.models.quantizers.interface import Quantized, perplexity
from worldmodel.models.quantizers.kinds import build_quantizer
from worldmodel.models.quantizers.nearest import VectorQuantizer
from worldmodel.models.vqvae import Decoder, Encoder, normalize_for

MIN_GRADIENT_WEIGHT = 1e-6  # importance weight below which VIMCO's decoder skips a sample


class Bound(NamedTuple):
    """A lower bound on log p(x), as an upper bound on the nats of an image: distortion + rate."""

    distortion: Tensor  # (B,) -log p(x | z)
    rate: Tensor  # (B,) nats of the latents under the prior
    joint: Tensor  # (B,) distortion + rate, or with several samples the importance bound, which is lower on average


class Autoencoder(nn.Module):
    """Base class of the three autoencoders.

    Args:
        outputs: number of channels of the encoder's output.
        inputs: number of channels of the decoder's input.
    """

    def __init__(self, config: AutoencoderConfig, outputs: int, inputs: int) -> None:
        super().__init__()
        self.config = config
        sizes = VQVAEConfig(
            config.in_channels,
            config.hidden_channels,
            config.residual_channels,
            config.num_residual_blocks,
            config.num_downsamples,
        )
        channels = OUTPUTS_PER_CHANNEL[config.likelihood] * config.in_channels
        self.encoder = Encoder(replace(sizes, quantizer=QuantizerConfig(code_dim=outputs)))
        self.decoder = Decoder(replace(sizes, in_channels=channels, quantizer=QuantizerConfig(code_dim=inputs)))

    def encode_features(self, images: Tensor) -> Tensor:
        """Return the encoder's output for images: (B, H, W, C) uint8 -> (B, outputs, *grid)."""
        return self.encoder(normalize_for(self.encoder, images))

    def log_likelihood(self, images: Tensor, vectors: Tensor) -> Tensor:
        """Return log p(x | z) in nats: images (B, H, W, C) uint8, decoder inputs (B, k, inputs, *grid) -> (B, k)."""
        repeated = images.repeat_interleave(vectors.shape[1], 0)
        outputs = self.decoder(vectors.flatten(0, 1))
        return log_likelihood(outputs, repeated, self.config.likelihood).unflatten(0, (-1, vectors.shape[1]))

    def decode_features(self, vectors: Tensor) -> Tensor:
        """Return the most likely images: decoder inputs (B, inputs, *grid) -> (B, H, W, C) uint8."""
        return mode(self.decoder(vectors), self.config.likelihood)

    def bound_metrics(self, images: Tensor, bound: Bound) -> dict[str, Tensor]:
        """Return the mean of each part of a bound, in bits per dimension of the images."""
        nats_per_bit = images[0].numel() * math.log(2)
        parts = {"distortion": bound.distortion, "rate": bound.rate, "bits_per_dim": bound.joint}
        return {name: part.detach().mean() / nats_per_bit for name, part in parts.items()}


class DiscreteAutoencoder(Autoencoder):
    """The VQ-VAE with N code vectors at each position, from one codebook.

    Its codes are a grid (N·H, W), in which each row of positions becomes N consecutive rows, for a spatial prior.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        channels = config.num_latents * config.quantizer.code_dim
        super().__init__(config, channels, channels)
        self.quantizer = build_quantizer(config.quantizer)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the training loss, equation 3: nats per dimension of the image plus the quantizer's terms.

        The paper leaves the weights of these terms open. As a sum, an image's nats drown the distances, the encoder
        drifts away from the codebook, and little is learned; the authors' own notebook uses means.
        """
        quantized = self.quantizer(self._split_latents(self.encode_features(images)), generator)
        nats = -self.log_likelihood(images, quantized.vectors.flatten(1, 2)[:, None])[:, 0]
        metrics = self.bound_metrics(images, self._bound(nats, quantized.codes))
        metrics |= {"quantizer_loss": quantized.loss.detach(), "perplexity": perplexity(quantized.counts)}
        return nats.mean() / images[0].numel() + quantized.loss, metrics

    def bound(self, images: Tensor, num_samples: int = 1, generator: torch.Generator | None = None) -> Bound:
        """Return the bound log p(x | z) p(z) of the encoder's codes under a uniform prior (section 3.2)."""
        codes = self.encode(images)
        return self._bound(-self.log_likelihood_of(images, codes[:, None])[:, 0], codes)

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, H, W, C) uint8 as codes (B, N·H, W) int64."""
        return self.quantizer.encode(self._split_latents(self.encode_features(images))).movedim(1, 2).flatten(1, 2)

    def sample_codes(self, images: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Sample codes as in soft EM: images (B, H, W, C) uint8 -> codes (B, count, N·H, W) int64."""
        if not isinstance(self.quantizer, VectorQuantizer):
            raise ValueError(f"only a quantizer of kind nearest samples codes, got kind {self.quantizer.config.kind}")
        z = self._split_latents(self.encode_features(images))
        codes = self.quantizer.sample_codes(z, count, generator)  # (B, count, N, H, W)
        return codes.movedim(2, 3).flatten(2, 3)

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes (B, N·H, W) int64 to images (B, H, W, C) uint8."""
        return self.decode_features(self._embed(codes))

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Return the reconstructions of images (B, H, W, C) uint8 and the quantizer's output."""
        quantized = self.quantizer(self._split_latents(self.encode_features(images)))
        return self.decode_features(quantized.vectors.flatten(1, 2)), quantized

    def log_likelihood_of(self, images: Tensor, codes: Tensor) -> Tensor:
        """Return log p(x | z) in nats of given codes: images (B, H, W, C) uint8, codes (B, k, N·H, W) -> (B, k)."""
        return self.log_likelihood(images, self._embed(codes.flatten(0, 1)).unflatten(0, codes.shape[:2]))

    def log_likelihood_of_each_code(self, images: Tensor, codes: Tensor, position: int) -> Tensor:
        """Return log p(x | z) with each of the K codes at one position: images, their codes (B, N·H, W) -> (B, K).

        Args:
            position: flat index of the latent in N·H, W.
        """
        size = self.config.quantizer.codebook_size
        changed = codes.flatten(1)[:, None].repeat(1, size, 1)  # (B, K, N·H·W)
        changed[:, :, position] = torch.arange(size, device=codes.device)
        return self.log_likelihood_of(images, changed.unflatten(2, codes.shape[1:]))

    def _bound(self, nats: Tensor, codes: Tensor) -> Bound:
        rate = torch.full_like(nats, codes[0].numel() * math.log(self.config.quantizer.codebook_size))
        return Bound(nats, rate, nats + rate)

    def _split_latents(self, z: Tensor) -> Tensor:
        """Split (B, D·N, H, W) into (B, D, N, H, W)."""
        return z.unflatten(1, (-1, self.config.num_latents))

    def _embed(self, codes: Tensor) -> Tensor:
        """Return the decoder inputs (B, D·N, H, W) of codes (B, N·H, W)."""
        split = codes.unflatten(1, (-1, self.config.num_latents)).movedim(1, 2)  # (B, N, H, W)
        return self.quantizer.decode(split).flatten(1, 2)


class PosteriorSamples(NamedTuple):
    """Samples from q(z | x) of a variational autoencoder, k for each image."""

    vectors: Tensor  # (B, k, inputs, H, W) decoder inputs
    log_prior: Tensor  # (B, k) log p(z)
    log_posterior: Tensor  # (B, k) log q(z | x)
    rate: Tensor  # (B,) KL(q || p)


class VariationalAutoencoder(Autoencoder, ABC):
    """An autoencoder whose encoder gives a distribution, which subclasses define in ``sample_posterior``."""

    @abstractmethod
    def sample_posterior(self, images: Tensor, num_samples: int, generator: torch.Generator | None) -> PosteriorSamples:
        """Sample ``num_samples`` latents for each image (B, H, W, C) uint8."""

    def bound(self, images: Tensor, num_samples: int = 1, generator: torch.Generator | None = None) -> Bound:
        """Return the evidence lower bound, with distortion averaged over samples, and the importance bound."""
        latents = self.sample_posterior(images, num_samples, generator)
        return self._bound(latents, self.log_likelihood(images, latents.vectors))[0]

    def reconstruct(self, images: Tensor) -> tuple[Tensor, PosteriorSamples]:
        """Return the reconstructions of images (B, H, W, C) uint8 and the latents sampled for them."""
        latents = self.sample_posterior(images, 1, torch.Generator(images.device).manual_seed(0))
        return self.decode_features(latents.vectors[:, 0]), latents

    def _bound(self, latents: PosteriorSamples, log_likelihood: Tensor) -> tuple[Bound, Tensor]:
        log_weights = log_likelihood + latents.log_prior - latents.log_posterior  # (B, k)
        distortion, importance = -log_likelihood.mean(1), -elbo.importance_bound(log_weights)
        joint = importance if log_weights.shape[1] > 1 else distortion + latents.rate  # same mean, lower variance
        return Bound(distortion, latents.rate, joint), log_weights


class GaussianAutoencoder(VariationalAutoencoder):
    """Normal latents under a standard normal prior, with reparametrized samples (Kingma & Welling 2014)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config, 2 * config.num_latents, config.num_latents)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the training loss: the evidence lower bound from one sample, in nats per dimension of the image."""
        bound = self.bound(images, 1, generator)
        return bound.joint.mean() / images[0].numel(), self.bound_metrics(images, bound)

    def sample_posterior(self, images: Tensor, num_samples: int, generator: torch.Generator | None) -> PosteriorSamples:
        """Sample ``num_samples`` latents for each image (B, H, W, C) uint8."""
        mean, log_variance = self.encode_features(images).float()[:, None].chunk(2, 2)  # (B, 1, N, H, W)
        shape = (len(mean), num_samples, *mean.shape[2:])
        noise = torch.randn(shape, generator=generator, device=mean.device)
        z = mean + (0.5 * log_variance).exp() * noise
        constant = math.log(2 * math.pi)
        return PosteriorSamples(
            vectors=z,
            log_prior=-0.5 * (z.square() + constant).flatten(2).sum(2),
            log_posterior=-0.5 * (noise.square() + log_variance + constant).flatten(2).sum(2),
            rate=elbo.gaussian_kl(mean, log_variance),
        )


class CategoricalAutoencoder(VariationalAutoencoder):
    """Categorical latents under a uniform prior, embedded as code vectors for the decoder and trained with VIMCO."""

    def __init__(self, config: AutoencoderConfig) -> None:
        codes, dim = config.quantizer.codebook_size, config.quantizer.code_dim
        super().__init__(config, config.num_latents * codes, config.num_latents * dim)
        self.codebook = nn.Parameter(torch.randn(codes, dim))

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the importance bound in nats per dimension of the image as the loss, with VIMCO's gradient."""
        latents = self.sample_posterior(images, self.config.num_samples, generator)
        bound, log_weights = self._bound(latents, self._log_likelihood_sparse_gradient(images, latents))
        gradient = -elbo.vimco_objective(log_weights, latents.log_posterior)
        loss = bound.joint.detach() + gradient - gradient.detach()
        return loss.mean() / images[0].numel(), self.bound_metrics(images, bound)

    def _log_likelihood_sparse_gradient(self, images: Tensor, latents: PosteriorSamples) -> Tensor:
        """Return log p(x | z) of all samples, (B, k), with a gradient only for those that matter to the bound.

        The gradient of the others would be as small as their weight, and computing it takes most of the time.
        """
        with torch.no_grad():
            all_nats = self.log_likelihood(images, latents.vectors)
            weights = (all_nats + latents.log_prior - latents.log_posterior).softmax(1)
        rows, columns = torch.where(weights > MIN_GRADIENT_WEIGHT)
        nats = self.log_likelihood(images[rows], latents.vectors[rows, columns][:, None])[:, 0]
        return all_nats.index_put((rows, columns), nats)

    def sample_posterior(self, images: Tensor, num_samples: int, generator: torch.Generator | None) -> PosteriorSamples:
        """Sample ``num_samples`` latents for each image (B, H, W, C) uint8."""
        log_probabilities = self.log_posterior(images)  # (B, N, H, W, K)
        probabilities = log_probabilities.detach().exp().flatten(0, -2)
        codes = torch.multinomial(probabilities, num_samples, replacement=True, generator=generator)  # (B·N·H·W, k)
        return self.samples_from_codes(log_probabilities, codes.view(*log_probabilities.shape[:-1], num_samples))

    def log_posterior(self, images: Tensor) -> Tensor:
        """Return log q of every code of every latent, (B, N, H, W, K), for images (B, H, W, C) uint8."""
        logits = self.encode_features(images).float().unflatten(1, (-1, self.config.num_latents))  # (B, K, N, H, W)
        return logits.movedim(1, -1).log_softmax(-1)

    def samples_from_codes(self, log_probabilities: Tensor, codes: Tensor) -> PosteriorSamples:
        """Return posterior samples for codes (B, N, H, W, k) sampled with log-probabilities (B, N, H, W, K)."""
        vectors = F.embedding(codes, self.codebook).permute(0, 4, 1, 5, 2, 3)  # (B, k, N, D, H, W)
        log_posterior = log_probabilities.gather(-1, codes).flatten(1, 3).sum(1)
        return PosteriorSamples(
            vectors=vectors.flatten(2, 3),
            log_prior=torch.full_like(log_posterior, -codes[0, ..., 0].numel() * math.log(len(self.codebook))),
            log_posterior=log_posterior,
            rate=elbo.categorical_kl(log_probabilities),
        )


AnyAutoencoder = DiscreteAutoencoder | VariationalAutoencoder


def build_autoencoder(config: AutoencoderConfig) -> AnyAutoencoder:
    """Build the autoencoder of the configured kind."""
    kinds = {"vqvae": DiscreteAutoencoder, "vae": GaussianAutoencoder, "vimco": CategoricalAutoencoder}
    return kinds[config.kind](config)
