"""Evaluate a speech VQ-VAE: ``python -m worldmodel.experiments.speech evaluate``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from worldmodel.files import check_folder, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from worldmodel.experiments.speech.codec import SpeechCodec
    from worldmodel.experiments.speech.data.dataset import Recordings


def evaluate(
    run: str,
    speech: str,
    out: str,
    recordings: int = 250,
    classifiers: bool = True,
    temperature: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Evaluate a speech VQ-VAE on held-out recordings.

    Measures bits per sample given the codes, the codes of a recording of another text, or, if training used code
    dropout, no codes. Each recording is resynthesized by its own speaker and converted to another one, each other
    speaker in turn. Classifiers trained on the training recordings, with and without added noise, recognize the speaker
    and, if there are few different texts, the text. Mel distances compare with the target speaker's own recording of
    the text, if there is one. Only the first ten seconds of a recording count. The folder ``out`` gets scores.json,
    some of the sounds as wav files, sounds.png and, for a run that was trained here, training.png. Intervals are 95 %,
    over recordings.

    Args:
        run: run folder of a speech VQ-VAE, or the name of a shipped codec.
        speech: folder or CSV file of the recordings that the VQ-VAE was trained on.
        out: folder to write.
        recordings: maximum number of held-out recordings to evaluate, evenly spaced.
        classifiers: also train the speaker and text classifiers, which takes minutes.
        temperature: sampling temperature of resynthesized speech.
        seed: random seed of sampling and of the classifiers.
        device: device of the VQ-VAE, cpu or cuda.
        threads: number of CPU threads of torch.
    """
    import torch

    from worldmodel import checkpoint
    from worldmodel.evaluation import plots
    from worldmodel.experiments.speech.codec import SpeechCodec, check_same_speech
    from worldmodel.experiments.speech.data.dataset import open_speech
    from worldmodel.experiments.speech.resynthesis import MAX_SECONDS, Resynthesis
    from worldmodel.models.precision import use_threads
    from worldmodel.models.quantizers.interface import perplexity
    from worldmodel.splits import evenly_spaced

    settings = {"run": run, "speech": speech, "recordings": recordings, "classifiers": classifiers}
    settings |= {"temperature": temperature, "seed": seed}
    if recordings < 1:
        raise ValueError(f"--recordings must be 1 or more, got {recordings}")
    check_folder(Path(out))
    use_threads(threads)
    codec = SpeechCodec.load(run, device)
    data, folder = open_speech(speech, codec.rate), Path(out)
    check_same_speech(codec.run, data)
    folder.mkdir(parents=True, exist_ok=True)
    indices = evenly_spaced(len(data.held_out), recordings).tolist()
    codes = [codec.encode(data.held_out.mu_law(index)[: MAX_SECONDS * codec.rate]) for index in indices]
    resynthesis = Resynthesis.from_codes(codec, data.held_out, indices, codes, temperature, seed)
    counts = torch.bincount(torch.cat(codes), minlength=codec.codebook_size).float()
    bits_per_code = float(np.log2(codec.codebook_size))
    scores: dict[str, Any] = {
        "settings": settings,
        "recordings": len(indices),
        "bits_per_second": bits_per_code * codec.rate / codec.hop,
        "code_bits_per_sample": bits_per_code / codec.hop,
        "bits_per_sample": bits_per_sample(codec, data.held_out, indices, codes, seed),
        "perplexity": float(perplexity(counts)),
        "codes_used": int((counts > 0).sum()),
        "mel_distance": resynthesis.mel_distances(data.held_out, codec.rate),
    }
    if classifiers:
        scores |= resynthesis.classifier_accuracies(data, seed)
    write_atomically(folder / "scores.json", json.dumps(scores, indent=2).encode())
    print(json.dumps({name: value for name, value in scores.items() if name != "settings"}, indent=2))
    resynthesis.save_sounds(data.held_out, folder, codec.rate)
    if (codec.run / "metrics.jsonl").exists():  # not in a shipped codec, nor in the copy within a prior's run
        rows = [row for row in checkpoint.read_metrics(codec.run) if row["step"] > codec.network.config.aux_only_steps]
        curves = plots.plot_training_curves(rows, "bits per sample", "bits_per_sample")
        curves.savefig(folder / "training.png", dpi=150, bbox_inches="tight")
    print(f"wrote {folder}: scores.json, plots and some of the sounds")


def bits_per_sample(
    codec: "SpeechCodec", recordings: "Recordings", indices: list[int], codes: "list[Tensor]", seed: int
) -> dict[str, dict[str, float]]:
    """Return the bits per sample of recordings given their codes, those of another text, or none, where possible."""
    import torch

    from worldmodel.experiments.speech.codec import mean_bits, pad_to_hop
    from worldmodel.experiments.speech.resynthesis import MAX_SECONDS
    from worldmodel.stats import bootstrap_interval

    values: dict[str, list[float]] = {"true": [], "shuffled": [], "none": []}
    others = sample_other_texts([recordings.texts[index] for index in indices], seed)
    for n, index in enumerate(tqdm(indices, unit="recording", desc="bits", leave=False)):
        samples, own = recordings.mu_law(index)[: MAX_SECONDS * codec.rate], codes[n]
        conditions: dict[str, Tensor | None] = {"true": own}
        if others:
            other = codes[others[n]]
            conditions["shuffled"] = other.repeat(-(-len(own) // len(other)))[: len(own)]
        if codec.network.config.code_dropout:
            conditions["none"] = None
        padded = torch.from_numpy(pad_to_hop(samples, codec.hop))[None].to(codec.device)
        speaker = torch.tensor([recordings.speakers[index]], device=codec.device)
        for name, condition in conditions.items():
            bits = codec.network.bits(padded, speaker, None if condition is None else condition[None].to(codec.device))
            values[name].append(float(mean_bits(bits, torch.tensor([len(samples)], device=codec.device))))
    return {name: bootstrap_interval(torch.tensor(part)) for name, part in values.items() if part}


def sample_other_texts(texts: Sequence[str], seed: int) -> list[int]:
    """Sample, for each text, the index of a different one; an empty list if some text has none."""
    random = np.random.default_rng(seed)
    candidates = [
        [n for n, other in enumerate(texts) if n != index and (not text or other != text)]
        for index, text in enumerate(texts)
    ]
    return [int(random.choice(others)) for others in candidates] if all(candidates) else []
