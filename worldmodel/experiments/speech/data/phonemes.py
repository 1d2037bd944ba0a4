"""The 41 classes of English sounds, what espeak-ng's mnemonics become in them, and files of when each is said.

The names are ARPABET's in small letters: 16 vowels, 24 consonants and the pause. The map is of what eight English
accents of espeak-ng 1.51 say in 80,000 sounds of captions: marks of stress and length fall away, r-coloured vowels
become the vowel without its r, or er, reduced ones become ax, ih or iy, and all pauses are one.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from worldmodel.suggest import unknown

PAUSE = "pau"
MNEMONICS = {  # class: espeak-ng's mnemonics of it
    PAUSE: "_ _: _! _|",
    "aa": "A A: A@ A~ 0",  # father, car, croissant, fox
    "ae": "a aa",  # man, grass
    "ah": "V",  # cup
    "ao": "O O: O@ O2 o@",  # ball, shore, cross, poor
    "aw": "aU",  # down
    "ax": "@ a# @- @2 @5",  # woman, about, camera, the, to
    "ay": "aI aI@ aI2 aI3",  # white, fire
    "eh": "E e@",  # many, hair
    "er": "3: 3 IR VR",  # girl, over, third, work
    "ey": "eI e",  # baby
    "ih": "I I2 I# i@ i@3",  # hill, bushes, watches, idea, near
    "iy": "i: i",  # field, ready
    "ow": "oU o",  # nose
    "oy": "OI",  # boy
    "uh": "U U@",  # woman, tour
    "uw": "u: u",  # two
    "b": "b",
    "ch": "tS",
    "d": "d",
    "dh": "D",
    "f": "f",
    "g": "g",
    "hh": "h",
    "jh": "dZ",
    "k": "k x",  # cup, loch
    "l": "l @L",  # along, little
    "m": "m",
    "n": "n n-",  # near, button
    "ng": "N",
    "p": "p",
    "r": "r r-",  # running, over it
    "s": "s",
    "sh": "S",
    "t": "t t# t2 t[ ?",  # two, better, into, three in the Caribbean, button
    "th": "T",
    "v": "v",
    "w": "w w#",  # woman, white in Scotland
    "y": "j ;",  # young, lady in
    "z": "z",
    "zh": "Z",
}
CLASSES = tuple(MNEMONICS)
_CLASS_OF = {mnemonic: name for name, mnemonics in MNEMONICS.items() for mnemonic in mnemonics.split()}


class Phonemes(NamedTuple):
    """What is said when, n sounds in order."""

    starts: np.ndarray  # (n,) int64, the sample that each begins with
    stops: np.ndarray  # (n,) int64, the sample after its last
    classes: np.ndarray  # (n,) int64, places in CLASSES


def class_of(mnemonic: str) -> str:
    """The class of one of espeak-ng's mnemonics; one that is not in the map is taken for its longest beginning that is.

    Raises:
        ValueError: if there is none.
    """
    known = mnemonic.lstrip("',%=|") or "_"  # marks of stress and joints
    while known and known not in _CLASS_OF:
        known = known[:-1]
    if not known:
        raise ValueError(f"espeak-ng's phoneme {mnemonic!r} is in none of {len(CLASSES)} classes; take English voices")
    return _CLASS_OF[known]


def write_phn(phonemes: Phonemes) -> str:
    """The text of a .phn file, as TIMIT has them: lines of start, stop and class."""
    lines = zip(phonemes.starts, phonemes.stops, phonemes.classes, strict=True)
    return "".join(f"{start} {stop} {CLASSES[number]}\n" for start, stop, number in lines)


def read_phn(path: str | Path) -> Phonemes:
    """What a .phn file says.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the line that is not start, stop and one of CLASSES, or goes back in time.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there are no phonemes {path}; python -m worldmodel.experiments.speech synthesize")
    rows, before = [], 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split()
        if len(fields) != 3 or not (fields[0] + fields[1]).isdecimal():
            raise ValueError(f"{path}, line {number}: expected START STOP PHONEME, got {line!r}")
        start, stop = int(fields[0]), int(fields[1])
        if fields[2] not in CLASSES:
            raise ValueError(f"{path}, line {number}: {unknown('phoneme', fields[2], CLASSES)}")
        if not before <= start < stop:
            raise ValueError(f"{path}, line {number}: must start at {before} or later and end after that, got {line!r}")
        rows.append((start, stop, CLASSES.index(fields[2])))
        before = stop
    return Phonemes(*np.array(rows, np.int64).reshape(-1, 3).T)


def frame_labels(phonemes: Phonemes, hop: int, frames: int) -> np.ndarray:
    """The class (frames,) int64 of the sound at the centre of each hop of samples; a pause where there is none."""
    centres = np.arange(frames) * hop + hop // 2
    which = np.searchsorted(phonemes.starts, centres, side="right") - 1
    said = which >= 0
    said[said] = centres[said] < phonemes.stops[which[said]]
    labels = np.full(frames, CLASSES.index(PAUSE), np.int64)
    labels[said] = phonemes.classes[which[said]]
    return labels
