"""Sounds as an ear takes them: log-mel spectrograms, how far two are apart, and pictures of them."""

from functools import lru_cache

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from worldmodel.experiments.speech.data.audio import levelled

BANDS = 40
FLOOR = 1e-8  # power of a band below which all is silence; a sine of amplitude 1 has 1/4
LOWEST_RATE = 4000  # Hz; below it the narrowest bands fall between the lines of the spectrum
DECIBELS = 10 / np.log(10)  # in one natural logarithm of a power


def log_mel(waveform: Tensor | np.ndarray, rate: int) -> Tensor:
    """Natural logarithm of the power in each of the mel bands, every 10 ms.

    Frame t is seen through a Hann window of 25 ms about the middle of the t-th 10 ms; beyond its ends the sound is
    taken for silent. Powers count from ``FLOOR`` up and do not depend on ``rate``.

    Args:
        waveform: (N,) in [-1, 1], N >= 1.
        rate: samples a second.

    Returns:
        (frames, BANDS) float32, frames = N / (10 ms), rounded up.

    Raises:
        ValueError: if there is no sample, another shape than (N,), or a rate below ``LOWEST_RATE``.
    """
    waveform = torch.as_tensor(waveform, dtype=torch.float32)
    if waveform.ndim != 1 or not len(waveform):
        raise ValueError(f"expected a mono waveform (N,) of one sample or more, got {tuple(waveform.shape)}")
    if rate < LOWEST_RATE:
        raise ValueError(f"expected a rate of {LOWEST_RATE} Hz or more, got {rate}; resample the sound")
    hop, length = hop_of(rate), round(rate / 40)
    size = 1 << (length - 1).bit_length()
    frames, left = -(-len(waveform) // hop), (size - hop) // 2
    padded = F.pad(waveform, (left, (frames - 1) * hop + size - left - len(waveform)))
    window = torch.hann_window(length, device=padded.device)
    spectrum = torch.stft(padded, size, hop, length, window, center=False, return_complex=True)  # (lines, frames)
    power = (spectrum.abs() / window.sum()).square().T  # (frames, lines)
    return (power @ mel_bands(rate, size).to(power.device)).clamp_min(FLOOR).log()


def hop_of(rate: int) -> int:
    """Samples between two frames of :func:`log_mel`: 10 ms."""
    return round(rate / 100)


@lru_cache(maxsize=8)
def mel_bands(rate: int, size: int) -> Tensor:
    """Triangles that overlap by half, of equal width in mel and height 1: (size // 2 + 1, BANDS).

    Mel(f) = 2595 log10(1 + f / 700), The HTK Book, section 5.6 (Filterbank Analysis); the bands go from 0 to rate / 2.
    """
    lines = mel(torch.linspace(0, rate / 2, size // 2 + 1, dtype=torch.float64))
    step = lines[-1] / (BANDS + 1)
    centres = step * torch.arange(1, BANDS + 1)
    return (1 - (lines[:, None] - centres).abs() / step).clamp_min(0).float()


def mel(frequencies: Tensor) -> Tensor:
    """Hertz to mel, by the formula of HTK."""
    return 2595 * torch.log10(1 + frequencies / 700)


def mel_distance(a: Tensor | np.ndarray, b: Tensor | np.ndarray, rate: int) -> float:
    """How far apart two sounds are in dB: the root mean square over bands of what their log-mels differ by.

    It is a mean over time, where one of them is stretched to fit the other (:func:`warped`). The sounds are made
    equally loud first, so their levels do not matter.
    """
    frames = [log_mel(levelled(np.asarray(waveform)), rate).double() for waveform in (a, b)]
    # Not through products, by which a distance of 0 would become 1e-3.
    costs = torch.cdist(*frames, compute_mode="donot_use_mm_for_euclid_dist") * DECIBELS / BANDS**0.5
    return warped(costs.numpy(force=True))


def warped(costs: np.ndarray) -> float:
    """The least mean of costs (N, M) along a way from the first corner to the last: dynamic time warping.

    A way takes steps (1, 0), (0, 1) and (1, 1); the last kind counts twice, so that all ways weigh N + M. This is
    the symmetric form of Sakoe and Chiba 1978, Table I, without a slope constraint. It goes by anti-diagonals, whose
    cells do not depend on each other.
    """
    height, width = costs.shape
    before, last = np.full((2, height + 1), np.inf)  # two anti-diagonals, the cell of row i at i + 1
    before[0] = 0
    for number in range(height + width - 1):
        i = np.arange(max(0, number - width + 1), min(number, height - 1) + 1)
        cost = costs[i, number - i]
        new = np.full(height + 1, np.inf)
        new[i + 1] = np.minimum(np.minimum(last[i], last[i + 1]) + cost, before[i] + 2 * cost)
        before, last = last, new
    return float(last[height] / (height + width))


def plot_sounds(sounds: dict[str, Tensor | np.ndarray], rate: int) -> Figure:
    """Named waveforms (N,) beside each other, each over its log-mel spectrogram, as in the first paper's Figure 6."""
    if not sounds:
        raise ValueError("expected a sound or more to draw, got none")
    columns = {name: torch.as_tensor(waveform).numpy(force=True) for name, waveform in sounds.items()}
    spectra = {name: DECIBELS * log_mel(waveform, rate).numpy() for name, waveform in columns.items()}
    loudest = max(float(spectrum.max()) for spectrum in spectra.values())
    reach = max(0.01, *(float(np.abs(waveform).max()) for waveform in columns.values()))
    figure = Figure((0.6 + 2.4 * len(columns), 2.9), layout="constrained")
    axes = figure.subplots(2, len(columns), squeeze=False, height_ratios=(1, 1.6), sharex="col", sharey="row")
    for (above, below), (name, waveform) in zip(axes.T, columns.items(), strict=True):
        seconds = len(waveform) / rate
        above.plot(np.arange(len(waveform)) / rate, waveform, linewidth=0.4)
        above.set(title=name, xlim=(0, seconds), ylim=(-reach, reach))
        span = (0, len(spectra[name]) * hop_of(rate) / rate, 0, BANDS)
        look = {"cmap": "magma", "vmin": loudest - 60, "vmax": loudest, "interpolation": "nearest"}
        below.imshow(spectra[name].T, origin="lower", aspect="auto", extent=span, **look)
        below.set(xlabel="seconds", xlim=(0, seconds))
    axes[0, 0].set_ylabel("waveform")
    axes[1, 0].set_ylabel("mel band")
    return figure
