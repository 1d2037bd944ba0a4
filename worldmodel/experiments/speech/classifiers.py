"""Small convolutional classifiers of sounds: which word is said, or who says it."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from worldmodel.experiments.speech.data.audio import normalize_loudness
from worldmodel.experiments.speech.mel import DECIBELS_PER_NAT, NUM_BANDS, log_mel

CHANNELS = (24, 48, 64, 96)
BATCH_SIZE, MIN_STEPS = 32, 40
MAX_FRAMES = 200  # length of a random training crop
MAX_SHIFT = 8  # frames that may be cut off the beginning
MAX_MASKED_BANDS, MAX_MASKED_FRACTION = 8, 0.2  # SpecAugment's masks of frequency and of time
NOISE_RANGE_DB = -50.0, 0.0  # relative to the sound's mean power, uniformly distributed
MAX_NOISE_TILT_DB = 15.0  # rise or fall of the noise from the middle band to either end


class AudioClassifier(nn.Module):
    """A convolutional network from log-mels (B, T, NUM_BANDS) of lengths (B,) to logits (B, classes).

    Padding is reset to zero in every layer, so the logits of a sound do not depend on its batch.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, classes: int, rate: int) -> None:
        super().__init__()
        self.rate, self.classes = rate, classes
        self.register_buffer("mean", torch.zeros(NUM_BANDS))
        self.register_buffer("deviation", torch.ones(NUM_BANDS))
        sizes = list(zip((1, *CHANNELS), CHANNELS, strict=False))
        self.layers = nn.ModuleList(nn.Conv2d(size, wider, 3, stride=2, padding=1, bias=False) for size, wider in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(wider) for _, wider in sizes)
        height = -(-NUM_BANDS // 2 ** len(CHANNELS))
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(2 * CHANNELS[-1] * height, classes))

    def forward(self, mels: Tensor, lengths: Tensor) -> Tensor:
        x = mels[:, None]  # (B, 1, T, NUM_BANDS)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            lengths = (lengths + 1) // 2
            x = norm(layer(x)).relu()  # (B, C, T, bands)
            valid = (torch.arange(x.shape[2], device=x.device) < lengths[:, None]).view(len(x), 1, -1, 1)
            x = x * valid
        mean = x.sum(2) / lengths.view(-1, 1, 1)
        return self.head(torch.cat([mean, x.amax(2)], 1).flatten(1))

    def preprocess(self, waveform: Tensor | np.ndarray) -> Tensor:
        """Return the normalized log-mel (frames, NUM_BANDS) of a waveform (N,) of any loudness."""
        return self.normalize(log_mel(normalize_loudness(np.asarray(waveform)), self.rate).to(self.mean.device))

    def normalize(self, mel: Tensor) -> Tensor:
        """Normalize a log-mel (T, NUM_BANDS) by the training set's mean and standard deviation of each band."""
        return (mel - self.mean) / self.deviation


def train_classifier(
    waveforms: Sequence[Tensor | np.ndarray],
    labels: Sequence[int] | Tensor | np.ndarray,
    classes: int,
    rate: int,
    epochs: int = 8,
    seed: int = 0,
    noise: bool = True,
) -> AudioClassifier:
    """Train a classifier to predict ``labels`` (N,) from N waveforms of any lengths; deterministic for a seed.

    Trains on random crops with bands and frames masked (Park et al. 2019, SpecAugment).

    Args:
        noise: add noise of random color, up to the level of the sound, so that synthesized sounds are recognized by
            their content, however noisy.

    Raises:
        ValueError: if there are not as many labels as waveforms, fewer than two, or a label is not in [0, classes).
    """
    labels = torch.as_tensor(labels, dtype=torch.int64)
    if len(waveforms) != len(labels) or len(labels) < 2:
        raise ValueError(
            f"expected two waveforms or more and a label each, got {len(waveforms)} waveforms, {len(labels)} labels"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"expected labels from 0 to {classes - 1}, got {int(labels.min())} to {int(labels.max())}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = AudioClassifier(classes, rate)
        mels = [classifier.preprocess(waveform) for waveform in waveforms]  # unchanged: mean is 0, deviation 1 so far
        frames = torch.cat([_add_noise(mel) if noise else mel for mel in mels])
        classifier.mean.copy_(frames.mean(0))
        classifier.deviation.copy_(frames.std(0, correction=0).clamp_min(1e-3))
        optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.01)
        batches = max(1, len(mels) // BATCH_SIZE)
        epochs = max(epochs, MIN_STEPS // batches)
        steps = epochs * batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
        with tqdm(total=steps, unit="step", desc="classifier", leave=False) as bar:
            for _ in range(epochs):
                for rows in torch.randperm(len(mels)).tensor_split(batches):
                    crops = [_crop(mels[row]) for row in rows]
                    inputs = [classifier.normalize(_add_noise(crop) if noise else crop) for crop in crops]
                    loss = F.cross_entropy(classifier(*_batch([_mask(mel) for mel in inputs])), labels[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    bar.update()
    return classifier.eval()


@torch.no_grad()
def classify(classifier: AudioClassifier, waveforms: Sequence[Tensor | np.ndarray]) -> Tensor:
    """Return the class probabilities (N, classes) of N whole waveforms at the classifier's rate."""
    mels = [classifier.preprocess(waveform) for waveform in waveforms]
    batches = [_batch(mels[start : start + BATCH_SIZE]) for start in range(0, len(mels), BATCH_SIZE)]
    probabilities = [classifier(*batch).softmax(-1).cpu() for batch in batches]
    return torch.cat(probabilities) if probabilities else torch.zeros(0, classifier.classes)


def _batch(mels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad log-mels (T, NUM_BANDS) with zeros to (B, longest T, NUM_BANDS); also return their lengths (B,)."""
    return pad_sequence(mels, batch_first=True), torch.tensor([len(mel) for mel in mels], device=mels[0].device)


def _add_noise(mel: Tensor) -> Tensor:
    """Add the power of noise of random level and color to a log-mel (T, NUM_BANDS)."""
    level = torch.empty(()).uniform_(*NOISE_RANGE_DB)
    tilt = torch.empty(()).uniform_(-MAX_NOISE_TILT_DB, MAX_NOISE_TILT_DB)
    decibels = level + tilt * torch.linspace(-1, 1, NUM_BANDS)
    power = -torch.rand(mel.shape).clamp_min(1e-6).log()  # of noise: exponentially distributed, mean 1
    noise = mel.logsumexp((0, 1)) - math.log(mel.numel()) + decibels / DECIBELS_PER_NAT + power.log()
    return torch.logaddexp(mel, noise)


def _crop(mel: Tensor) -> Tensor:
    """Crop a log-mel (T, NUM_BANDS) at a random start: near the beginning, or anywhere if it is long."""
    spare = max(0, len(mel) - MAX_FRAMES)
    start = _random_up_to(max(spare, min(MAX_SHIFT, len(mel) // 4)))
    return mel[start : start + MAX_FRAMES]


def _mask(mel: Tensor) -> Tensor:
    """Set random bands and frames of a log-mel (T, NUM_BANDS) to zero."""
    mel = mel.clone()
    bands, frames = _random_up_to(MAX_MASKED_BANDS), _random_up_to(int(MAX_MASKED_FRACTION * len(mel)))
    first_band, first_frame = _random_up_to(NUM_BANDS - bands), _random_up_to(len(mel) - frames)
    mel[:, first_band : first_band + bands] = 0
    mel[first_frame : first_frame + frames] = 0
    return mel


def _random_up_to(maximum: int) -> int:
    return int(torch.randint(maximum + 1, ()))
