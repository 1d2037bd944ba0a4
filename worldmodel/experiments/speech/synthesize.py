"""Synthesize a speech corpus with phoneme times: ``python -m worldmodel.experiments.speech synthesize``."""

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
from worldmodel.experiments.speech.data.phonemes import CLASSES, PAUSE, Phonemes, format_phn, phoneme_class
from worldmodel.experiments.speech.data.sentences import generate_sentences, read_sentences, sample_sentences
from worldmodel.files import check_folder, write_atomically
from worldmodel.renamed import SPEECH_SPLITS, renamed

VOICES = ["en+m1", "en-us+f1", "en-gb-scotland+m3", "en-gb-x-rp+f2", "en-029+m5", "en-gb-x-gbclan+f4"]
UNSEEN_VOICES = ["en-us-nyc+m7", "en-gb-x-gbcwmd+f3"]
TIMEOUT_SECONDS = 60  # for one utterance


def synthesize(
    out: str,
    sentences: str = "",
    voices: list[str] = VOICES,
    unseen_voices: list[str] = UNSEEN_VOICES,
    count: int = 150,
    held_out: int = 30,
    rate: int = 16_000,
    seed: int = 0,
    workers: int = 2,
) -> None:
    """Synthesize a corpus of English speech with an installed espeak-ng; an unfinished corpus is continued.

    Every voice speaks the same sentences. The folder ``out`` gets VOICE/NUMBER.wav, VOICE/NUMBER.phn with the start and
    stop of each phoneme (in samples, TIMIT's format), synthesis.json with all settings, and finally manifest.csv. The
    same settings and espeak-ng version give identical files.

    Args:
        out: folder to write.
        sentences: text file with one sentence per line, plain or .gz; empty for sentences generated from a hundred
            words, so that the held-out ones have no new words.
        voices: training voices, espeak-ng names with variants; a voice's pitch and speed follow from its name.
        unseen_voices: voices of unseen speakers, which speak the held-out sentences only.
        count: number of training sentences.
        held_out: number of held-out sentences, spoken by all voices.
        rate: sample rate in Hz.
        seed: random seed of the choice of sentences.
        workers: number of parallel processes.
    """
    if min(count, held_out, rate, workers) < 1 or not voices:
        raise ValueError("--count, --held_out, --rate and --workers must be 1 or more, and --voices one or more")
    all_voices = voices + unseen_voices
    for voice in all_voices:
        if all_voices.count(voice) > 1 or re.search(r"[/\\]|^\.", voice):
            raise ValueError(f"--voices and --unseen_voices must be distinct and valid names of folders, got {voice!r}")
    folder = Path(out)
    check_folder(folder)
    total = held_out + count
    if sentences:
        texts = sample_sentences(read_sentences(Path(sentences)), total, seed)
    else:
        texts = generate_sentences(total, seed)
    for voice in all_voices:
        synthesize_utterance("Hello.", voice, rate)  # fails before anything is written
    styles = {voice: dict(zip(("pitch", "speed"), pitch_and_speed(voice), strict=True)) for voice in all_voices}
    settings = {
        "espeak": espeak.version(),
        "rate": rate,
        "voices": {voice: styles[voice] for voice in voices},
        "unseen_speakers": {voice: styles[voice] for voice in unseen_voices},
        "held_out": texts[:held_out],
        "train": texts[held_out:],
    }
    _write_settings(folder, settings)
    rows = [
        (voice, n, text, "unseen_speakers" if voice in unseen_voices else "held_out" if n < held_out else "train")
        for voice in all_voices
        for n, text in enumerate(texts[: held_out if voice in unseen_voices else None])
    ]
    _synthesize_missing(folder, rows, rate, workers)
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(["path", "speaker", "text", "split"])
    table.writerows([f"{voice}/{n:05d}.wav", voice, text, split] for voice, n, text, split in rows)
    write_atomically(folder / "manifest.csv", lines.getvalue().encode())
    print(f"wrote {len(rows)} utterances of {len(all_voices)} voices; {folder / 'manifest.csv'} lists them")


def pitch_and_speed(voice: str) -> tuple[int, int]:
    """Derive a pitch of 30 to 70 (of espeak-ng's 0 to 99) and 150 to 190 words per minute from a voice's name."""
    digest = zlib.crc32(voice.encode())
    return 30 + digest % 41, 150 + digest // 41 % 41


def synthesize_utterance(text: str, voice: str, rate: int) -> tuple[np.ndarray, Phonemes]:
    """Synthesize a text in an espeak-ng voice, deterministically: a waveform (N,) float32 and its phonemes.

    Raises:
        ImportError: if espeak-ng is not installed.
        ValueError: for an unknown voice, a text without speech, or a phoneme that is in none of the classes.
    """
    return _finish_espeak(_start_espeak(text, voice), text, voice, rate)


def align_phonemes(sounds: list[tuple[int, str]], length: int, rate: int) -> Phonemes:
    """Turn espeak-ng's phoneme events into phonemes that fill ``length`` samples at ``rate``.

    Each phoneme lasts until the next; a pause fills the beginning, consecutive pauses are merged, and phonemes without
    a sample are dropped.

    Args:
        sounds: first sample, at espeak-ng's own rate, and mnemonic of each phoneme.

    Raises:
        ValueError: for a mnemonic in none of the classes.
    """
    starts = [0] + [min(start * rate // espeak.RATE, length) for start, _ in sounds]
    names = [PAUSE] + [phoneme_class(name) for _, name in sounds]
    rows: list[list[int]] = []
    for start, stop, name in zip(starts, [*starts[1:], length], names, strict=True):
        index = CLASSES.index(name)
        if stop > start and name == PAUSE and rows and rows[-1][2] == index:
            rows[-1][1] = stop
        elif stop > start:
            rows.append([start, stop, index])
    return Phonemes(*np.array(rows, np.int64).reshape(-1, 3).T)


def _write_settings(folder: Path, settings: dict[str, Any]) -> None:
    path, old_names = folder / "synthesis.json", {new: old for old, new in SPEECH_SPLITS.items()}
    text, old_text = (json.dumps(values, indent=2) + "\n" for values in (settings, renamed(settings, old_names)))
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    elif path.read_text("utf-8") not in (text, old_text):
        raise ValueError(f"{folder} holds a corpus of other settings (synthesis.json); use another --out")


def _synthesize_missing(folder: Path, rows: list[tuple[str, int, str, str]], rate: int, workers: int) -> None:
    """Synthesize the utterances without a wav file."""
    running: deque[tuple[subprocess.Popen, str, str, Path]] = deque()

    def finish() -> None:
        process, text, voice, path = running.popleft()
        waveform, phonemes = _finish_espeak(process, text, voice, rate)
        write_atomically(path.with_suffix(".phn"), format_phn(phonemes).encode())
        audio.save(path, waveform, rate)  # last, so that a wav file always has its .phn

    for voice in dict.fromkeys(row[0] for row in rows):
        (folder / voice).mkdir(exist_ok=True)
    try:
        for voice, n, text, _ in tqdm(rows, desc="speech", unit="utterance"):
            path = folder / voice / f"{n:05d}.wav"
            if path.exists():
                continue
            running.append((_start_espeak(text, voice), text, voice, path))
            if len(running) == workers:
                finish()
        while running:
            finish()
    finally:
        for process, *_ in running:
            process.kill()
            process.communicate()


def _start_espeak(text: str, voice: str) -> subprocess.Popen:
    """Start a process of bare Python, which starts fast, that synthesizes the text."""
    command = [sys.executable, "-I", "-S", espeak.__file__, voice, *map(str, pitch_and_speed(voice)), text]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _finish_espeak(process: subprocess.Popen, text: str, voice: str, rate: int) -> tuple[np.ndarray, Phonemes]:
    try:
        output, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise ValueError(f"espeak-ng took more than {TIMEOUT_SECONDS} seconds for {text!r} in voice {voice}") from None
    if process.returncode:
        *_, last = errors.decode(errors="replace").splitlines() or [f"exit status {process.returncode}"]
        espeak.load_library()  # raises an ImportError if that is the cause
        raise ValueError(f"{text!r} cannot be said by {voice}: {last}")
    sounds, _, samples = output.partition(b"\n")
    waveform = audio.resample(np.frombuffer(samples, np.int16).astype(np.float32) / 2**15, espeak.RATE, rate)
    phonemes = align_phonemes(json.loads(sounds), len(waveform), rate)
    if (phonemes.classes == CLASSES.index(PAUSE)).all():
        raise ValueError(f"{text!r} has nothing that {voice} can say; leave it out")
    return waveform.clip(-1, 1), phonemes
