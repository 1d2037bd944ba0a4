"""Scores of translations: BLEU and chrF by sacrebleu, and a paired bootstrap test of two systems."""

from collections.abc import Sequence
from typing import Any, cast

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest, Result

NUM_RESAMPLES = 1000


def bleu(translations: list[str], references: list[str]) -> float:
    """Return the corpus BLEU of translations, in [0, 100] (Papineni et al. 2002; Post 2018), cased, with 13a tokens."""
    return BLEU().corpus_score(translations, [references]).score


def score_translations(translations: list[str], references: list[str]) -> dict[str, dict[str, Any]]:
    """Return BLEU, cased and lower-cased, and chrF, each with sacrebleu's signature.

    The lower-cased BLEU compares with those on lower-cased text that was tokenized by Moses: 13a's tokens are nearly
    the same (12,106 in Multi30K's German test2016, where Moses makes 12,103).
    """
    metrics = {"bleu": BLEU(), "bleu_lowercase": BLEU(lowercase=True), "chrf": CHRF()}
    found = {}
    for name, metric in metrics.items():
        result = metric.corpus_score(translations, [references])
        found[name] = {"score": result.score, "text": str(result), "signature": str(metric.get_signature())}
    return found


def compare_translations(translations: list[str], others: list[str], references: list[str]) -> dict[str, Any]:
    """Return the paired bootstrap test of BLEU against another system (Koehn 2004): both scores, and the p-value."""
    systems: list[tuple[str, Sequence[str]]] = [("other", others), ("this", translations)]
    test = PairedTest(systems, {"bleu": BLEU()}, [references], test_type="bs", n_samples=NUM_RESAMPLES)
    other, this = cast(list[Result], test()[1]["BLEU"])
    return {
        "other": {"score": other.score, "mean": other.mean, "half_interval": other.ci},
        "this": {"score": this.score, "mean": this.mean, "half_interval": this.ci},
        "p_value": this.p_value,
    }
