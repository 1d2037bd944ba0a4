"""Settings of all quantizers. Free of torch, so that ``--help`` is fast."""

from dataclasses import dataclass, fields
from typing import Literal

from worldmodel.checks import check_ranges

KIND_SETTINGS = {  # settings that only one kind of quantizer has
    "nearest": (
        "update",
        "init",
        "init_std",
        "commitment_weight",
        "codebook_weight",
        "ema_decay",
        "num_samples",
        "dead_code_reset_every",
    ),
    "gumbel": ("initial_temperature", "min_temperature", "anneal_steps", "kl_weight"),
    "semhash": ("noise_std", "discrete_fraction"),
}


@dataclass(frozen=True)
class QuantizerConfig:
    """Codebook size and training of a quantizer. Settings of one kind are refused by the others.

    Attributes:
        codebook_size: number of codes K; a power of two for kind semhash.
        code_dim: dimension D of a code vector.
        kind: kind of quantizer: nearest (nearest vector of a codebook), gumbel (Gumbel-softmax) or semhash (improved
            semantic hashing, noisy bits).
        update: codebook update of kind nearest: loss (van den Oord et al. 2017, eq. 3), ema (moving averages, eqs 6-8
            of its appendix) or soft_em (Roy et al. 2018, section 3).
        init: initial codebook of kind nearest: kmeans (of the first batch) or random (normally distributed).
        init_std: standard deviation of the initial code vectors, for kind nearest with init random.
        commitment_weight: weight of the commitment loss (beta), for kind nearest.
        codebook_weight: weight of the codebook loss, for kind nearest with update loss.
        ema_decay: decay of the moving averages (gamma) in [0, 1), for kind nearest with update ema or soft_em.
        num_samples: number of codes m sampled for each vector, for kind nearest with update soft_em.
        dead_code_reset_every: number of training steps after which codes unused since the last reset are moved onto
            vectors of the batch, for kind nearest; 0 disables it.
        initial_temperature: softmax temperature at the first training step, for kind gumbel.
        min_temperature: softmax temperature at the end of annealing, for kind gumbel.
        anneal_steps: number of training steps over which the temperature falls exponentially, for kind gumbel.
        kl_weight: weight of the KL divergence from uniform codes, in nats per code, for kind gumbel.
        noise_std: standard deviation of the training noise on the logits of the bits, for kind semhash.
        discrete_fraction: fraction of training examples whose decoder gets bits instead of sigmoids, for kind semhash.
    """

    codebook_size: int = 512
    code_dim: int = 64
    kind: Literal["nearest", "gumbel", "semhash"] = "nearest"
    update: Literal["loss", "ema", "soft_em"] = "ema"
    init: Literal["kmeans", "random"] = "kmeans"
    init_std: float = 1.0
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0
    ema_decay: float = 0.99
    num_samples: int = 10
    dead_code_reset_every: int = 100
    initial_temperature: float = 1.0
    min_temperature: float = 0.1
    anneal_steps: int = 5000
    kl_weight: float = 5e-4
    noise_std: float = 1.0
    discrete_fraction: float = 0.5

    def __post_init__(self) -> None:
        weights = ("commitment_weight", "codebook_weight", "kl_weight")
        check_ranges(
            "quantizer",
            self,
            counts=("codebook_size", "code_dim", "num_samples", "anneal_steps"),
            non_negative=("init_std", *weights, "dead_code_reset_every", "noise_std"),
            positive=("initial_temperature", "min_temperature"),
            fractions=("discrete_fraction",),
        )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"quantizer.ema_decay must be in [0, 1), got {self.ema_decay}")
        if self.min_temperature > self.initial_temperature:
            raise ValueError(
                f"quantizer.min_temperature must not be above quantizer.initial_temperature, "
                f"got {self.min_temperature} and {self.initial_temperature}"
            )
        if self.kind == "semhash" and (self.codebook_size == 1 or self.codebook_size.bit_count() > 1):
            power = 1 << self.codebook_size.bit_length()
            raise ValueError(
                f"quantizer.codebook_size must be a power of two for kind semhash, "
                f"got {self.codebook_size}; use {power}"
            )
        defaults = {field.name: field.default for field in fields(self)}
        for kind, names in KIND_SETTINGS.items():
            for name in names if kind != self.kind else ():
                if getattr(self, name) != defaults[name]:
                    raise ValueError(
                        f"quantizer.{name} is a setting of kind {kind}, got kind {self.kind} with {name} "
                        f"{getattr(self, name)}; leave it out"
                    )
