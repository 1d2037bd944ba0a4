"""How well discrete codes of speech predict phonemes and speakers, and baselines.

The first paper's section 4.3 maps every code to its most likely phoneme and reports the accuracy of that map: 49.3 %
for 128 codes at 25 Hz, 7.2 % for always predicting the most frequent of 41 phonemes. Here the map is fitted on some
utterances and tested on others, and compared with k-means codes of spectrograms.

Utterances are lists of codes (n,) int in [0, K), of labels (n,) int, or of features (n, D).
"""

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from scipy.cluster.vq import kmeans2, vq
from scipy.fft import dct
from torch import Tensor
from torch.nn import functional as F

from worldmodel.experiments.speech.mel import log_mel, mel_hop
from worldmodel.models.quantizers.interface import perplexity
from worldmodel.stats import bootstrap_interval

Utterances = Sequence[np.ndarray | Tensor]
NUM_CEPSTRA = 13


def fit_map(codes: Utterances, labels: Utterances, size: int, classes: int) -> np.ndarray:
    """Return the most likely phoneme (size,) int64 of each code; for an unused one, that of all frames.

    Raises:
        ValueError: if codes and labels are not of the same utterances and frames, or out of range.
    """
    code, label = _concatenate(codes, labels)
    for name, values, end in (("codes", code, size), ("labels", label, classes)):
        if values.min() < 0 or values.max() >= end:
            raise ValueError(f"expected {name} from 0 to {end - 1}, got {values.min()} to {values.max()}")
    counts = np.bincount(code * classes + label, minlength=size * classes).reshape(size, classes)
    return np.where(counts.any(1), counts.argmax(1), counts.sum(0).argmax())


def accuracy(
    phoneme_map: np.ndarray, codes: Utterances, labels: Utterances, groups: Sequence[Hashable] | None = None
) -> dict[str, float]:
    """Return the fraction of frames whose label a map of :func:`fit_map` predicts from the code.

    The interval is over utterances, or over groups of them, such as those of the same text.
    """
    code, label = _concatenate(codes, labels)
    if code.min() < 0 or code.max() >= len(phoneme_map):
        raise ValueError(f"expected codes from 0 to {len(phoneme_map) - 1}, got {code.min()} to {code.max()}")
    groups = range(len(labels)) if groups is None else groups
    indices = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    frame_groups = np.repeat([indices[group] for group in groups], [len(part) for part in labels])
    return bootstrap_interval(torch.from_numpy(phoneme_map[code] == label), torch.from_numpy(frame_groups))


def majority(
    train_labels: Utterances, labels: Utterances, classes: int, groups: Sequence[Hashable] | None = None
) -> dict[str, float]:
    """Return the :func:`accuracy` of always predicting the most frequent of ``train_labels``."""
    return accuracy(fit_map(_zeros(train_labels), train_labels, 1, classes), _zeros(labels), labels, groups)


def random_codes(labels: Utterances, size: int, seed: int = 0) -> list[np.ndarray]:
    """Return uniformly random codes, one per label."""
    generator = np.random.default_rng(seed)
    return [generator.integers(size, size=len(part)) for part in labels]


def mel_features(waveform: Tensor | np.ndarray, rate: int, hop: int) -> np.ndarray:
    """Average the log-mel of a waveform (N,) over each ``hop`` samples: (N / hop, rounded up; NUM_BANDS) float32.

    Args:
        hop: samples per code, any number: the log-mel counts as constant over each of its 10 ms frames.
    """
    frames = log_mel(waveform, rate).double()
    count = -(-len(waveform) // hop)
    edges = (torch.arange(count + 1, device=frames.device) * hop / mel_hop(rate)).double().clamp_max(len(frames))
    whole = edges.long().clamp_max(len(frames) - 1)
    area = F.pad(frames.cumsum(0), (0, 0, 1, 0))[whole] + (edges - whole)[:, None] * frames[whole]  # (count + 1, bands)
    means = area.diff(dim=0) / edges.diff()[:, None]
    return means.float().numpy(force=True)


def normalized_mfcc(mel: np.ndarray) -> np.ndarray:
    """Return NUM_CEPSTRA cepstra of log-mel frames, each with mean 0 and variance 1: (n, bands) -> (n, cepstra)."""
    cepstra = np.asarray(dct(mel, norm="ortho", axis=1))[:, :NUM_CEPSTRA]
    return (cepstra - cepstra.mean(0)) / np.maximum(cepstra.std(0), 1e-6)


def kmeans(features: Utterances, size: int, seed: int = 0, steps: int = 30) -> np.ndarray:
    """Fit a codebook (size, D) to features by Lloyd's algorithm, initialized with random frames."""
    rows = np.concatenate([np.asarray(part) for part in features])
    distinct = np.unique(rows, axis=0)  # frames of silence are all equal, and could be sampled twice
    if len(distinct) < size:
        raise ValueError(f"{size} codes need as many different frames, got {len(distinct)}; give more utterances")
    first = distinct[np.random.default_rng(seed).choice(len(distinct), size, replace=False)]
    return kmeans2(rows, first, iter=steps, minit="matrix")[0]


def nearest_codes(codebook: np.ndarray, features: Utterances) -> list[np.ndarray]:
    """Return the code in ``codebook`` (K, D) nearest to each frame."""
    return [vq(np.asarray(part), codebook)[0].astype(np.int64) for part in features]


def code_perplexity(codes: Utterances, size: int) -> float:
    """Return the perplexity of the codes of all utterances together."""
    every = torch.cat([torch.as_tensor(part) for part in codes])
    return float(perplexity(torch.bincount(every, minlength=size).float()))


def histograms(codes: Utterances, size: int) -> Tensor:
    """Return the square roots of each utterance's code frequencies: (N, size) float32, rows of norm 1."""
    counts = torch.stack([torch.bincount(torch.as_tensor(part).flatten().long(), minlength=size) for part in codes])
    return (counts / counts.sum(1, keepdim=True).clamp_min(1)).sqrt()


def moments_over_time(features: Utterances) -> Tensor:
    """Return the mean and standard deviation of each feature over an utterance: (N, 2·D) float32."""
    parts = [torch.as_tensor(part, dtype=torch.float32) for part in features]
    return torch.stack([torch.cat([part.mean(0), part.std(0, correction=0)]) for part in parts])


def speaker_probe(
    train: Tensor,
    train_speakers: Sequence[int] | Tensor,
    test: Tensor,
    test_speakers: Sequence[int] | Tensor,
    test_groups: Sequence[str] | None = None,
) -> dict[str, float]:
    """Return how well a linear probe, logistic regression from one vector per utterance, predicts the speaker.

    Args:
        train: (N, D) vectors of the training utterances, from :func:`histograms` or :func:`moments_over_time`.
        train_speakers: (N,) indices of their speakers, from 0.
        test: (M, D) vectors of the test utterances.
        test_speakers: (M,) indices of their speakers.
        test_groups: (M,) the sentence that each says, over which the interval is; by default, all differ.

    Returns:
        Test accuracy with its interval, and ``majority``, the accuracy of always predicting the most frequent speaker.
    """
    train_labels, test_labels = (torch.as_tensor(part, dtype=torch.int64) for part in (train_speakers, test_speakers))
    for vectors, labels in ((train, train_labels), (test, test_labels)):
        if len(vectors) != len(labels) or not len(labels) or labels.min() < 0:
            raise ValueError(f"expected utterances and a speaker from 0 for each, got {len(vectors)} and {len(labels)}")
    deviation, mean = torch.std_mean(train, 0, correction=0)
    scale = deviation.clamp_min(1e-6) * train.shape[1] ** 0.5  # vectors get a norm of about 1
    train, test = (train - mean) / scale, (test - mean) / scale
    weight = torch.zeros(int(train_labels.max()) + 1, train.shape[1], requires_grad=True)
    bias = torch.zeros(len(weight), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(train, weight, bias), train_labels) + 1e-4 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    correct = F.linear(test, weight, bias).argmax(-1) == test_labels
    majority_speaker = torch.bincount(train_labels).argmax()
    groups = None if test_groups is None else torch.from_numpy(np.unique(test_groups, return_inverse=True)[1])
    return bootstrap_interval(correct, groups) | {"majority": float((test_labels == majority_speaker).double().mean())}


def _concatenate(codes: Utterances, labels: Utterances) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate the frames of all utterances: codes (N,) and labels (N,)."""
    if len(codes) != len(labels) or not len(codes):
        raise ValueError(f"expected codes and labels of the same utterances, got {len(codes)} and {len(labels)}")
    for n, (code, label) in enumerate(zip(codes, labels, strict=True)):
        if len(code) != len(label):
            raise ValueError(f"utterance {n} has {len(code)} codes but {len(label)} labels; cut both to one length")
    code, label = (np.concatenate([np.asarray(part).astype(np.int64) for part in each]) for each in (codes, labels))
    if not len(code):
        raise ValueError(f"expected a frame or more, got {len(codes)} utterances without any")
    return code, label


def _zeros(labels: Utterances) -> list[np.ndarray]:
    return [np.zeros(len(part), np.int64) for part in labels]
