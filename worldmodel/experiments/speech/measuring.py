"""Measure what the codes of a VQ-VAE of speech keep, and whether another voice is another's."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldmodel import checkpoint
from worldmodel.core.quantizer import perplexity
from worldmodel.data import sound
from worldmodel.data.speech import Recordings, Speech
from worldmodel.data.store import write_atomically
from worldmodel.data.windows import spread
from worldmodel.evaluation import plots
from worldmodel.evaluation.listeners import train_listener, verdicts
from worldmodel.evaluation.sound import mel_distance, plot_sounds
from worldmodel.experiments.speech.voices import Voices, filled, mean_bits
from worldmodel.scores import interval

TEXTS = 100  # different things said, up to which a listener learns to tell them apart
LISTENED = 4000  # recordings that a listener learns from
SHOWN = 3  # of those measured, in a picture and as files


def evaluate(
    run: str,
    speech: str,
    out: str,
    recordings: int = 250,
    listeners: bool = True,
    temperature: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Measure a VQ-VAE of speech on recordings that training held out.

    Bits per sample when the decoder is told the codes, those of another recording, or none. Each recording is said
    again by the same speaker and by another, each other in turn; listeners, who learnt from the recordings that the
    run did, say who speaks, and what if that is one of few things. Where the other speaker was recorded saying the
    same, the distance to that is measured too. The folder ``out`` gets scores.json, some of the sounds as wav files,
    sounds.png and training.png. Intervals are of 95 %, over recordings.

    Args:
        run: run folder of a VQ-VAE of speech.
        speech: the recordings, as for train.
        out: folder to write.
        recordings: held-out ones to measure on, evenly spread.
        listeners: ask them; they take minutes to learn.
        temperature: of what is said.
        seed: of the same, and of the listeners.
        device: cpu or cuda.
        threads: of torch on the CPU.
    """
    settings = {name: value for name, value in locals().items() if name not in ("out", "device", "threads")}
    if recordings < 1 or threads < 1:
        raise ValueError("--recordings and --threads must be 1 or more")
    torch.set_num_threads(threads)
    voices = Voices.load(run, device)
    data, folder = voices.open(speech), Path(out)
    numbers = spread(len(data.held_out), recordings).tolist()
    codes = [voices.encode(data.held_out.read(number)) for number in numbers]
    again = Again.made(voices, data.held_out, numbers, codes, temperature, seed)
    counts = torch.bincount(torch.cat(codes), minlength=voices.network.config.quantizer.codes).float()
    scores: dict[str, Any] = {
        "settings": settings,
        "recordings": len(numbers),
        "bits_per_second": float(np.log2(len(counts)) * voices.rate / voices.network.config.hop),
        "bits_per_sample": bits_per_sample(voices, data.held_out, numbers, codes),
        "perplexity": float(perplexity(counts)),
        "codes_used": int((counts > 0).sum()),
    }
    if len(voices.speakers) > 1:
        scores["mel_distance"] = distances(again, data.held_out, voices.rate)
    if listeners:
        scores |= heard(again, data, seed)
    for place in range(min(SHOWN, len(numbers))):
        name = data.held_out.paths[numbers[place]].stem
        for kind, waveform in again.kinds(place).items():
            sound.save(folder / f"{name} {kind}.wav", waveform, voices.rate)
    learning = plots.training_curves(checkpoint.read_metrics(Path(run)), "bits per sample", "bits_per_sample")
    for name, figure in (("sounds", plot_sounds(again.kinds(0), voices.rate)), ("training", learning)):
        figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
    write_atomically(folder / "scores.json", json.dumps(scores, indent=2).encode())
    print(json.dumps({name: part for name, part in scores.items() if name != "settings"}, indent=2))
    print(f"wrote {folder}: scores.json, sounds.png, training.png and some of the sounds")


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
        recorded = [recordings.waveform(number) for number in numbers]
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


def bits_per_sample(
    voices: Voices, recordings: Recordings, numbers: list[int], codes: list[Tensor]
) -> dict[str, dict[str, float]]:
    """Of these recordings, told their codes, those of another one, or none."""
    found: dict[str, list[float]] = {"true": [], "shuffled": [], "none": []}
    for place, number in enumerate(tqdm(numbers, unit="recording", desc="bits", leave=False)):
        samples, mine = recordings.read(number), codes[place]
        other = codes[(place + len(codes) // 2) % len(codes)]
        other = other.repeat(-(-len(mine) // len(other)))[: len(mine)]  # as long as mine
        line = torch.from_numpy(filled(samples, voices.network.config.hop))[None].to(voices.device)
        speaker = torch.tensor([recordings.speakers[number]], device=voices.device)
        for name, told in (("true", mine), ("shuffled", other), ("none", None)):
            bits = voices.network.bits(line, speaker, None if told is None else told[None].to(voices.device))
            found[name].append(float(mean_bits(bits, torch.tensor([len(samples)], device=voices.device))))
    return {name: interval(torch.tensor(values)) for name, values in found.items()}


def distances(again: Again, recordings: Recordings, rate: int) -> dict[str, dict[str, float]]:
    """Mel distance in dB to the other speaker's own recording of the same text, where one is held out.

    Of the recording, and of it converted. What the codes lose alone is the distance from the recording to it said again
    by the same speaker.
    """
    own = {
        (speaker, text): n for n, (speaker, text) in enumerate(zip(recordings.speakers, recordings.texts, strict=True))
    }
    found: dict[str, list[float]] = {"recorded to target": [], "converted to target": [], "same to recorded": []}
    for place, (number, target) in enumerate(zip(again.numbers, again.targets, strict=True)):
        there = own.get((target, recordings.texts[number])) if recordings.texts[number] else None
        found["same to recorded"].append(mel_distance(again.same[place], again.recorded[place], rate))
        if there is not None:
            truth = recordings.waveform(there)
            found["recorded to target"].append(mel_distance(again.recorded[place], truth, rate))
            found["converted to target"].append(mel_distance(again.converted[place], truth, rate))
    return {name: {**interval(torch.tensor(values)), "pairs": len(values)} for name, values in found.items() if values}


def heard(again: Again, data: Speech, seed: int) -> dict[str, Any]:
    """How often listeners name the speaker, and what is said if that is one of few things, rightly.

    Of what was converted, they are asked whether it is the other speaker, and whether it is still the first one.
    """
    some = spread(len(data.learnt), LISTENED).tolist()
    learnt = [data.learnt.waveform(number) for number in some]
    kinds = {"recorded": again.recorded, "same speaker": again.same, "converted": again.converted}
    result: dict[str, Any] = {}

    def asked(labels: Sequence[int], classes: int) -> dict[str, Tensor]:
        listener = train_listener(learnt, labels, classes, data.rate, seed=seed)
        return {name: verdicts(listener, part).argmax(-1) for name, part in kinds.items() if part}

    if len(data.speakers) > 1:
        speakers, targets = torch.tensor(again.speakers), torch.tensor(again.targets)
        answers = asked(data.learnt.speakers[some].tolist(), len(data.speakers))
        result["speaker"] = {
            name: interval((answer == speakers).float()) for name, answer in answers.items() if name != "converted"
        }
        result["speaker"]["converted is the other"] = interval((answers["converted"] == targets).float())
        result["speaker"]["converted is the first"] = interval((answers["converted"] == speakers).float())
    texts = sorted({data.learnt.texts[number] for number in some})
    said = [data.held_out.texts[number] for number in again.numbers]
    if 1 < len(texts) <= TEXTS and set(said) <= set(texts) and "" not in texts:
        truth = torch.tensor([texts.index(text) for text in said])
        answers = asked([texts.index(data.learnt.texts[number]) for number in some], len(texts))
        result["text"] = {name: interval((answer == truth).float()) for name, answer in answers.items()}
    return result
