"""Small nets that listen to sounds: which word is said, and whose voice says it."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from worldmodel.experiments.speech.data.audio import levelled
from worldmodel.experiments.speech.mel import BANDS, DECIBELS, log_mel

WIDTHS = (24, 48, 64, 96)
BATCH, LEAST = 32, 40  # sounds learnt from at a time, and how often at least
LONGEST = 200  # frames of a sound that are learnt from at a time, from a random place on
SHIFT = 8  # frames that may be missing at the beginning
MASKED_BANDS, MASKED_SHARE = 8, 0.2  # at most, of the bands and of the time
NOISE = -50.0, 0.0  # dB of noise to the sound's mean power, drawn evenly between
COLOUR = 15.0  # dB that the noise may rise or fall from the middle of the bands to either end


class Listener(nn.Module):
    """A convolutional net over log-mels (B, T, BANDS) of lengths (B,), to logits (B, classes).

    What lies beyond a sound's length is held at zero in every layer, so a sound gets the same logits in any batch.
    """

    def __init__(self, classes: int, rate: int) -> None:
        super().__init__()
        self.rate, self.classes = rate, classes
        self.register_buffer("mean", torch.zeros(BANDS))
        self.register_buffer("deviation", torch.ones(BANDS))
        sizes = list(zip((1, *WIDTHS), WIDTHS, strict=False))
        self.layers = nn.ModuleList(nn.Conv2d(size, wider, 3, stride=2, padding=1, bias=False) for size, wider in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(wider) for _, wider in sizes)
        height = -(-BANDS // 2 ** len(WIDTHS))
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(2 * WIDTHS[-1] * height, classes))

    def forward(self, mels: Tensor, lengths: Tensor) -> Tensor:
        x = mels[:, None]  # (B, 1, T, BANDS)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            lengths = (lengths + 1) // 2
            x = norm(layer(x)).relu()  # (B, C, T, bands)
            inside = (torch.arange(x.shape[2], device=x.device) < lengths[:, None]).view(len(x), 1, -1, 1)
            x = x * inside
        mean = x.sum(2) / lengths.view(-1, 1, 1)
        return self.head(torch.cat([mean, x.amax(2)], 1).flatten(1))

    def hear(self, waveform: Tensor | np.ndarray) -> Tensor:
        """What the net is shown of a waveform (N,), (frames, BANDS): its log-mel, whatever its level, normalized."""
        return self.normalized(log_mel(levelled(np.asarray(waveform)), self.rate).to(self.mean.device))

    def normalized(self, mel: Tensor) -> Tensor:
        """A log-mel (T, BANDS) with mean 0 and deviation 1 in each band of what was learnt from."""
        return (mel - self.mean) / self.deviation


def train_listener(
    waveforms: Sequence[Tensor | np.ndarray],
    labels: Sequence[int] | Tensor | np.ndarray,
    classes: int,
    rate: int,
    epochs: int = 8,
    seed: int = 0,
    noise: bool = True,
) -> Listener:
    """Teach a listener to tell ``labels`` (N,) from N waveforms of any lengths; the same seed gives the same one.

    It learns from pieces of the sounds, with stretches of time and of frequency blanked (Park et al. 2019,
    SpecAugment).

    Args:
        noise: add some to what it learns from, of any colour and up to the level of the sound, so that it judges what
            is synthesized by what it says, and not by how clean it is.

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
        listener = Listener(classes, rate)
        heard = [listener.hear(waveform) for waveform in waveforms]  # as they are: mean 0, deviation 1
        frames = torch.cat([_noisy(mel) if noise else mel for mel in heard])
        listener.mean.copy_(frames.mean(0))
        listener.deviation.copy_(frames.std(0, correction=0).clamp_min(1e-3))
        optimizer = torch.optim.AdamW(listener.parameters(), weight_decay=0.01)
        batches = max(1, len(heard) // BATCH)
        epochs = max(epochs, LEAST // batches)
        steps = epochs * batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
        with tqdm(total=steps, unit="step", desc="listener", leave=False) as bar:
            for _ in range(epochs):
                for rows in torch.randperm(len(heard)).tensor_split(batches):
                    pieces = [_piece(heard[row]) for row in rows]
                    shown = [listener.normalized(_noisy(piece) if noise else piece) for piece in pieces]
                    loss = F.cross_entropy(listener(*_batch([_blanked(mel) for mel in shown])), labels[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    bar.update()
    return listener.eval()


@torch.no_grad()
def verdicts(listener: Listener, waveforms: Sequence[Tensor | np.ndarray]) -> Tensor:
    """Probabilities (N, classes) of N waveforms at the listener's rate; each is heard from end to end."""
    parts = [waveforms[start : start + BATCH] for start in range(0, len(waveforms), BATCH)]
    found = [listener(*_batch([listener.hear(waveform) for waveform in part])).softmax(-1).cpu() for part in parts]
    return torch.cat(found) if found else torch.zeros(0, listener.classes)


def _batch(mels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(T, BANDS) each -> (B, longest, BANDS), zero beyond the lengths, and the lengths (B,)."""
    return pad_sequence(mels, batch_first=True), torch.tensor([len(mel) for mel in mels], device=mels[0].device)


def _noisy(mel: Tensor) -> Tensor:
    """A log-mel (T, BANDS) with the power of noise added, whose level and colour are drawn."""
    level, tilt = torch.empty(()).uniform_(*NOISE), torch.empty(()).uniform_(-COLOUR, COLOUR)
    decibels = level + tilt * torch.linspace(-1, 1, BANDS)
    power = -torch.rand(mel.shape).clamp_min(1e-6).log()  # of noise: distributed exponentially, mean 1
    noise = mel.logsumexp((0, 1)) - math.log(mel.numel()) + decibels / DECIBELS + power.log()
    return torch.logaddexp(mel, noise)


def _piece(mel: Tensor) -> Tensor:
    """A piece of a log-mel (T, BANDS) that begins a little later, or anywhere if it is long."""
    spare = max(0, len(mel) - LONGEST)
    start = _upto(max(spare, min(SHIFT, len(mel) // 4)))
    return mel[start : start + LONGEST]


def _blanked(mel: Tensor) -> Tensor:
    """A log-mel (T, BANDS) in which some bands and some frames are zero."""
    mel = mel.clone()
    bands, frames = _upto(MASKED_BANDS), _upto(int(MASKED_SHARE * len(mel)))
    first_band, first_frame = _upto(BANDS - bands), _upto(len(mel) - frames)
    mel[:, first_band : first_band + bands] = 0
    mel[first_frame : first_frame + frames] = 0
    return mel


def _upto(most: int) -> int:
    return int(torch.randint(most + 1, ()))
