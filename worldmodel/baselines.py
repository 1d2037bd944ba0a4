"""Baseline models of codes: unigram, bigram, and copying the last frame."""

import torch
from torch import Tensor


class Unigram:
    """Unigram frequencies of the codes in a tensor of any shape, with add-one smoothing."""

    def __init__(self, codes: Tensor, num_codes: int) -> None:
        counts = torch.bincount(codes.flatten(), minlength=num_codes).double() + 1
        self.probabilities = counts / counts.sum()

    def bits(self, codes: Tensor) -> Tensor:
        """Return the mean bits per code of each grid: codes (…, H, W) -> (…)."""
        return -self.probabilities[codes].log2().mean((-2, -1))


class Bigram:
    """Bigram counts smoothed by a unigram: p(b | a) = (count(a, b) + strength * p(b)) / (count(a) + strength).

    ``strength`` is the power of two with the highest leave-one-out likelihood of the codes.

    Args:
        codes: sequence of codes (N,).
    """

    def __init__(self, codes: Tensor, unigram: Unigram) -> None:
        self.unigram, size = unigram, len(unigram.probabilities)
        pairs = torch.bincount(codes[:-1] * size + codes[1:], minlength=size**2).view(size, size).double()
        before, after = codes[:-1], codes[1:]

        def leave_one_out(strength: float) -> float:
            mixed = pairs[before, after] - 1 + strength * unigram.probabilities[after]
            return float((mixed / (pairs.sum(1)[before] - 1 + strength)).log().sum())

        strength = max((2.0**power for power in range(-2, 13)), key=leave_one_out)
        mixed = pairs + strength * unigram.probabilities
        self.probabilities = mixed / (pairs.sum(1, keepdim=True) + strength)  # (K, K), given code x next code

    def bits(self, codes: Tensor) -> Tensor:
        """Return the mean bits per code of sequences (B, N) -> (B,); first codes are scored by the unigram."""
        probabilities = torch.cat(
            [self.unigram.probabilities[codes[:, :1]], self.probabilities[codes[:, :-1], codes[:, 1:]]], 1
        )
        return -probabilities.log2().mean(1)


class CopyLast:
    """Each code keeps its value from the last frame, or flips to a code drawn from a unigram.

    Args:
        codes: (B, T, H, W) to fit the flip probability to, by expectation-maximization.
    """

    def __init__(self, codes: Tensor, unigram: Unigram, steps: int = 50) -> None:
        self.unigram, self.flip_probability = unigram, 0.5
        prior = unigram.probabilities[codes[:, 1:]]
        same = (codes[:, 1:] == codes[:, :-1]).double()
        for _ in range(steps):
            flipped = self.flip_probability * prior
            self.flip_probability = float((flipped / (flipped + (1 - self.flip_probability) * same)).mean())

    def bits(self, codes: Tensor) -> Tensor:
        """Return the bits per code of all frames but the first: codes (B, T, H, W) -> (B, T-1)."""
        same = (codes[:, 1:] == codes[:, :-1]).double()
        mixture = self.flip_probability * self.unigram.probabilities[codes[:, 1:]] + (1 - self.flip_probability) * same
        return -mixture.log2().mean((2, 3))
