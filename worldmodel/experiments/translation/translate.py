"""Translate standard input: ``python -m worldmodel.experiments.translation translate``."""

import io
import sys

from worldmodel.experiments.translation.config import DEFAULT_TRANSLATOR


def translate(run: str = DEFAULT_TRANSLATOR, beam: int = 1, device: str = "cpu", threads: int = 1) -> None:
    """Translate standard input line by line to standard output.

    Args:
        run: run folder of a translation model, or the name of a shipped translator.
        beam: number of hypotheses of a teacher's beam search; a model with latents decodes greedily.
        device: device of the model, cpu or cuda.
        threads: number of CPU threads of torch.
    """
    from worldmodel.experiments.translation.translator import Translator
    from worldmodel.models.precision import use_threads

    use_threads(threads)
    translator = Translator.load(run, device)
    for line in io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8"):
        print(translator.translate([line], beam)[0], flush=True)
