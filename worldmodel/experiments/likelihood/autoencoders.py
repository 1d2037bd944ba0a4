"""Three autoencoders that say how likely a picture is, alike but for their latents.

They are the VQ-VAE, the variational autoencoder with normal latents, and the one with categorical latents that learns
by VIMCO (van den Oord et al. 2017, section 4.1).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.experiments.likelihood import elbo
from worldmodel.experiments.likelihood.architecture import Autoencoder, AutoencoderConfig, Bound
from worldmodel.models.quantizers.config import Quantized
from worldmodel.models.quantizers.nearest import build, perplexity

NEGLIGIBLE = 1e-6  # share of a draw in the gradient of VIMCO's decoder


class DiscreteAutoencoder(Autoencoder):
    """The VQ-VAE with N code vectors at each position, of one codebook.

    Its codes are a grid (N·H, W): the N rows of a row of positions below each other, for a prior to read in order.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        channels = config.latents * config.quantizer.dim
        super().__init__(config, channels, channels)
        self.quantizer = build(config.quantizer)

    def forward(self, pictures: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss, equation 3: nats per dimension of the picture, and the quantizer's terms.

        The paper leaves open how much these weigh beside each other. As sums, a picture's nats drown the distances, the
        encoder runs away from the codebook, and little is learnt; means are what the authors' own notebook takes.
        """
        quantized = self.quantizer(self._apart(self.encoded(pictures)), generator)
        nats = -self.log_likelihood(pictures, quantized.vectors.flatten(1, 2)[:, None])[:, 0]
        metrics = self.measured(pictures, self._bound(nats, quantized.codes))
        metrics |= {"quantizer_loss": quantized.loss.detach(), "perplexity": perplexity(quantized.counts)}
        return nats.mean() / pictures[0].numel() + quantized.loss, metrics

    def bound(self, pictures: Tensor, samples: int = 1, generator: torch.Generator | None = None) -> Bound:
        """log p(x | z) p(z) of the encoder's codes under a uniform prior (section 3.2); nothing is drawn."""
        codes = self.encode(pictures)
        return self._bound(-self.log_likelihood_of(pictures, codes[:, None])[:, 0], codes)

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, H, W, C) uint8 -> codes (B, N·H, W) int64."""
        return self.quantizer.encode(self._apart(self.encoded(pictures))).movedim(1, 2).flatten(1, 2)

    def samples(self, pictures: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Pictures (B, H, W, C) uint8 -> codes (B, count, N·H, W) int64 as soft EM draws them."""
        drawn = self.quantizer.samples(self._apart(self.encoded(pictures)), count, generator)  # (B, count, N, H, W)
        return drawn.movedim(2, 3).flatten(2, 3)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, N·H, W) int64 -> pictures (B, H, W, C) uint8."""
        return self.shown(self._vectors(codes))

    def reconstruct(self, pictures: Tensor) -> tuple[Tensor, Quantized]:
        """Pictures (B, H, W, C) uint8 through the bottleneck and back, with what the quantizer made of them."""
        quantized = self.quantizer(self._apart(self.encoded(pictures)))
        return self.shown(quantized.vectors.flatten(1, 2)), quantized

    def log_likelihood_of(self, pictures: Tensor, codes: Tensor) -> Tensor:
        """log p(x | z) in nats of any codes: pictures (B, H, W, C) uint8, codes (B, k, N·H, W) -> (B, k)."""
        return self.log_likelihood(pictures, self._vectors(codes.flatten(0, 1)).unflatten(0, codes.shape[:2]))

    def one_latent(self, pictures: Tensor, codes: Tensor, place: int) -> Tensor:
        """log p(x | z) with each of the K codes in one place: pictures, their codes (B, N·H, W) -> (B, K).

        Args:
            place: of the latent, counted along the rows.
        """
        size = self.config.quantizer.codes
        changed = codes.flatten(1)[:, None].repeat(1, size, 1)  # (B, K, N·H·W)
        changed[:, :, place] = torch.arange(size, device=codes.device)
        return self.log_likelihood_of(pictures, changed.unflatten(2, codes.shape[1:]))

    def _bound(self, nats: Tensor, codes: Tensor) -> Bound:
        rate = torch.full_like(nats, codes[0].numel() * math.log(self.config.quantizer.codes))
        return Bound(nats, rate, nats + rate)

    def _apart(self, z: Tensor) -> Tensor:
        """(B, D·N, H, W) -> (B, D, N, H, W)."""
        return z.unflatten(1, (-1, self.config.latents))

    def _vectors(self, codes: Tensor) -> Tensor:
        """Codes (B, N·H, W) -> decoder inputs (B, D·N, H, W)."""
        apart = codes.unflatten(1, (-1, self.config.latents)).movedim(1, 2)  # (B, N, H, W)
        return self.quantizer.decode(apart).flatten(1, 2)


class Drawn(NamedTuple):
    """Draws from q(z | x) of a variational autoencoder, k for each picture."""

    vectors: Tensor  # (B, k, inputs, H, W), what the decoder is given
    log_prior: Tensor  # (B, k) log p(z)
    log_posterior: Tensor  # (B, k) log q(z | x)
    rate: Tensor  # (B,) KL(q || p)


class VariationalAutoencoder(Autoencoder):
    """An autoencoder whose encoder gives a distribution; a kind of it says which, in ``draw``."""

    def draw(self, pictures: Tensor, samples: int, generator: torch.Generator | None) -> Drawn:
        """``samples`` draws for each picture (B, H, W, C) uint8."""
        raise NotImplementedError

    def bound(self, pictures: Tensor, samples: int = 1, generator: torch.Generator | None = None) -> Bound:
        """The evidence lower bound, its distortion a mean over draws, and the importance bound of several."""
        drawn = self.draw(pictures, samples, generator)
        return self._bound(drawn, self.log_likelihood(pictures, drawn.vectors))[0]

    def reconstruct(self, pictures: Tensor) -> tuple[Tensor, Drawn]:
        """Pictures (B, H, W, C) uint8 through the bottleneck and back, with the draw of latents that this took."""
        drawn = self.draw(pictures, 1, torch.Generator(pictures.device).manual_seed(0))
        return self.shown(drawn.vectors[:, 0]), drawn

    def _bound(self, drawn: Drawn, log_likelihood: Tensor) -> tuple[Bound, Tensor]:
        log_weights = log_likelihood + drawn.log_prior - drawn.log_posterior  # (B, k)
        distortion, together = -log_likelihood.mean(1), -elbo.importance_bound(log_weights)
        joint = together if log_weights.shape[1] > 1 else distortion + drawn.rate  # the same, with less chance in it
        return Bound(distortion, drawn.rate, joint), log_weights


class GaussianAutoencoder(VariationalAutoencoder):
    """Normal latents under a standard normal prior, by reparametrised draws (Kingma & Welling 2014)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config, 2 * config.latents, config.latents)

    def forward(self, pictures: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss: the evidence lower bound by one draw, in nats per dimension of the picture."""
        bound = self.bound(pictures, 1, generator)
        return bound.joint.mean() / pictures[0].numel(), self.measured(pictures, bound)

    def draw(self, pictures: Tensor, samples: int, generator: torch.Generator | None) -> Drawn:
        """``samples`` draws for each picture (B, H, W, C) uint8."""
        mean, log_variance = self.encoded(pictures).float()[:, None].chunk(2, 2)  # (B, 1, N, H, W)
        shape = (len(mean), samples, *mean.shape[2:])
        noise = torch.randn(shape, generator=generator, device=mean.device)
        z = mean + (0.5 * log_variance).exp() * noise
        constant = math.log(2 * math.pi)
        return Drawn(
            vectors=z,
            log_prior=-0.5 * (z.square() + constant).flatten(2).sum(2),
            log_posterior=-0.5 * (noise.square() + log_variance + constant).flatten(2).sum(2),
            rate=elbo.gaussian_rate(mean, log_variance),
        )


class CategoricalAutoencoder(VariationalAutoencoder):
    """Categorical latents under a uniform prior, each a code vector to the decoder, learnt by VIMCO."""

    def __init__(self, config: AutoencoderConfig) -> None:
        codes, dim = config.quantizer.codes, config.quantizer.dim
        super().__init__(config, config.latents * codes, config.latents * dim)
        self.codebook = nn.Parameter(torch.randn(codes, dim))

    def forward(self, pictures: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss: the importance bound, in nats per dimension of the picture, and VIMCO's gradient of it."""
        drawn = self.draw(pictures, self.config.samples, generator)
        bound, log_weights = self._bound(drawn, self._where_it_counts(pictures, drawn))
        gradient = -elbo.vimco(log_weights, drawn.log_posterior)
        loss = bound.joint.detach() + gradient - gradient.detach()
        return loss.mean() / pictures[0].numel(), self.measured(pictures, bound)

    def _where_it_counts(self, pictures: Tensor, drawn: Drawn) -> Tensor:
        """log p(x | z) of all draws, (B, k), with a gradient only for those with a share in the bound.

        The gradient of the others would be as small as their share, and takes most of the time.
        """
        with torch.no_grad():
            all_nats = self.log_likelihood(pictures, drawn.vectors)
            shares = (all_nats + drawn.log_prior - drawn.log_posterior).softmax(1)
        rows, columns = torch.where(shares > NEGLIGIBLE)
        nats = self.log_likelihood(pictures[rows], drawn.vectors[rows, columns][:, None])[:, 0]
        return all_nats.index_put((rows, columns), nats)

    def draw(self, pictures: Tensor, samples: int, generator: torch.Generator | None) -> Drawn:
        """``samples`` draws for each picture (B, H, W, C) uint8."""
        log_probabilities = self.log_posterior(pictures)  # (B, N, H, W, K)
        chances = log_probabilities.detach().exp().flatten(0, -2)
        codes = torch.multinomial(chances, samples, replacement=True, generator=generator)  # (B·N·H·W, k)
        return self.drawn(log_probabilities, codes.view(*log_probabilities.shape[:-1], samples))

    def log_posterior(self, pictures: Tensor) -> Tensor:
        """log q of every code of every latent, (B, N, H, W, K), for pictures (B, H, W, C) uint8."""
        logits = self.encoded(pictures).float().unflatten(1, (-1, self.config.latents))  # (B, K, N, H, W)
        return logits.movedim(1, -1).log_softmax(-1)

    def drawn(self, log_probabilities: Tensor, codes: Tensor) -> Drawn:
        """What it means that these codes (B, N, H, W, k) were drawn with log-probabilities (B, N, H, W, K)."""
        vectors = F.embedding(codes, self.codebook).permute(0, 4, 1, 5, 2, 3)  # (B, k, N, D, H, W)
        log_posterior = log_probabilities.gather(-1, codes).flatten(1, 3).sum(1)
        return Drawn(
            vectors=vectors.flatten(2, 3),
            log_prior=torch.full_like(log_posterior, -codes[0, ..., 0].numel() * math.log(len(self.codebook))),
            log_posterior=log_posterior,
            rate=elbo.categorical_rate(log_probabilities),
        )


def autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """The autoencoder of a kind."""
    kinds = {"vqvae": DiscreteAutoencoder, "vae": GaussianAutoencoder, "vimco": CategoricalAutoencoder}
    return kinds[config.kind](config)
