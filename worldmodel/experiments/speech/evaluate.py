"""Measure what the codes of a VQ-VAE of speech keep, and whether another voice is another's."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldmodel import checkpoint
from worldmodel.episodes.segments import spread
from worldmodel.evaluation import plots
from worldmodel.experiments.speech.codec import Voices, filled, mean_bits, same_speech, use_threads
from worldmodel.experiments.speech.data.dataset import Recordings, open_speech
from worldmodel.experiments.speech.resynthesis import SECONDS, Again, distances, show, told_apart
from worldmodel.files import check_folder, write_atomically
from worldmodel.metrics import interval
from worldmodel.models.quantizers.nearest import perplexity


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

    Bits per sample when the decoder is told the codes, those of another recording that says something else, or none,
    if it was told none of some in training. Each recording is said again by the same speaker and by another, each other
    in turn; listeners, who learnt from the recordings that the run did, with noise added and as they are, say who
    speaks, and what if that is one of few things. Where the other speaker was recorded saying the same, the distance to
    that is measured too. Of a long recording it is all about the first ten seconds. The folder ``out`` gets
    scores.json, some of the sounds as wav files, sounds.png, and of a run that was trained here training.png.
    Intervals are of 95 %, over recordings.

    Args:
        run: run folder of a VQ-VAE of speech, or the name of voices that are shipped.
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
    if recordings < 1:
        raise ValueError(f"--recordings must be 1 or more, got {recordings}")
    check_folder(Path(out))
    use_threads(threads)
    voices = Voices.load(run, device)
    data, folder = open_speech(speech, voices.rate), Path(out)
    same_speech(voices.run, data)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = spread(len(data.held_out), recordings).tolist()
    codes = [voices.encode(data.held_out.read(number)[: SECONDS * voices.rate]) for number in numbers]
    again = Again.made(voices, data.held_out, numbers, codes, temperature, seed)
    counts = torch.bincount(torch.cat(codes), minlength=voices.network.config.quantizer.codes).float()
    scores: dict[str, Any] = {
        "settings": settings,
        "recordings": len(numbers),
        "bits_per_second": float(np.log2(len(counts)) * voices.rate / voices.network.config.hop),
        "bits_of_codes_per_sample": float(np.log2(len(counts)) / voices.network.config.hop),
        "bits_per_sample": bits_per_sample(voices, data.held_out, numbers, codes, seed),
        "perplexity": float(perplexity(counts)),
        "codes_used": int((counts > 0).sum()),
    }
    scores["mel_distance"] = distances(again, data.held_out, voices.rate)
    if listeners:
        scores |= told_apart(again, data, seed)
    write_atomically(folder / "scores.json", json.dumps(scores, indent=2).encode())
    print(json.dumps({name: part for name, part in scores.items() if name != "settings"}, indent=2))
    show(again, data.held_out, folder, voices.rate)
    if (voices.run / "metrics.jsonl").exists():  # a copy within a prior's run has none, nor have shipped voices
        rows = [row for row in checkpoint.read_metrics(voices.run) if row["step"] > voices.network.config.alone]
        curves = plots.training_curves(rows, "bits per sample", "bits_per_sample")
        curves.savefig(folder / "training.png", dpi=150, bbox_inches="tight")
    print(f"wrote {folder}: scores.json, pictures and some of the sounds")


def bits_per_sample(
    voices: Voices, recordings: Recordings, numbers: list[int], codes: list[Tensor], seed: int
) -> dict[str, dict[str, float]]:
    """Of these recordings, told their codes, those of another one, or none; what cannot be is left out."""
    found: dict[str, list[float]] = {"true": [], "shuffled": [], "none": []}
    others = elsewhere([recordings.texts[number] for number in numbers], seed)
    for place, number in enumerate(tqdm(numbers, unit="recording", desc="bits", leave=False)):
        samples, mine = recordings.read(number)[: SECONDS * voices.rate], codes[place]
        told: dict[str, Tensor | None] = {"true": mine}
        if others:
            other = codes[others[place]]
            told["shuffled"] = other.repeat(-(-len(mine) // len(other)))[: len(mine)]  # as long as mine
        if voices.network.config.untold:
            told["none"] = None
        line = torch.from_numpy(filled(samples, voices.network.config.hop))[None].to(voices.device)
        speaker = torch.tensor([recordings.speakers[number]], device=voices.device)
        for name, part in told.items():
            bits = voices.network.bits(line, speaker, None if part is None else part[None].to(voices.device))
            found[name].append(float(mean_bits(bits, torch.tensor([len(samples)], device=voices.device))))
    return {name: interval(torch.tensor(values)) for name, values in found.items() if values}


def elsewhere(texts: Sequence[str], seed: int) -> list[int]:
    """For each recording the place of another, drawn at random, that says something else; none if there is not one."""
    random = np.random.default_rng(seed)
    found = [
        [n for n, other in enumerate(texts) if n != place and (not text or other != text)]
        for place, text in enumerate(texts)
    ]
    return [int(random.choice(others)) for others in found] if all(found) else []
