"""Log-mel spectrograms of sounds, the distance between two, and plots."""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from worldmodel.experiments.speech.data.audio import normalize_loudness

NUM_BANDS = 40
POWER_FLOOR = 1e-8  # of a band; a sine of amplitude 1 has 1/4
MIN_RATE = 4000  # Hz; below it the narrowest bands fall between the bins of the spectrum
DECIBELS_PER_NAT = 10 / np.log(10)  # of power


def log_mel(waveform: Tensor | np.ndarray, rate: int) -> Tensor:
    """Return the natural logarithm of the power in each mel band, every 10 ms.

    The Hann window of frame t is 25 ms long and centered on the t-th 10 ms; the sound is padded with silence. Powers
    are clipped at ``POWER_FLOOR`` and do not depend on ``rate``.

    Args:
        waveform: (N,) in [-1, 1], N >= 1.
        rate: sample rate in Hz.

    Returns:
        (frames, NUM_BANDS) float32, frames = N / (10 ms), rounded up.

    Raises:
        ValueError: for an empty waveform, a shape other than (N,), or a rate below ``MIN_RATE``.
    """
    waveform = torch.as_tensor(waveform, dtype=torch.float32)
    if waveform.ndim != 1 or not len(waveform):
        raise ValueError(f"expected a mono waveform (N,) of one sample or more, got {tuple(waveform.shape)}")
    return log_mel_of_batch(waveform[None], rate)[0]


def log_mel_of_batch(waveforms: Tensor, rate: int) -> Tensor:
    """Return the :func:`log_mel` of waveforms of one length: (B, N) -> (B, frames, NUM_BANDS) float32."""
    if rate < MIN_RATE:
        raise ValueError(f"expected a rate of {MIN_RATE} Hz or more, got {rate}; resample the sound")
    hop, length = mel_hop(rate), round(rate / 40)
    size = 1 << (length - 1).bit_length()
    samples, left = waveforms.shape[1], (size - hop) // 2
    frames = -(-samples // hop)
    padded = F.pad(waveforms, (left, (frames - 1) * hop + size - left - samples))
    window = torch.hann_window(length, device=padded.device)
    spectrum = torch.stft(padded, size, hop, length, window, center=False, return_complex=True)  # (B, bins, frames)
    power = (spectrum.abs() / window.sum()).square().mT  # (B, frames, bins)
    return (power @ mel_filterbank(rate, size).to(power.device)).clamp_min(POWER_FLOOR).log()


def mel_hop(rate: int) -> int:
    """Return the samples between two frames of :func:`log_mel`: 10 ms."""
    return round(rate / 100)


@lru_cache(maxsize=8)
def mel_filterbank(rate: int, size: int) -> Tensor:
    """Return half-overlapping triangles of height 1 and equal width in mel, from 0 to rate / 2: (bins, NUM_BANDS)."""
    bins = hz_to_mel(torch.linspace(0, rate / 2, size // 2 + 1, dtype=torch.float64))
    step = bins[-1] / (NUM_BANDS + 1)
    centers = step * torch.arange(1, NUM_BANDS + 1)
    return (1 - (bins[:, None] - centers).abs() / step).clamp_min(0).float()


def hz_to_mel(frequencies: Tensor) -> Tensor:
    """Convert Hertz to mel (The HTK Book, section 5.6, Filterbank Analysis)."""
    return 2595 * torch.log10(1 + frequencies / 700)


def mel_distance(a: Tensor | np.ndarray, b: Tensor | np.ndarray, rate: int) -> float:
    """Return the log-mel distance of two sounds in dB: RMS over bands, mean over time aligned by :func:`dtw_distance`.

    The sounds are normalized to the same loudness first.
    """
    x, y = (log_mel(normalize_loudness(np.asarray(waveform)), rate).double() for waveform in (a, b))
    # Matrix products would turn a distance of 0 into 1e-3.
    costs = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist") * DECIBELS_PER_NAT / NUM_BANDS**0.5
    return dtw_distance(costs.numpy(force=True))


def dtw_distance(costs: np.ndarray) -> float:
    """Return the minimum mean cost of a path through costs (N, M) from corner to corner: dynamic time warping.

    Steps are (1, 0), (0, 1) and (1, 1); diagonal ones count twice, so that every path has the weight N + M. This is the
    symmetric form of Sakoe and Chiba 1978, Table I, without a slope constraint, vectorized over anti-diagonals.
    """
    height, width = costs.shape
    before_last, last = np.full((2, height + 1), np.inf)  # previous anti-diagonals, the cell of row i at i + 1
    before_last[0] = 0
    for diagonal in range(height + width - 1):
        i = np.arange(max(0, diagonal - width + 1), min(diagonal, height - 1) + 1)
        cost = costs[i, diagonal - i]
        new = np.full(height + 1, np.inf)
        new[i + 1] = np.minimum(np.minimum(last[i], last[i + 1]) + cost, before_last[i] + 2 * cost)
        before_last, last = last, new
    return float(last[height] / (height + width))


def plot_sounds(sounds: Mapping[str, Tensor | np.ndarray], rate: int) -> Figure:
    """Plot waveforms (N,) by title side by side, each above its log-mel spectrogram (the first paper's Figure 6)."""
    if not sounds:
        raise ValueError("expected one sound or more to plot, got none")
    columns = {name: torch.as_tensor(waveform).numpy(force=True) for name, waveform in sounds.items()}
    spectra = {name: DECIBELS_PER_NAT * log_mel(waveform, rate).numpy() for name, waveform in columns.items()}
    loudest = max(float(spectrum.max()) for spectrum in spectra.values())
    peak = max(0.01, *(float(np.abs(waveform).max()) for waveform in columns.values()))
    figure = Figure((0.6 + 2.4 * len(columns), 2.9), layout="constrained")
    axes = figure.subplots(2, len(columns), squeeze=False, height_ratios=(1, 1.6), sharex="col", sharey="row")
    for (top, bottom), (name, waveform) in zip(axes.T, columns.items(), strict=True):
        seconds = len(waveform) / rate
        top.plot(np.arange(len(waveform)) / rate, waveform, linewidth=0.4)
        top.set(title=name, xlim=(0, seconds), ylim=(-peak, peak))
        extent = (0, len(spectra[name]) * mel_hop(rate) / rate, 0, NUM_BANDS)
        style = {"cmap": "magma", "vmin": loudest - 60, "vmax": loudest, "interpolation": "nearest"}
        bottom.imshow(spectra[name].T, origin="lower", aspect="auto", extent=extent, **style)
        bottom.set(xlabel="seconds", xlim=(0, seconds))
    axes[0, 0].set_ylabel("waveform")
    axes[1, 0].set_ylabel("mel band")
    return figure
