"""Measure what the codes of VQ-VAEs of speech know of phonemes and of who speaks."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from worldmodel.episodes.segments import spread
from worldmodel.experiments.speech.codec import Voices, same_speech, use_threads
from worldmodel.experiments.speech.data.dataset import Recordings, Speech, open_speech
from worldmodel.experiments.speech.data.phonemes import CLASSES, frame_labels
from worldmodel.experiments.speech.phoneme_scores import (
    accuracy,
    fit_map,
    histograms,
    kmeans,
    majority,
    mel_features,
    moments_over_time,
    nearest_codes,
    random_codes,
    speaker_probe,
)
from worldmodel.files import check_folder, write_atomically
from worldmodel.metrics import moments
from worldmodel.models.quantizers.nearest import perplexity
from worldmodel.tables import aligned

PARTS = ("learnt", "held_out", "unheard")


def phonemes(runs: str, speech: str, out: str, recordings: int = 1000, device: str = "cpu", threads: int = 1) -> None:
    """Name every code after its most likely phoneme, and count how often that is right in speech not learnt from.

    Names are given by recordings that the runs learnt from, and checked on other sentences (held_out) and other
    speakers (unheard). Beside the codes of the runs, which should differ in their seeds alone, stand the most frequent
    phoneme, codes drawn at random, and as many codes found by k-means of log-mel spectrograms, once as they are and
    once without each recording's mean; of each as many seeds. A linear probe says how well the speaker is read off an
    utterance's codes, and off its spectrogram. Intervals are of 95 %, over sentences. The folder ``out`` gets
    phonemes.json and phonemes.txt.

    Args:
        runs: run folders of VQ-VAEs of speech, with commas between.
        speech: the recordings, each with a .phn file beside it, as synthesize makes them.
        out: folder to write.
        recordings: of each part to measure on, at most, evenly spread.
        device: cpu or cuda.
        threads: of torch on the CPU.
    """
    if recordings < 1:
        raise ValueError(f"--recordings must be 1 or more, got {recordings}")
    check_folder(Path(out))
    use_threads(threads)
    models = {folder: Voices.load(folder, device) for folder in runs.split(",")}
    first = next(iter(models.values()))
    hop, size = first.network.config.hop, first.network.config.quantizer.codes
    data = open_speech(speech, first.rate)
    for folder, voices in models.items():
        sizes = voices.network.config.hop, voices.network.config.quantizer.codes
        if sizes != (hop, size):
            raise ValueError(f"{folder} has {sizes[1]} codes of {sizes[0]} samples; --runs must agree, {size} of {hop}")
        same_speech(voices.run, data)
    heard = Heard(data, hop, recordings)
    rows = {"most frequent phoneme": [frequent(heard)]}
    for seed in range(len(models)):
        rows.setdefault("random codes", []).append(named(heard, *at_random(heard, size, seed), size))
    for centred in (False, True):
        name = f"k-means of log-mel{', less its mean' if centred else ''}"
        for seed in tqdm(range(len(models)), unit="seed", desc=name, leave=False):
            rows.setdefault(name, []).append(named(heard, *by_kmeans(heard, size, seed, centred), size))
    for voices in models.values():
        rows.setdefault("VQ-VAE", []).append(named(heard, *by_model(heard, voices), size))
    vectors = {part: moments_over_time(features) for part, features in heard.mels.items()}
    result = {
        "settings": {"runs": runs, "speech": speech, "recordings": recordings},
        "codes": size,
        "codes_per_second": first.rate / hop,
        "frames": {part: sum(map(len, labels)) for part, labels in heard.labels.items()},
        "rows": rows,
        "speaker_from_log_mel": probed(heard, vectors),
    }
    text = table(rows)
    Path(out).mkdir(parents=True, exist_ok=True)
    write_atomically(Path(out) / "phonemes.json", json.dumps(result, indent=2).encode())
    write_atomically(Path(out) / "phonemes.txt", f"{text}\n".encode())
    print(text)
    print(f"speaker from log-mel: {100 * result['speaker_from_log_mel']['mean']:.1f} %")


@dataclass(frozen=True)
class Heard:
    """Some recordings of each part of a corpus, and what is said in them.

    Args:
        hop: samples of a frame.
        most: recordings of a part.
    """

    speech: Speech
    hop: int
    most: int

    @cached_property
    def parts(self) -> dict[str, tuple[Recordings, list[int]]]:
        """The recordings of each part, and the numbers of those that are measured on."""
        found = {name: getattr(self.speech, name) for name in PARTS}
        return {name: (part, spread(len(part), self.most).tolist()) for name, part in found.items() if part}

    def each(self, function: Callable[[Recordings, int], np.ndarray]) -> dict[str, list[np.ndarray]]:
        """What a function makes of each of these recordings."""
        return {name: [function(part, n) for n in numbers] for name, (part, numbers) in self.parts.items()}

    @cached_property
    def labels(self) -> dict[str, list[np.ndarray]]:
        """The phonemes at the middle of each frame."""
        return self.each(lambda part, n: frame_labels(part.phonemes(n), self.hop, -(-len(part.read(n)) // self.hop)))

    @cached_property
    def mels(self) -> dict[str, list[np.ndarray]]:
        """The log-mel spectrograms, averaged over each frame."""
        return self.each(lambda part, n: mel_features(part.waveform(n), part.rate, self.hop))

    def groups(self, name: str) -> list[str]:
        """What is said in each recording of a part: the same words of several voices are not independent."""
        part, numbers = self.parts[name]
        return [part.texts[n] or str(n) for n in numbers]


Codes = dict[str, list[np.ndarray]]


def at_random(heard: Heard, size: int, seed: int) -> tuple[Codes, float]:
    """Codes that know nothing, and their perplexity."""
    codes = {name: random_codes(labels, size, seed + 1000 * n) for n, (name, labels) in enumerate(heard.labels.items())}
    return codes, used(codes["held_out"], size)


def by_kmeans(heard: Heard, size: int, seed: int, centred: bool) -> tuple[Codes, float]:
    """Codes of spectrograms, whose codebook is found in the part that is learnt from."""
    features = {name: [mel - mel.mean(0) * centred for mel in part] for name, part in heard.mels.items()}
    codebook = kmeans(features["learnt"], size, seed)
    codes = {name: nearest_codes(codebook, part)[0] for name, part in features.items()}
    return codes, used(codes["held_out"], size)


def by_model(heard: Heard, voices: Voices) -> tuple[Codes, float]:
    """The codes of a VQ-VAE."""
    codes = heard.each(lambda part, n: voices.encode(part.read(n)).numpy())
    return codes, used(codes["held_out"], voices.network.config.quantizer.codes)


def used(codes: list[np.ndarray], size: int) -> float:
    """The perplexity of codes."""
    return float(perplexity(torch.bincount(torch.from_numpy(np.concatenate(codes)), minlength=size).float()))


def named(heard: Heard, codes: Codes, use: float, size: int) -> dict[str, Any]:
    """How often the names that the learnt part gives to codes are right elsewhere, and how well they tell speakers."""
    names = fit_map(codes["learnt"], heard.labels["learnt"], size, len(CLASSES))
    right = {part: accuracy(names, codes[part], heard.labels[part], heard.groups(part)) for part in codes}
    return {
        **right,
        "perplexity": use,
        "speaker": probed(heard, {part: histograms(values, size) for part, values in codes.items()}),
    }


def frequent(heard: Heard) -> dict[str, Any]:
    """The same of naming the most frequent phoneme of the learnt part every time."""
    labels = heard.labels
    return {part: majority(labels["learnt"], labels[part], len(CLASSES), heard.groups(part)) for part in labels}


def probed(heard: Heard, vectors: dict[str, torch.Tensor]) -> dict[str, float]:
    """How well the speaker of a held-out recording is read off a vector of it."""
    speakers = {name: heard.parts[name][0].speakers[heard.parts[name][1]].tolist() for name in PARTS[:2]}
    return speaker_probe(vectors["learnt"], speakers["learnt"], vectors["held_out"], speakers["held_out"])


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Mean ± standard deviation over seeds, in percent but for perplexity."""
    heads = ["", *(f"{part} %" for part in PARTS), "perplexity", "speaker %"]
    lines = [heads]
    for name, found in rows.items():
        cells = []
        for part in (*PARTS, "perplexity", "speaker"):
            values = [row[part] for row in found if part in row]
            scale = 1 if part == "perplexity" else 100
            numbers = [scale * (value if part == "perplexity" else value["mean"]) for value in values]
            cells.append(spread_of(numbers))
        lines.append([name, *cells])
    return aligned(lines, left={0})


def spread_of(values: list[float]) -> str:
    """Such as 51.6 ± 0.3; nothing of no values."""
    if not values:
        return ""
    found = moments(torch.tensor(values))
    return f"{found['mean']:.1f}" + (f" ± {found['deviation']:.1f}" if len(values) > 1 else "")
