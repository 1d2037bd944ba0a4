"""Maps from codes to phonemes, of a model and of baselines, and their scores."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from worldmodel.experiments.speech import phoneme_scores as scores
from worldmodel.experiments.speech.codec import SpeechCodec
from worldmodel.experiments.speech.data.corpora import SPLITS
from worldmodel.experiments.speech.data.dataset import Recordings, Speech
from worldmodel.experiments.speech.data.phonemes import CLASSES, frame_labels
from worldmodel.splits import evenly_spaced
from worldmodel.stats import descriptive_stats
from worldmodel.tables import align_columns

ROWS = {  # of the table: titles
    "majority": "most frequent phoneme",
    "random_codes": "random codes",
    "kmeans": "k-means of log-mel",
    "kmeans_centered": "k-means of log-mel, less its mean",
    "kmeans_mfcc": "k-means of MFCCs, normalized per recording",
    "vqvae": "VQ-VAE",
}
Codes = dict[str, list[np.ndarray]]  # split: codes of each recording


@dataclass(frozen=True)
class PhonemeData:
    """Evenly spaced recordings of each split of a corpus that have phonemes beside them.

    Args:
        hop: samples per frame.
        max_recordings: maximum number of recordings per split.
    """

    speech: Speech
    hop: int
    max_recordings: int

    @cached_property
    def splits(self) -> dict[str, tuple[Recordings, list[int]]]:
        """Recordings of each split, and the indices of those to evaluate.

        Raises:
            FileNotFoundError: if the training or the held-out recordings have no phonemes.
        """
        splits = {}
        for name in SPLITS:
            part: Recordings | None = getattr(self.speech, name)
            if part is None:
                continue
            if labeled := part.find_labeled():
                splits[name] = part, [labeled[n] for n in evenly_spaced(len(labeled), self.max_recordings)]
            elif name != "unseen_speakers":
                raise FileNotFoundError(
                    f"none of the {len(part)} {name} recordings, such as {part.paths[0]}, has phonemes in a .phn file "
                    "beside it; give TIMIT, or what python -m worldmodel.experiments.speech synthesize makes"
                )
        return splits

    def map_recordings(self, function: Callable[[Recordings, int], np.ndarray]) -> dict[str, list[np.ndarray]]:
        """Return ``function(recordings, index)`` for each recording of each split."""
        return {name: [function(part, n) for n in indices] for name, (part, indices) in self.splits.items()}

    @cached_property
    def labels(self) -> dict[str, list[np.ndarray]]:
        """Phoneme at the center of each frame."""
        return self.map_recordings(
            lambda part, n: frame_labels(part.phonemes(n), self.hop, -(-len(part.mu_law(n)) // self.hop))
        )

    @cached_property
    def mels(self) -> dict[str, list[np.ndarray]]:
        """Log-mel spectrograms, averaged over each frame."""
        return self.map_recordings(lambda part, n: scores.mel_features(part.waveform(n), part.rate, self.hop))

    def groups(self, split: str) -> list[str]:
        """Return the text of each recording: the same words in several voices are not independent."""
        part, indices = self.splits[split]
        return [part.texts[n] or str(n) for n in indices]


FEATURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # of log-mel frames (n, bands), for each row of k-means
    "kmeans": lambda mel: mel,
    "kmeans_centered": lambda mel: mel - mel.mean(0),
    "kmeans_mfcc": scores.normalized_mfcc,
}


def random_baseline(data: PhonemeData, size: int, seed: int) -> Codes:
    """Return random codes, one per frame."""
    return {
        split: scores.random_codes(labels, size, seed + 1000 * n)
        for n, (split, labels) in enumerate(data.labels.items())
    }


def kmeans_codes(data: PhonemeData, size: int, seed: int, features_of: Callable[[np.ndarray], np.ndarray]) -> Codes:
    """Return k-means codes of features of each recording's log-mel frames; fitted on the training split."""
    features = {split: [features_of(mel) for mel in mels] for split, mels in data.mels.items()}
    codebook = scores.kmeans(features["train"], size, seed)
    return {split: scores.nearest_codes(codebook, part) for split, part in features.items()}


def model_codes(data: PhonemeData, codec: SpeechCodec) -> Codes:
    """Return the codes of a VQ-VAE."""
    return data.map_recordings(lambda part, n: codec.encode(part.mu_law(n)).numpy())


def score_codes(data: PhonemeData, codes: Codes, size: int) -> dict[str, Any]:
    """Return each split's accuracy of a map fitted on the training split, the perplexity and the speaker accuracy."""
    phoneme_map = scores.fit_map(codes["train"], data.labels["train"], size, len(CLASSES))
    return {
        **{
            split: scores.accuracy(phoneme_map, codes[split], data.labels[split], data.groups(split)) for split in codes
        },
        "perplexity": scores.code_perplexity(codes["held_out"], size),
        "speaker_accuracy": probe_speaker(
            data, {split: scores.histograms(part, size) for split, part in codes.items()}
        ),
    }


def score_majority(data: PhonemeData) -> dict[str, Any]:
    """Return the accuracies of always predicting the training split's most frequent phoneme."""
    labels = data.labels
    return {
        split: scores.majority(labels["train"], labels[split], len(CLASSES), data.groups(split)) for split in labels
    }


def probe_speaker(data: PhonemeData, vectors: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return how well a linear probe predicts the speakers of held-out recordings from one vector each."""
    speakers = {
        split: data.splits[split][0].speakers[data.splits[split][1]].tolist() for split in ("train", "held_out")
    }
    groups = data.groups("held_out")
    return scores.speaker_probe(vectors["train"], speakers["train"], vectors["held_out"], speakers["held_out"], groups)


def format_table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Format mean ± standard deviation over seeds, in percent except for perplexity."""
    lines = [["", *(f"{split} %" for split in SPLITS), "perplexity", "speaker %"]]
    for name, seeds in rows.items():
        cells = []
        for column in (*SPLITS, "perplexity", "speaker_accuracy"):
            values = [seed[column] for seed in seeds if column in seed]
            cells.append(format_moments([v if column == "perplexity" else 100 * v["mean"] for v in values]))
        lines.append([ROWS[name], *cells])
    return align_columns(lines, left={0})


def format_moments(values: list[float]) -> str:
    """Format values like 51.6 ± 0.3; an empty string for no values."""
    if not values:
        return ""
    summary = descriptive_stats(torch.tensor(values))
    return f"{summary['mean']:.1f}" + (f" ± {summary['deviation']:.1f}" if len(values) > 1 else "")
