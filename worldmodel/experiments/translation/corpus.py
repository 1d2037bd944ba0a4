"""Parallel text: two files of which line n of one translates line n of the other, or a folder of such files."""

from pathlib import Path
from typing import NamedTuple

from worldmodel.experiments.translation.subwords import Subwords
from worldmodel.files import read_lines
from worldmodel.splits import evenly_spaced

MAX_HELD_OUT = 1000  # sentence pairs held out of two files, at most a tenth of them


class Pairs(NamedTuple):
    """Sentences and their translations, in equal numbers."""

    sources: list[str]
    targets: list[str]

    def select(self, rows: list[int]) -> "Pairs":
        """Return the pairs with these numbers."""
        return Pairs([self.sources[row] for row in rows], [self.targets[row] for row in rows])

    def without_empty(self) -> "Pairs":
        """Return the pairs of which neither side is empty."""
        return self.select([row for row, sides in enumerate(zip(*self, strict=True)) if all(sides)])


def read_pairs(corpus: str, source: str, target: str, languages: str, split: str) -> Pairs:
    """Read a split of a corpus folder, or else two files.

    Args:
        corpus: folder with files such as train.en.gz and train.de.gz, the layout of Multi30K; or empty.
        source: file of source sentences, if there is no folder.
        target: file of their translations.
        languages: source and target languages, such as en-de, which end the names of the folder's files.
        split: what begins their names.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the files differ in their number of lines, are not UTF-8 text, or it is unclear which to read.
    """
    if bool(corpus) == bool(source or target) or bool(source) != bool(target):
        raise ValueError("expected either --corpus, or both --source and --target")
    paths = _find_split(Path(corpus), split, languages) if corpus else (Path(source), Path(target))
    pairs = Pairs(*map(read_lines, paths))
    _check_equal_lines(paths[0], pairs.sources, paths[1], pairs.targets)
    return pairs


def read_training_pairs(
    corpus: str, source: str, target: str, languages: str, distilled: str = ""
) -> tuple[Pairs, Pairs]:
    """Read pairs to train on and pairs to hold out: the splits train and val of a folder, or parts of two files.

    Of two files, pairs that share a sentence with a held-out one are left out of training.

    Args:
        distilled: file of a teacher's translations of all training sources, which replace the targets to train on.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_pairs`; or if there is only one pair.
    """
    pairs = read_pairs(corpus, source, target, languages, "train")
    rows, held_out_rows = list(range(len(pairs.sources))), []
    if not corpus:
        held_out_rows = evenly_spaced(len(rows), max(1, min(MAX_HELD_OUT, len(rows) // 10))).tolist()
        sources, targets = (set(lines) for lines in pairs.select(held_out_rows))
        rows = [row for row in rows if pairs.sources[row] not in sources and pairs.targets[row] not in targets]
    held_out = read_pairs(corpus, "", "", languages, "val") if corpus else pairs.select(held_out_rows)
    if not rows or not held_out.sources:
        raise ValueError(f"{corpus or source} must hold two or more sentence pairs, one of them to hold out")
    if distilled:
        translations = read_lines(Path(distilled))
        _check_equal_lines(Path(distilled), translations, Path(corpus or source), pairs.sources)
        pairs = pairs._replace(targets=translations)
    return pairs.select(rows), held_out


def encode_pairs(subwords: Subwords, pairs: Pairs, max_length: int) -> tuple[list[list[int]], list[list[int]]]:
    """Encode pairs as subwords, each ending with EOS, without pairs that have an empty or a long side; say how many."""
    encoded = [(subwords.encode(a), subwords.encode(b)) for a, b in zip(*pairs.without_empty(), strict=True)]
    short = [pair for pair in encoded if max(map(len, pair)) <= max_length]
    num_empty, num_long = len(pairs.sources) - len(encoded), len(encoded) - len(short)
    if num_empty or num_long:
        print(
            f"left out of {len(pairs.sources)} sentence pairs: {num_empty} with an empty side, "
            f"{num_long} of more than {max_length} subwords"
        )
    return [a for a, _ in short], [b for _, b in short]


def _find_split(corpus: Path, split: str, languages: str) -> tuple[Path, Path]:
    ends = languages.split("-")
    if len(ends) != 2:
        raise ValueError(f"--languages must be two names with a hyphen between them, such as en-de, got {languages}")
    paths = []
    for language in ends:
        names = [f"{split}.{language}", f"{split}.{language}.gz"]
        found = [corpus / name for name in names if (corpus / name).is_file()]
        if not found:
            raise FileNotFoundError(f"{corpus} holds no {names[0]} or {names[1]}; give another --corpus or --languages")
        paths.append(found[0])
    return paths[0], paths[1]


def _check_equal_lines(path: Path, lines: list[str], other_path: Path, other: list[str]) -> None:
    if len(lines) != len(other):
        raise ValueError(
            f"{path} has {len(lines)} lines and {other_path} has {len(other)}; line n of one must translate line n of "
            "the other"
        )
