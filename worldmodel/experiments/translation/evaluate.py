"""Evaluate a translation model: ``python -m worldmodel.experiments.translation evaluate``."""

import json
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from worldmodel.files import check_folder, read_lines, write_atomically

if TYPE_CHECKING:
    from worldmodel.experiments.translation.translator import Translator

NUM_WARMUP_SENTENCES = 20  # translated before the clock starts


def evaluate(
    run: str,
    out: str,
    corpus: str = "",
    source: str = "",
    target: str = "",
    languages: str = "en-de",
    split: str = "test_2016_flickr",
    beam: int = 1,
    compare: str = "",
    baseline: str = "",
    baseline_beam: int = 4,
    latency: bool = True,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Evaluate a translation model on a test set; the folder ``out`` gets scores.json and translations.txt.

    Scores are BLEU, cased and lower-cased, and chrF, by sacrebleu, with its signatures. Latency is measured for one
    sentence at a time. A model with latents is also measured by BLEU from the latents of the references, an upper
    bound, and from those of other sentences; by the accuracy of its predictor; and by the mutual information of latents
    and words, on the training split of a corpus folder, otherwise on the test set.

    Args:
        run: run folder of a translation model, or the name of a shipped translator.
        out: folder to write.
        corpus: folder with the test set, such as test_2016_flickr.en and .de, plain or .gz, as in Multi30K.
        source: file of source sentences, one a line, instead of a corpus folder; not the file of a training, of which
            this does not know what was held out.
        target: file of their translations, line by line.
        languages: source and target languages in the names of the corpus folder's files.
        split: name of the test set, with which its files in the corpus folder begin.
        beam: number of hypotheses of a teacher's beam search; 1 decodes greedily.
        compare: translations.txt of another system, for a paired bootstrap test.
        baseline: run folder of a teacher, whose latency is measured beside, for the speed-up.
        baseline_beam: number of hypotheses of the baseline's beam search.
        latency: also translate all sentences one by one, and measure the time.
        device: device of the model, cpu or cuda.
        threads: number of CPU threads of torch.
    """
    from worldmodel import checkpoint
    from worldmodel.experiments.translation.corpus import read_pairs
    from worldmodel.experiments.translation.latents import measure_latents
    from worldmodel.experiments.translation.model import LatentTranslator
    from worldmodel.experiments.translation.scores import compare_translations, score_translations
    from worldmodel.experiments.translation.translator import Translator
    from worldmodel.models.precision import use_threads

    folder = Path(out)
    check_folder(folder)
    if baseline and not latency:
        raise ValueError("--baseline is measured for its latency; leave one of --baseline and --latency false out")
    use_threads(threads)
    translator, pairs = Translator.load(run, device), read_pairs(corpus, source, target, languages, split)
    teacher = Translator.load(baseline, device) if baseline else None
    translator.check_beam(beam)
    if teacher:
        teacher.check_beam(baseline_beam, "--baseline_beam")
    if not pairs.without_empty().sources:
        raise ValueError("the test set holds no pair of sentences with words on both sides")
    others = read_lines(Path(compare)) if compare else []
    if compare and len(others) != len(pairs.sources):
        raise ValueError(f"{compare} has {len(others)} lines, and the test set {len(pairs.sources)} sentences")
    folder.mkdir(parents=True, exist_ok=True)
    translations = translator.translate(pairs.sources, beam, progress=True)
    write_atomically(folder / "translations.txt", "".join(f"{line}\n" for line in translations).encode())
    trained = checkpoint.read_config(translator.run)
    settings = {"run": run, "beam": beam, "split": split, "device": device, "threads": threads, "baseline": baseline}
    scores: dict[str, Any] = {
        "settings": settings,
        **{name: trained[name] for name in ("kind", "model", "train", "data")},
        "sentences": len(pairs.sources),
        "reference_words": sum(len(line.split()) for line in pairs.targets),
        **score_translations(translations, pairs.targets),
    }
    if compare:
        scores["compared"] = {"with": compare, **compare_translations(translations, others, pairs.targets)}
    if latency:
        scores["latency_ms"] = measure_latency(translator, pairs.sources, beam)
        if teacher:
            scores["baseline_latency_ms"] = measure_latency(teacher, pairs.sources, baseline_beam)
            scores["speedup"] = scores["baseline_latency_ms"]["mean"] / scores["latency_ms"]["mean"]
    if isinstance(translator.network, LatentTranslator):
        counted = read_pairs(corpus, "", "", languages, "train") if corpus else pairs
        scores["latents"] = measure_latents(translator.network, translator.subwords, pairs, counted)
    write_atomically(folder / "scores.json", json.dumps(scores, indent=2, ensure_ascii=False).encode())
    for name in ("bleu", "bleu_lowercase", "chrf"):
        print(f"{scores[name]['text']}   {scores[name]['signature']}")
    known = {**scores, **scores.get("latents", {})}
    shown = ("speedup", "bleu_true_latents", "bleu_shuffled_latents", "predictor_accuracy", "perplexity")
    print(", ".join(f"{name} {known[name]:.4g}" for name in shown if name in known))
    print(f"wrote {folder}: scores.json, translations.txt")


def measure_latency(translator: "Translator", sentences: list[str], beam: int) -> dict[str, float]:
    """Return the mean time in ms of translating one sentence at a time, its 95 % interval, and the median."""
    import torch

    from worldmodel.stats import bootstrap_interval

    translator.translate(sentences[:NUM_WARMUP_SENTENCES], beam)
    times = []
    for sentence in tqdm(sentences, unit="sentence", desc="latency", leave=False):
        start = perf_counter()
        translator.translate([sentence], beam)
        times.append(1000 * (perf_counter() - start))
    values = torch.tensor(times)
    return {**bootstrap_interval(values), "median": float(values.median())}
