"""Phonemes: 41 classes of English sounds, the maps of espeak-ng's mnemonics and TIMIT's phones, and .phn files.

The names are ARPABET's in lower case: 16 vowels, 24 consonants and the pause. The map covers what eight English accents
of espeak-ng 1.51 produced in 80,000 phonemes of captions: stress and length marks are dropped, r-colored vowels become
er or the vowel without r, reduced vowels become ax, ih or iy, and all pauses are one class.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from worldmodel.suggest import unknown_name

PAUSE = "pau"
MNEMONICS = {  # class: its espeak-ng mnemonics
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
TIMIT_CLASSES = {  # class: TIMIT's phones of another name; closures and the glottal stop q are pauses
    PAUSE: "h# epi bcl dcl gcl pcl tcl kcl q",
    "ax": "ax-h",
    "er": "axr",
    "hh": "hv",
    "ih": "ix",
    "l": "el",
    "m": "em",
    "n": "en nx",
    "ng": "eng",
    "t": "dx",
    "uw": "ux",
}
_CLASS_OF = {mnemonic: name for name, mnemonics in MNEMONICS.items() for mnemonic in mnemonics.split()}
_CLASS_OF_PHONE = {phone: name for name, phones in TIMIT_CLASSES.items() for phone in phones.split()}


class Phonemes(NamedTuple):
    """The n phonemes of an utterance and their times, in order."""

    starts: np.ndarray  # (n,) int64, first sample
    stops: np.ndarray  # (n,) int64, last sample + 1
    classes: np.ndarray  # (n,) int64, indices into CLASSES


def phoneme_class(mnemonic: str) -> str:
    """Return the class of an espeak-ng mnemonic, or of its longest prefix in the map.

    Raises:
        ValueError: if no prefix is in the map.
    """
    prefix = mnemonic.lstrip("',%=|") or "_"  # without marks of stress and joints
    while prefix and prefix not in _CLASS_OF:
        prefix = prefix[:-1]
    if not prefix:
        raise ValueError(f"espeak-ng's phoneme {mnemonic!r} is in none of {len(CLASSES)} classes; take English voices")
    return _CLASS_OF[prefix]


def format_phn(phonemes: Phonemes) -> str:
    """Format phonemes as a .phn file like TIMIT's: lines of start, stop and class."""
    lines = zip(phonemes.starts, phonemes.stops, phonemes.classes, strict=True)
    return "".join(f"{start} {stop} {CLASSES[index]}\n" for start, stop, index in lines)


def read_phn(path: str | Path) -> Phonemes:
    """Read a .phn file of CLASSES or of TIMIT's 61 phones.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the line, if it is not start, stop and a known phoneme, or out of order.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there are no phonemes {path}; run python -m worldmodel.experiments.speech synthesize")
    rows, before = [], 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split()
        if len(fields) != 3 or not (fields[0] + fields[1]).isdecimal():
            raise ValueError(f"{path}, line {number}: expected START STOP PHONEME, got {line!r}")
        start, stop = int(fields[0]), int(fields[1])
        name = _CLASS_OF_PHONE.get(fields[2], fields[2])
        if name not in CLASSES:
            raise ValueError(f"{path}, line {number}: {unknown_name('phoneme', fields[2], CLASSES)}")
        if not before <= start < stop:
            raise ValueError(f"{path}, line {number}: must start at {before} or later and end after that, got {line!r}")
        rows.append((start, stop, CLASSES.index(name)))
        before = stop
    return Phonemes(*np.array(rows, np.int64).reshape(-1, 3).T)


def frame_labels(phonemes: Phonemes, hop: int, frames: int) -> np.ndarray:
    """Return the class (frames,) int64 of the phoneme at the center of each hop; a pause where there is none."""
    centers = np.arange(frames) * hop + hop // 2
    indices = np.searchsorted(phonemes.starts, centers, side="right") - 1
    spoken = indices >= 0
    spoken[spoken] = centers[spoken] < phonemes.stops[indices[spoken]]
    labels = np.full(frames, CLASSES.index(PAUSE), np.int64)
    labels[spoken] = phonemes.classes[indices[spoken]]
    return labels
