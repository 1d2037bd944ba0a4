"""A corpus of synthesized speech: many voices that say the same sentences, and exactly when each phoneme is said."""

import csv
import io
import json
import re
import subprocess
import sys
import zlib
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from worldmodel.experiments.speech.data import audio, espeak
from worldmodel.experiments.speech.data.phonemes import CLASSES, PAUSE, Phonemes, class_of, write_phn
from worldmodel.experiments.speech.data.sentences import choose, invent, read_sentences
from worldmodel.files import check_folder, write_atomically

VOICES = ["en+m1", "en-us+f1", "en-gb-scotland+m3", "en-gb-x-rp+f2", "en-029+m5", "en-gb-x-gbclan+f4"]
UNHEARD = ["en-us-nyc+m7", "en-gb-x-gbcwmd+f3"]
SECONDS = 60  # that an utterance may take


def synthesize(
    out: str,
    sentences: str = "",
    voices: list[str] = VOICES,
    unheard: list[str] = UNHEARD,
    count: int = 150,
    held_out: int = 30,
    rate: int = 16_000,
    seed: int = 0,
    workers: int = 2,
) -> None:
    """Make a corpus of synthesized English speech with espeak-ng, whose library must be here; part of one is continued.

    Every voice says the same sentences. The folder ``out`` gets VOICE/NUMBER.wav, VOICE/NUMBER.phn, which says when
    each phoneme begins and ends (in samples, as TIMIT does), synthesis.json with all settings, and, when all is done,
    manifest.csv. The same settings and espeak-ng give the same files, byte for byte.

    Args:
        out: folder to write.
        sentences: file with one a line, maybe .gz; without it they are made up of some hundred words, so that held-out
            ones have no new words.
        voices: to learn from: espeak-ng's names with its variants; a voice's pitch and speed follow from its name.
        unheard: more voices, which say the held-out sentences only.
        count: sentences to learn from.
        held_out: other sentences, said by all voices.
        rate: samples a second.
        seed: of which sentences.
        workers: processes at a time.
    """
    if min(count, held_out, rate, workers) < 1 or not voices:
        raise ValueError("--count, --held_out, --rate and --workers must be 1 or more, and --voices one or more")
    everyone = voices + unheard
    for voice in everyone:
        if everyone.count(voice) > 1 or re.search(r"[/\\]|^\.", voice):
            raise ValueError(f"--voices and --unheard must all differ and be names of folders, {voice!r} is not so")
    folder = Path(out)
    check_folder(folder)
    total = held_out + count
    texts = choose(read_sentences(Path(sentences)), total, seed) if sentences else invent(total, seed)
    for voice in everyone:
        say("Hello.", voice, rate)  # or an error, before anything is written
    manners = {voice: dict(zip(("pitch", "speed"), manner(voice), strict=True)) for voice in everyone}
    settings = {
        "espeak": espeak.version(),
        "rate": rate,
        "voices": {voice: manners[voice] for voice in voices},
        "unheard": {voice: manners[voice] for voice in unheard},
        "held_out": texts[:held_out],
        "learnt": texts[held_out:],
    }
    _begin(folder, settings)
    rows = [
        (voice, number, text, "unheard" if voice in unheard else "held_out" if number < held_out else "learnt")
        for voice in everyone
        for number, text in enumerate(texts[: held_out if voice in unheard else None])
    ]
    _fill(folder, rows, rate, workers)
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(["path", "speaker", "text", "split"])
    table.writerows([f"{voice}/{number:05d}.wav", voice, text, part] for voice, number, text, part in rows)
    write_atomically(folder / "manifest.csv", lines.getvalue().encode())
    print(f"wrote {len(rows)} utterances of {len(everyone)} voices; {folder / 'manifest.csv'} lists them")


def manner(voice: str) -> tuple[int, int]:
    """How a voice speaks: a pitch of 30 to 70 (espeak-ng's 0 to 99) and 150 to 190 words a minute, by its name."""
    number = zlib.crc32(voice.encode())
    return 30 + number % 41, 150 + number // 41 % 41


def say(text: str, voice: str, rate: int) -> tuple[np.ndarray, Phonemes]:
    """A text in one of espeak-ng's voices: a waveform (N,) float32 and its phonemes, the same every time.

    Raises:
        ImportError: if espeak-ng is not on this machine.
        ValueError: if it has no such voice, finds nothing to say, or a phoneme is in none of the classes.
    """
    return _heard(_begun(text, voice), text, voice, rate)


def timed(sounds: list[tuple[int, str]], length: int, rate: int) -> Phonemes:
    """espeak-ng's sounds as stretches that fill ``length`` samples at ``rate``.

    Each lasts until the next begins; what is before the first is a pause, pauses in a row are one, and a sound that
    lasts no sample is left out.

    Args:
        sounds: the first sample of each, at espeak-ng's own rate, and its mnemonic.

    Raises:
        ValueError: for a mnemonic in none of the classes.
    """
    starts = [0] + [min(start * rate // espeak.RATE, length) for start, _ in sounds]
    names = [PAUSE] + [class_of(name) for _, name in sounds]
    stretches: list[list[int]] = []
    for start, stop, name in zip(starts, [*starts[1:], length], names, strict=True):
        number = CLASSES.index(name)
        if stop > start and name == PAUSE and stretches and stretches[-1][2] == number:
            stretches[-1][1] = stop
        elif stop > start:
            stretches.append([start, stop, number])
    return Phonemes(*np.array(stretches, np.int64).reshape(-1, 3).T)


def _begin(folder: Path, settings: dict[str, Any]) -> None:
    path, text = folder / "synthesis.json", json.dumps(settings, indent=2) + "\n"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    elif path.read_text("utf-8") != text:
        raise ValueError(f"{folder} holds a corpus of other settings (synthesis.json); take another --out")


def _fill(folder: Path, rows: list[tuple[str, int, str, str]], rate: int, workers: int) -> None:
    """Make the utterances that are not there yet."""
    speaking: deque[tuple[subprocess.Popen, str, str, Path]] = deque()

    def finish() -> None:
        process, text, voice, path = speaking.popleft()
        waveform, phonemes = _heard(process, text, voice, rate)
        write_atomically(path.with_suffix(".phn"), write_phn(phonemes).encode())
        audio.save(path, waveform, rate)  # last: where it is, both are

    for voice in dict.fromkeys(row[0] for row in rows):
        (folder / voice).mkdir(exist_ok=True)
    try:
        for voice, number, text, _ in tqdm(rows, desc="speech", unit="utterance"):
            path = folder / voice / f"{number:05d}.wav"
            if path.exists():
                continue
            speaking.append((_begun(text, voice), text, voice, path))
            if len(speaking) == workers:
                finish()
        while speaking:
            finish()
    finally:
        for process, *_ in speaking:
            process.kill()
            process.communicate()


def _begun(text: str, voice: str) -> subprocess.Popen:
    """A process that says it; of Python alone, which begins in an instant."""
    command = [sys.executable, "-I", "-S", espeak.__file__, voice, *map(str, manner(voice)), text]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _heard(process: subprocess.Popen, text: str, voice: str, rate: int) -> tuple[np.ndarray, Phonemes]:
    try:
        output, complaint = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise ValueError(f"espeak-ng took more than {SECONDS} seconds for {text!r}, said by {voice}") from None
    if process.returncode:
        *_, last = complaint.decode(errors="replace").splitlines() or [f"it ended with {process.returncode}"]
        espeak.library()  # or an ImportError
        raise ValueError(f"{text!r} cannot be said by {voice}: {last}")
    sounds, _, samples = output.partition(b"\n")
    waveform = audio.resample(np.frombuffer(samples, np.int16).astype(np.float32) / 2**15, espeak.RATE, rate)
    phonemes = timed(json.loads(sounds), len(waveform), rate)
    if (phonemes.classes == CLASSES.index(PAUSE)).all():
        raise ValueError(f"{text!r} has nothing that {voice} could say; leave it out")
    return waveform.clip(-1, 1), phonemes
