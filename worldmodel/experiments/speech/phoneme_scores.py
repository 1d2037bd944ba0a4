"""What discrete codes know of speech: each code's most likely phoneme, what simpler codes know, and whose voice it is.

The first paper's section 4.3 names every code after the phoneme that it most often goes with, and counts how often the
name is right: 49.3 % of 128 codes at 25 Hz, where naming the most frequent of 41 phonemes every time is right in 7.2 %.
Here names are given by some utterances and checked on others. K-means codes of plain spectrograms set the mark.

Utterances are lists: of codes (n,) int in [0, K), of labels (n,) int, of features (n, D).
"""

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from scipy.cluster.vq import kmeans2, vq
from torch import Tensor
from torch.nn import functional as F

from worldmodel.experiments.speech.mel import hop_of, log_mel
from worldmodel.metrics import interval
from worldmodel.models.quantizers.nearest import perplexity

Utterances = Sequence[np.ndarray | Tensor]


def fit_map(codes: Utterances, labels: Utterances, size: int, classes: int) -> np.ndarray:
    """The most likely phoneme of each of ``size`` codes, (size,) int64; of one that is never used, that of all frames.

    Raises:
        ValueError: if codes and labels are not of the same utterances and frames, or out of range.
    """
    code, label = _frames(codes, labels)
    for name, values, end in (("codes", code, size), ("labels", label, classes)):
        if values.min() < 0 or values.max() >= end:
            raise ValueError(f"expected {name} from 0 to {end - 1}, got {values.min()} to {values.max()}")
    counts = np.bincount(code * classes + label, minlength=size * classes).reshape(size, classes)
    return np.where(counts.any(1), counts.argmax(1), counts.sum(0).argmax())


def accuracy(
    names: np.ndarray, codes: Utterances, labels: Utterances, groups: Sequence[Hashable] | None = None
) -> dict[str, float]:
    """The share of frames whose code is named, by :func:`fit_map`, as it should be.

    The interval is over utterances, or over groups of them, such as those that say the same.
    """
    code, label = _frames(codes, labels)
    if code.min() < 0 or code.max() >= len(names):
        raise ValueError(f"expected codes from 0 to {len(names) - 1}, got {code.min()} to {code.max()}")
    groups = range(len(labels)) if groups is None else groups
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    utterance = np.repeat([numbers[group] for group in groups], [len(part) for part in labels])
    return interval(torch.from_numpy(names[code] == label), torch.from_numpy(utterance))


def majority(
    learnt_labels: Utterances, labels: Utterances, classes: int, groups: Sequence[Hashable] | None = None
) -> dict[str, float]:
    """The :func:`accuracy` of naming the most frequent phoneme of ``learnt_labels`` every time."""
    return accuracy(fit_map(_zeros(learnt_labels), learnt_labels, 1, classes), _zeros(labels), labels, groups)


def random_codes(labels: Utterances, size: int, seed: int = 0) -> list[np.ndarray]:
    """Codes that know nothing, as many as there are labels."""
    generator = np.random.default_rng(seed)
    return [generator.integers(size, size=len(part)) for part in labels]


def mel_features(waveform: Tensor | np.ndarray, rate: int, hop: int) -> np.ndarray:
    """The log-mel of a waveform (N,), averaged over each ``hop`` samples: (N / hop, rounded up; BANDS) float32.

    Args:
        hop: samples between two codes, of any number: log-mel is a constant over each 10 ms, and that is averaged.
    """
    frames = log_mel(waveform, rate).double()
    count = -(-len(waveform) // hop)
    edges = (torch.arange(count + 1, device=frames.device) * hop / hop_of(rate)).double().clamp_max(len(frames))
    whole = edges.long().clamp_max(len(frames) - 1)
    area = F.pad(frames.cumsum(0), (0, 0, 1, 0))[whole] + (edges - whole)[:, None] * frames[whole]  # (count + 1, BANDS)
    means = area.diff(dim=0) / edges.diff()[:, None]
    return means.float().numpy(force=True)


def kmeans(features: Utterances, size: int, seed: int = 0, steps: int = 30) -> np.ndarray:
    """A codebook (size, D) for the features of some utterances, by Lloyd's algorithm from frames drawn by ``seed``."""
    rows = np.concatenate([np.asarray(part) for part in features])
    distinct = np.unique(rows, axis=0)  # frames of silence are all the same, and would be drawn twice
    if len(distinct) < size:
        raise ValueError(f"{size} codes need as many different frames, got {len(distinct)}; give more utterances")
    first = distinct[np.random.default_rng(seed).choice(len(distinct), size, replace=False)]
    return kmeans2(rows, first, iter=steps, minit="matrix")[0]


def nearest_codes(codebook: np.ndarray, features: Utterances) -> tuple[list[np.ndarray], float]:
    """The code in ``codebook`` (K, D) nearest to each frame, and the perplexity of all of them."""
    codes = [vq(np.asarray(part), codebook)[0].astype(np.int64) for part in features]
    return codes, float(perplexity(torch.from_numpy(np.bincount(np.concatenate(codes), minlength=len(codebook)))))


def histograms(codes: Utterances, size: int) -> Tensor:
    """Which codes an utterance is made of: square roots of their shares, (N, size) float32, rows of length 1."""
    counts = torch.stack([torch.bincount(torch.as_tensor(part).flatten().long(), minlength=size) for part in codes])
    return (counts / counts.sum(1, keepdim=True).clamp_min(1)).sqrt()


def moments_over_time(features: Utterances) -> Tensor:
    """Mean and standard deviation of each feature over an utterance: (N, 2·D) float32."""
    parts = [torch.as_tensor(part, dtype=torch.float32) for part in features]
    return torch.stack([torch.cat([part.mean(0), part.std(0, correction=0)]) for part in parts])


def speaker_probe(
    learnt: Tensor, learnt_speakers: Sequence[int] | Tensor, others: Tensor, speakers: Sequence[int] | Tensor
) -> dict[str, float]:
    """Can the speaker be read off, linearly: logistic regression from a vector for each utterance.

    Args:
        learnt: (N, D), from :func:`histograms` or :func:`moments_over_time`, of the utterances that it learns from.
        learnt_speakers: (N,) their speakers, from 0.
        others: (M, D), of those that it is asked about, by the same ``speakers`` (M,).

    Returns:
        Its accuracy on the others, an interval, and ``majority``, what naming the speaker heard most would score.
    """
    known, asked = (torch.as_tensor(part, dtype=torch.int64) for part in (learnt_speakers, speakers))
    for vectors, names in ((learnt, known), (others, asked)):
        if len(vectors) != len(names) or not len(names) or names.min() < 0:
            raise ValueError(f"expected utterances and a speaker from 0 for each, got {len(vectors)} and {len(names)}")
    deviation, mean = torch.std_mean(learnt, 0, correction=0)
    scale = deviation.clamp_min(1e-6) * learnt.shape[1] ** 0.5  # vectors of length 1, about
    learnt, others = (learnt - mean) / scale, (others - mean) / scale
    weight = torch.zeros(int(known.max()) + 1, learnt.shape[1], requires_grad=True)
    bias = torch.zeros(len(weight), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(learnt, weight, bias), known) + 1e-4 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    right = F.linear(others, weight, bias).argmax(-1) == asked
    common = torch.bincount(known).argmax()
    return interval(right) | {"majority": float((asked == common).double().mean())}


def _frames(codes: Utterances, labels: Utterances) -> tuple[np.ndarray, np.ndarray]:
    """The frames of all utterances in a row, codes (N,) and labels (N,)."""
    if len(codes) != len(labels) or not len(codes):
        raise ValueError(f"expected codes and labels of the same utterances, got {len(codes)} and {len(labels)}")
    for number, (code, label) in enumerate(zip(codes, labels, strict=True)):
        if len(code) != len(label):
            raise ValueError(f"utterance {number} has {len(code)} codes but {len(label)} labels; cut both to the same")
    code, label = (np.concatenate([np.asarray(part).astype(np.int64) for part in each]) for each in (codes, labels))
    if not len(code):
        raise ValueError(f"expected a frame or more, got {len(codes)} utterances of none")
    return code, label


def _zeros(labels: Utterances) -> list[np.ndarray]:
    return [np.zeros(len(part), np.int64) for part in labels]
