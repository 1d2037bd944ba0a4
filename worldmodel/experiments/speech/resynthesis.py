"""Recordings resynthesized by the same and by another speaker, with distances and classifier accuracies."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.experiments.speech.classifiers import classify, train_classifier
from worldmodel.experiments.speech.codec import SpeechCodec
from worldmodel.experiments.speech.data import audio
from worldmodel.experiments.speech.data.dataset import Recordings, Speech
from worldmodel.experiments.speech.mel import mel_distance, plot_sounds
from worldmodel.splits import evenly_spaced
from worldmodel.stats import bootstrap_interval

MAX_SECONDS = 10  # evaluated length of a recording
MAX_TEXTS = 100  # different texts up to which a text classifier is trained
MAX_TRAINING_RECORDINGS = 4000  # for a classifier
NUM_SAVED = 3  # recordings whose sounds are written


@dataclass(frozen=True)
class Resynthesis:
    """Recordings, and the speech decoded from their codes in the same and in another voice.

    Attributes:
        indices: indices of the recordings.
        speakers: speaker index of each recording.
        targets: target speaker index of each conversion.
        speaker_names: names of all speakers.
        recorded: recorded waveforms (N,) float32.
        same_speaker: waveforms resynthesized by the same speakers.
        converted: waveforms converted to the targets; empty if there is one speaker only.
    """

    indices: list[int]
    speakers: list[int]
    targets: list[int]
    speaker_names: tuple[str, ...]
    recorded: list[np.ndarray]
    same_speaker: list[np.ndarray]
    converted: list[np.ndarray]

    @classmethod
    def from_codes(
        cls,
        codec: SpeechCodec,
        recordings: Recordings,
        indices: list[int],
        codes: list[Tensor],
        temperature: float,
        seed: int,
    ) -> "Resynthesis":
        """Decode the codes of the recordings with ``indices``."""
        speakers, count = recordings.speakers[indices].tolist(), len(codec.speakers)
        targets = [(speaker + 1 + n % (count - 1)) % count for n, speaker in enumerate(speakers)] if count > 1 else []
        recorded = [recordings.waveform(index)[: MAX_SECONDS * codec.rate] for index in indices]

        def decode(voices: list[int]) -> list[np.ndarray]:
            waveforms = codec.decode(codes, voices, seed, temperature, progress=True)
            return [waveform[: len(own)] for waveform, own in zip(waveforms, recorded, strict=True)]  # without padding

        converted = decode(targets) if targets else []
        return cls(indices, speakers, targets, codec.speakers, recorded, decode(speakers), converted)

    def versions(self, n: int) -> dict[str, np.ndarray]:
        """Return the waveforms of the n-th recording by title."""
        waveforms = {"recorded": self.recorded[n], "same speaker": self.same_speaker[n]}
        if self.converted:
            waveforms[f"as {self.speaker_names[self.targets[n]]}"] = self.converted[n]
        return waveforms

    def save_sounds(self, recordings: Recordings, folder: Path, rate: int) -> None:
        """Write the sounds of a few evenly spaced recordings, and plot those of the first."""
        for n in evenly_spaced(len(self.indices), NUM_SAVED).tolist():
            index = self.indices[n]
            name = f"{self.speaker_names[recordings.speakers[index]]} {recordings.paths[index].stem}"
            for title, waveform in self.versions(n).items():
                audio.save(folder / f"{name} {title}.wav", waveform, rate)
        plot_sounds(self.versions(0), rate).savefig(folder / "sounds.png", dpi=150, bbox_inches="tight")

    def mel_distances(self, recordings: Recordings, rate: int) -> dict[str, dict[str, float]]:
        """Return mel distances in dB, mainly to the target's own held-out recording of the text, if there is one.

        ``same_speaker_to_recorded`` is the codec's loss, ``other_text_converted_to_target`` the effect of the voice
        alone, and ``target_to_target``, between two recordings of the target, the best that conversion could reach.
        """
        texts = recordings.texts
        values: dict[str, list[float]] = {}
        by_speaker_and_text: dict[tuple[int, str], list[int]] = {}
        for n, key in enumerate(zip(recordings.speakers.tolist(), texts, strict=True)):
            by_speaker_and_text.setdefault(key, []).append(n)

        def add(name: str, one: np.ndarray, other: np.ndarray) -> None:
            values.setdefault(name, []).append(mel_distance(one, other, rate))

        for n, index in enumerate(self.indices):
            add("same_speaker_to_recorded", self.same_speaker[n], self.recorded[n])
            text = texts[index]
            references = by_speaker_and_text.get((self.targets[n], text), []) if self.targets and text else []
            if not references:
                continue
            reference, *more = (recordings.waveform(i)[: MAX_SECONDS * rate] for i in references[:2])
            add("recorded_to_target", self.recorded[n], reference)
            add("converted_to_target", self.converted[n], reference)
            order = [*range(n, len(self.indices)), *range(n)]
            others = [i for i in order if self.targets[i] == self.targets[n] and texts[self.indices[i]] != text]
            if others:
                add("other_text_converted_to_target", self.converted[others[0]], reference)
            for another in more:
                add("target_to_target", another, reference)
        return {name: {**bootstrap_interval(torch.tensor(part)), "pairs": len(part)} for name, part in values.items()}

    def classifier_accuracies(self, data: Speech, seed: int) -> dict[str, Any]:
        """Return how often classifiers recognize the speaker and, if there are few different texts, the text.

        Conversions are scored against the target and against the source speaker. The classifiers are trained with added
        noise; the scores of those trained without are under ``trained_without_noise``.
        """
        indices = evenly_spaced(len(data.train), MAX_TRAINING_RECORDINGS).tolist()
        train_texts = [data.train.texts[index] for index in indices]
        texts = sorted(set(train_texts))
        true_texts = [data.held_out.texts[index] for index in self.indices]
        few_texts = 1 < len(texts) <= MAX_TEXTS and set(true_texts) <= set(texts) and "" not in texts
        if not few_texts and len(data.speakers) == 1:
            return {}
        train_waveforms = [data.train.waveform(index)[: MAX_SECONDS * data.rate] for index in indices]
        versions = {"recorded": self.recorded, "same_speaker": self.same_speaker, "converted": self.converted}

        def predict(labels: Sequence[int], classes: int, noise: bool) -> dict[str, Tensor]:
            classifier = train_classifier(train_waveforms, labels, classes, data.rate, seed=seed, noise=noise)
            return {name: classify(classifier, part).argmax(-1) for name, part in versions.items() if part}

        def accuracies(noise: bool) -> dict[str, dict[str, Any]]:
            correct: dict[str, dict[str, Tensor]] = {}
            if len(data.speakers) > 1:
                speakers = torch.tensor(self.speakers)
                predictions = predict(data.train.speakers[indices].tolist(), len(data.speakers), noise)
                converted = predictions.pop("converted")
                correct["speaker"] = {name: part == speakers for name, part in predictions.items()}
                correct["speaker"]["converted_as_target"] = converted == torch.tensor(self.targets)
                correct["speaker"]["converted_as_source"] = converted == speakers
            if few_texts:
                labels = torch.tensor([texts.index(text) for text in true_texts])
                predictions = predict([texts.index(text) for text in train_texts], len(texts), noise)
                correct["text"] = {name: part == labels for name, part in predictions.items()}
            return {
                task: {name: bootstrap_interval(part.float()) for name, part in parts.items()}
                for task, parts in correct.items()
            }

        return {**accuracies(noise=True), "trained_without_noise": accuracies(noise=False)}
