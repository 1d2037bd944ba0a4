"""Recordings said again, by the same speaker and by another, and what listeners make of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.episodes.segments import spread
from worldmodel.experiments.speech.classifiers import train_listener, verdicts
from worldmodel.experiments.speech.codec import Voices
from worldmodel.experiments.speech.data import audio
from worldmodel.experiments.speech.data.dataset import Recordings, Speech
from worldmodel.experiments.speech.mel import mel_distance, plot_sounds
from worldmodel.metrics import interval

SECONDS = 10  # of a recording that are measured
TEXTS = 100  # different things said, up to which a listener learns to tell them apart
LISTENED = 4000  # recordings that a listener learns from
SHOWN = 3  # recordings that are written


@dataclass(frozen=True)
class Again:
    """Recordings and how they sound when their codes are said again.

    Attributes:
        numbers: of the recordings.
        speakers: theirs.
        targets: the other speakers.
        names: of all speakers.
        recorded: waveforms (N,) float32, so for the others.
        same: said again by the same speakers.
        converted: said by the others; empty if there is one speaker.
    """

    numbers: list[int]
    speakers: list[int]
    targets: list[int]
    names: tuple[str, ...]
    recorded: list[np.ndarray]
    same: list[np.ndarray]
    converted: list[np.ndarray]

    @classmethod
    def made(
        cls,
        voices: Voices,
        recordings: Recordings,
        numbers: list[int],
        codes: list[Tensor],
        temperature: float,
        seed: int,
    ) -> "Again":
        """Say the codes of these recordings again."""
        speakers, count = recordings.speakers[numbers].tolist(), len(voices.speakers)
        targets = [(speaker + 1 + n % (count - 1)) % count for n, speaker in enumerate(speakers)] if count > 1 else []
        recorded = [recordings.waveform(number)[: SECONDS * voices.rate] for number in numbers]
        same, converted = [], []
        for who, said in ((speakers, same), (targets, converted)):
            utterances = voices.say(codes, who, seed, temperature, progress=True) if who else []
            said += [utterances[n][: len(recorded[n])] for n in range(len(who))]  # not what filled the last code
        return cls(numbers, speakers, targets, voices.speakers, recorded, same, converted)

    def kinds(self, place: int) -> dict[str, np.ndarray]:
        """The waveforms of one recording by what they are."""
        found = {"recorded": self.recorded[place], "same speaker": self.same[place]}
        if self.converted:
            found[f"as {self.names[self.targets[place]]}"] = self.converted[place]
        return found


def show(again: Again, recordings: Recordings, folder: Path, rate: int) -> None:
    """Write some of the sounds, evenly spread, and draw those of the first."""
    for place in spread(len(again.numbers), SHOWN).tolist():
        number = again.numbers[place]
        name = f"{again.names[recordings.speakers[number]]} {recordings.paths[number].stem}"
        for kind, waveform in again.kinds(place).items():
            audio.save(folder / f"{name} {kind}.wav", waveform, rate)
    plot_sounds(again.kinds(0), rate).savefig(folder / "sounds.png", dpi=150, bbox_inches="tight")


def distances(again: Again, recordings: Recordings, rate: int) -> dict[str, dict[str, float]]:
    """Mel distance in dB to the other speaker's own recording of the same text, where one is held out.

    Of the recording, and of it converted. Another text in the same converted voice says how much of that is the voice
    alone, and one more recording of the other speaker, where there is one, how near it could be. What the codes lose
    is the distance from the recording to it said again by the same speaker.
    """
    texts = recordings.texts
    found: dict[str, list[float]] = {}
    own: dict[tuple[int, str], list[int]] = {}
    for n, key in enumerate(zip(recordings.speakers.tolist(), texts, strict=True)):
        own.setdefault(key, []).append(n)

    def measured(name: str, one: np.ndarray, other: np.ndarray) -> None:
        found.setdefault(name, []).append(mel_distance(one, other, rate))

    for place, number in enumerate(again.numbers):
        measured("same to recorded", again.same[place], again.recorded[place])
        target, text = again.targets[place] if again.targets else None, texts[number]
        there = own.get((target, text), []) if text else []
        if not there:
            continue
        truth, *more = (recordings.waveform(n)[: SECONDS * rate] for n in there[:2])
        measured("recorded to target", again.recorded[place], truth)
        measured("converted to target", again.converted[place], truth)
        order = [*range(place, len(again.numbers)), *range(place)]
        others = [n for n in order if again.targets[n] == target and texts[again.numbers[n]] != text]
        if others:
            measured("other words converted to target", again.converted[others[0]], truth)
        for another in more:
            measured("target to target", another, truth)
    return {name: {**interval(torch.tensor(values)), "pairs": len(values)} for name, values in found.items()}


def told_apart(again: Again, data: Speech, seed: int) -> dict[str, Any]:
    """How often listeners name the speaker, and what is said if that is one of few things, rightly.

    Of what was converted, they are asked whether it is the other speaker, and whether it is still the first one. Those
    who learnt from recordings with noise are asked, and, under "clean", those who learnt from them as they are.
    """
    some = spread(len(data.learnt), LISTENED).tolist()
    texts = sorted({data.learnt.texts[number] for number in some})
    said = [data.held_out.texts[number] for number in again.numbers]
    few = 1 < len(texts) <= TEXTS and set(said) <= set(texts) and "" not in texts
    if not few and len(data.speakers) == 1:
        return {}
    learnt = [data.learnt.waveform(number)[: SECONDS * data.rate] for number in some]
    kinds = {"recorded": again.recorded, "same speaker": again.same, "converted": again.converted}

    def asked(labels: Sequence[int], classes: int, noise: bool) -> dict[str, Tensor]:
        listener = train_listener(learnt, labels, classes, data.rate, seed=seed, noise=noise)
        return {name: verdicts(listener, part).argmax(-1) for name, part in kinds.items() if part}

    def heard(noise: bool) -> dict[str, dict[str, Any]]:
        result = {}
        if len(data.speakers) > 1:
            speakers, targets = torch.tensor(again.speakers), torch.tensor(again.targets)
            answers = asked(data.learnt.speakers[some].tolist(), len(data.speakers), noise)
            converted = answers.pop("converted")
            result["speaker"] = {name: interval((answer == speakers).float()) for name, answer in answers.items()}
            result["speaker"]["converted is the other"] = interval((converted == targets).float())
            result["speaker"]["converted is the first"] = interval((converted == speakers).float())
        if few:
            truth = torch.tensor([texts.index(text) for text in said])
            answers = asked([texts.index(data.learnt.texts[number]) for number in some], len(texts), noise)
            result["text"] = {name: interval((answer == truth).float()) for name, answer in answers.items()}
        return result

    return {**heard(noise=True), "clean": heard(noise=False)}
