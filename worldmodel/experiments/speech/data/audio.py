"""Sound files and the eight bits that a model sees of a sample.

A waveform is mono, (N,) float32 in [-1, 1]; its mu-law code (ITU-T G.711's curve, mu = 255) is (N,) uint8, and
silence is 128.
"""

import io
import os
import struct
from pathlib import Path
from types import ModuleType

import numpy as np

from worldmodel.files import write_atomically

SUFFIXES = (".wav", ".flac", ".ogg", ".aif", ".aiff")
SILENCE = 128
MU = 255
LEVEL = 0.1  # root mean square that recordings are brought to
LEAST = 1e-3  # of them, below which there is nothing but noise to make louder
STRETCH, PAUSE = 256, 1e-4  # samples, and their power beside the loudest as many, below which they are a pause
LOUDEST = 16.0  # a peak of floats above this is of another scale, not of a loud recording
UNKNOWN = 0x7FFF0000  # sizes from here on stand in files that were written to a pipe


def load(path: str | Path, rate: int) -> np.ndarray:
    """A sound file as a waveform (N,) float32 at ``rate`` samples a second.

    Channels are averaged, and another rate is resampled. What passes [-1, 1] is clipped. Silence is fine.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: without the packages of worldmodel[audio].
        ValueError: naming the file, if it is no sound file, damaged, cut off, holds no samples, or some that are no
            numbers or of another scale. Of files that are cut off it knows wav, FLAC and Ogg.
    """
    if rate < 1:
        raise ValueError(f"a rate must be 1 sample a second or more, got {rate}")
    path, soundfile = Path(path), _package("soundfile")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    _check_whole(path)
    try:
        with soundfile.SoundFile(path) as file:
            there, length = file.samplerate, file.frames
            waveform = file.read(dtype="float32", always_2d=True).mean(1)  # (N,)
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(f"{path} is no sound file, or damaged: {error}") from error
    if len(waveform) < length:
        raise ValueError(f"{path} is cut off: it holds {len(waveform)} of {length} samples; copy it again")
    if not np.isfinite(waveform).all():
        raise ValueError(f"{path} holds samples that are no finite numbers; leave it out")
    if len(waveform) and abs(waveform).max() > LOUDEST:
        raise ValueError(f"{path} holds samples up to {abs(waveform).max():g}, expected -1 to 1; scale them")
    if there != rate:
        waveform = resample(waveform, there, rate)
    if not len(waveform):
        raise ValueError(f"{path} is empty: it holds {length} samples; leave it out")
    return waveform.clip(-1, 1)


def resample(waveform: np.ndarray, there: int, rate: int) -> np.ndarray:
    """A waveform (N,) float32 of one rate at another: (N · rate / there,), which may ring a little past [-1, 1].

    Raises:
        ImportError: without the packages of worldmodel[audio].
    """
    return _package("soxr").resample(waveform, there, rate)


def header(path: str | Path) -> tuple[int, int]:
    """How many samples a sound file claims to hold, and its rate.

    Raises:
        ImportError: without the packages of worldmodel[audio].
        ValueError: naming the file, if it is no sound file, a wav file that is cut off, or holds no samples.
    """
    soundfile = _package("soundfile")
    try:
        found = soundfile.info(path)
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(f"{path} is no sound file, or damaged: {error}") from error
    _check_whole(path)
    if not found.frames:
        raise ValueError(f"{path} is empty: it holds no samples; leave it out")
    return found.frames, found.samplerate


def save(path: str | Path, waveform: np.ndarray, rate: int) -> None:
    """Write a waveform (N,) as a wav file of 16 bits; what passes [-1, 1] is clipped.

    Raises:
        ImportError: without the packages of worldmodel[audio].
        ValueError: if it is not one row of finite numbers.
    """
    waveform = np.asarray(waveform)
    if waveform.ndim != 1 or not np.isfinite(waveform).all():
        raise ValueError(f"a waveform must be finite numbers (N,), got {waveform.dtype} {waveform.shape}")
    path, file = Path(path), io.BytesIO()
    _package("soundfile").write(file, waveform.clip(-1, 1), rate, format="WAV", subtype="PCM_16")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, file.getvalue())


def levelled(waveform: np.ndarray) -> np.ndarray:
    """A waveform (N,), N >= 1, as loud as all others: at a root mean square of ``LEVEL`` without its pauses.

    It gets louder by 40 dB at most, and no sample passes [-1, 1].
    """
    starts = np.arange(0, len(waveform), STRETCH)
    sizes = np.diff(starts, append=len(waveform))
    energies = np.add.reduceat(np.square(waveform, dtype=np.float64), starts)
    loud = energies / sizes >= PAUSE * (energies / sizes).max()
    level = np.sqrt(energies[loud].sum() / sizes[loud].sum())
    return waveform * np.float32(min(LEVEL / max(LEAST, level), 1 / max(LEAST, np.abs(waveform).max())))


def mu_law(waveform: np.ndarray) -> np.ndarray:
    """Samples in [-1, 1], of any shape, as codes uint8; what passes the range is clipped.

    Raises:
        ValueError: for NaN.
    """
    if np.isnan(waveform).any():
        raise ValueError("samples must be numbers, some are NaN")
    curved = np.sign(waveform) * np.log1p(MU * np.abs(waveform).clip(0, 1)) / np.log1p(MU)  # in [-1, 1]
    return np.floor((curved + 1) / 2 * MU + 0.5).astype(np.uint8)


def waveform_of(codes: np.ndarray) -> np.ndarray:
    """The float32 samples that codes uint8 of any shape stand for; :func:`mu_law` of them gives the codes again."""
    return _LEVELS[codes]


def _levels() -> np.ndarray:
    curved = 2 * np.arange(256) / MU - 1
    return (np.sign(curved) * np.expm1(np.abs(curved) * np.log1p(MU)) / MU).astype(np.float32)


_LEVELS = _levels()


def _check_whole(path: str | Path) -> None:
    """Raise a ValueError if a wav file is cut off."""
    if missing := _missing(Path(path)):
        raise ValueError(f"{path} is cut off: its last {missing} bytes are missing; copy it again")


def _missing(path: Path) -> int:
    """How many bytes the samples of a wav file lack, going by its headers: libsndfile does not mind."""
    with open(path, "rb") as file:
        if file.read(4) != b"RIFF":
            return 0
        file.seek(12)
        while len(header := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", header)
            if name == b"data":
                end = os.path.getsize(path)
                return max(0, file.tell() + size - end) if size < UNKNOWN else 0
            file.seek(size + size % 2, os.SEEK_CUR)
    return 0


def _package(name: str) -> ModuleType:
    try:
        return __import__(name)
    except (ImportError, OSError) as error:  # an OSError where libsndfile is missing
        raise ImportError(f'sound needs the package {name}: pip install "worldmodel[audio]"') from error
