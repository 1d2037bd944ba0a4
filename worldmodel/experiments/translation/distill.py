"""Translate the training sentences by a teacher: ``python -m worldmodel.experiments.translation distill``."""

import hashlib
import os
from pathlib import Path

from tqdm import tqdm

from worldmodel.files import check_file

CHUNK_LINES = 1000  # lines between two writes


def distill(
    run: str,
    out: str,
    corpus: str = "",
    source: str = "",
    target: str = "",
    languages: str = "en-de",
    beam: int = 4,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Translate all training sources by beam search, for train --distilled (Kim & Rush 2016, section 3.2).

    Interrupted, the same command continues.

    Args:
        run: run folder of a teacher.
        out: text file to write, with a translation for each line of the training source.
        corpus: folder of the training text, as given to train-teacher.
        source: file of source sentences, instead of a corpus folder.
        target: file of their translations, whose lines are only counted.
        languages: source and target languages in the names of the corpus folder's files.
        beam: number of hypotheses of the beam search.
        device: device of the teacher, cpu or cuda.
        threads: number of CPU threads of torch.
    """
    from worldmodel import tensor_io
    from worldmodel.experiments.translation.corpus import read_pairs
    from worldmodel.experiments.translation.translator import Translator
    from worldmodel.models.precision import use_threads

    path = Path(out)
    check_file(path)
    if path.exists():
        raise ValueError(f"{path} already exists; remove it, or give another name")
    use_threads(threads)
    teacher = Translator.load(run, device)
    lines = read_pairs(corpus, source, target, languages, "train").sources
    path.parent.mkdir(parents=True, exist_ok=True)
    text = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    partial = path.with_name(f"{path.name}.{tensor_io.digest(teacher.run)}-{text}-{beam}.partial")
    kept = partial.read_text("utf-8").split("\n")[:-1] if partial.exists() else []
    kept = kept[: len(kept) // CHUNK_LINES * CHUNK_LINES]
    with open(partial, "w", encoding="utf-8") as file, tqdm(total=len(lines), initial=len(kept), unit="line") as bar:
        file.writelines(f"{line}\n" for line in kept)
        for start in range(len(kept), len(lines), CHUNK_LINES):
            translations = teacher.translate(lines[start : start + CHUNK_LINES], beam)
            file.writelines(f"{line}\n" for line in translations)
            file.flush()
            bar.update(len(translations))
    os.replace(partial, path)
    print(f"wrote {path}: {len(lines)} lines")
