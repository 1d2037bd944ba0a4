"""Sound files, loudness and 8-bit mu-law samples.

Waveforms are mono, (N,) float32 in [-1, 1]; mu-law codes (ITU-T G.711's curve, mu = 255) are (N,) uint8.
"""

import io
import os
import struct
from pathlib import Path
from types import ModuleType

import numpy as np

from worldmodel.files import write_atomically

SUFFIXES = (".wav", ".flac", ".ogg", ".aif", ".aiff")
SILENCE = 128  # mu-law code
MU = 255
TARGET_RMS = 0.1  # of all recordings after normalization
MIN_RMS = 1e-3  # below it there is only noise
LOUDNESS_WINDOW = 256  # samples
PAUSE_POWER_RATIO = 1e-4  # to the loudest window; below it a window is a pause
MAX_PEAK = 16.0  # higher floats are of another scale, not of a loud recording
UNKNOWN_SIZE = 0x7FFF0000  # wav files written to a pipe have sizes from here on
MAX_SAMPLES = 1 << 40  # soundfile says more if the header of a FLAC file written to a pipe has no length
_COMPANDED = 2 * np.arange(MU + 1) / MU - 1
_DECODE_TABLE = (np.sign(_COMPANDED) * np.expm1(np.abs(_COMPANDED) * np.log1p(MU)) / MU).astype(np.float32)


def load(path: str | Path, rate: int) -> np.ndarray:
    """Load a sound file as a waveform (N,) float32 at ``rate`` Hz: channels averaged, resampled, clipped to [-1, 1].

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: without the packages of worldmodel[audio].
        ValueError: naming the file, if it is not a sound file, damaged, cut off (checked for wav, FLAC and Ogg),
            empty, or has samples that are not finite or of another scale.
    """
    if rate < 1:
        raise ValueError(f"a rate must be 1 sample a second or more, got {rate}")
    path, soundfile = Path(path), _package("soundfile")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    _check_whole(path)
    try:
        with soundfile.SoundFile(path) as file:
            file_rate, length = file.samplerate, file.frames
            _check_length(path, length)
            waveform = file.read(dtype="float32", always_2d=True).mean(1)  # (N,)
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(f"{path} is no sound file, or damaged: {error}") from error
    if len(waveform) < length:
        raise ValueError(f"{path} is cut off: it holds {len(waveform)} of {length} samples; copy it again")
    if not np.isfinite(waveform).all():
        raise ValueError(f"{path} holds samples that are no finite numbers; leave it out")
    if len(waveform) and abs(waveform).max() > MAX_PEAK:
        raise ValueError(f"{path} holds samples up to {abs(waveform).max():g}, expected -1 to 1; scale them")
    if file_rate != rate:
        waveform = resample(waveform, file_rate, rate)
    if not len(waveform):
        raise ValueError(f"{path} is empty: it holds {length} samples; leave it out")
    return waveform.clip(-1, 1)


def _check_length(path: str | Path, frames: int) -> None:
    if frames > MAX_SAMPLES:
        raise ValueError(f"{path} does not say how long it is; encode it into a file, not into a pipe")


def resample(waveform: np.ndarray, source_rate: int, rate: int) -> np.ndarray:
    """Resample a waveform (N,) to (N · rate / source_rate,); the result may slightly exceed [-1, 1].

    Raises:
        ImportError: without the packages of worldmodel[audio].
    """
    return _package("soxr").resample(waveform, source_rate, rate)


def read_header(path: str | Path) -> tuple[int, int]:
    """Return the number of samples that a sound file's header claims, and the sample rate.

    Raises:
        ImportError: without the packages of worldmodel[audio].
        ValueError: naming the file, if it is not a sound file, a wav file that is cut off, or empty.
    """
    soundfile = _package("soundfile")
    try:
        header = soundfile.info(path)
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(f"{path} is no sound file, or damaged: {error}") from error
    _check_whole(path)
    _check_length(path, header.frames)
    if not header.frames:
        raise ValueError(f"{path} is empty: it holds no samples; leave it out")
    return header.frames, header.samplerate


def save(path: str | Path, waveform: np.ndarray, rate: int) -> None:
    """Write a waveform (N,), clipped to [-1, 1], as a 16-bit wav file.

    Raises:
        ImportError: without the packages of worldmodel[audio].
        ValueError: if it is not a one-dimensional array of finite numbers.
    """
    waveform = np.asarray(waveform)
    if waveform.ndim != 1 or not np.isfinite(waveform).all():
        raise ValueError(f"a waveform must be finite numbers (N,), got {waveform.dtype} {waveform.shape}")
    path, file = Path(path), io.BytesIO()
    _package("soundfile").write(file, waveform.clip(-1, 1), rate, format="WAV", subtype="PCM_16")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, file.getvalue())


def normalize_loudness(waveform: np.ndarray) -> np.ndarray:
    """Scale a waveform (N,), N >= 1, to the RMS ``TARGET_RMS``, measured without pauses.

    The gain is at most 40 dB, and samples stay in [-1, 1].
    """
    starts = np.arange(0, len(waveform), LOUDNESS_WINDOW)
    sizes = np.diff(starts, append=len(waveform))
    energies = np.add.reduceat(np.square(waveform, dtype=np.float64), starts)
    loud = energies / sizes >= PAUSE_POWER_RATIO * (energies / sizes).max()
    rms = np.sqrt(energies[loud].sum() / sizes[loud].sum())
    return waveform * np.float32(min(TARGET_RMS / max(MIN_RMS, rms), 1 / max(MIN_RMS, np.abs(waveform).max())))


def mu_law_encode(waveform: np.ndarray) -> np.ndarray:
    """Encode samples of any shape, clipped to [-1, 1], as mu-law codes uint8.

    Raises:
        ValueError: for NaN.
    """
    if np.isnan(waveform).any():
        raise ValueError("samples must be numbers, some are NaN")
    companded = np.sign(waveform) * np.log1p(MU * np.abs(waveform).clip(0, 1)) / np.log1p(MU)  # in [-1, 1]
    return np.floor((companded + 1) / 2 * MU + 0.5).astype(np.uint8)


def mu_law_decode(codes: np.ndarray) -> np.ndarray:
    """Decode mu-law codes uint8 of any shape into float32 samples; inverse of :func:`mu_law_encode`."""
    return _DECODE_TABLE[codes]


def _check_whole(path: str | Path) -> None:
    """Raise a ValueError if a wav file is cut off."""
    if missing := _missing_bytes(Path(path)):
        raise ValueError(f"{path} is cut off: its last {missing} bytes are missing; copy it again")


def _missing_bytes(path: Path) -> int:
    """Return how many bytes a wav file lacks according to its header, which libsndfile does not check."""
    with open(path, "rb") as file:
        if file.read(4) != b"RIFF":
            return 0
        file.seek(12)
        while len(header := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", header)
            if name == b"data":
                end = os.path.getsize(path)
                return max(0, file.tell() + size - end) if size < UNKNOWN_SIZE else 0
            file.seek(size + size % 2, os.SEEK_CUR)
    return 0


def _package(name: str) -> ModuleType:
    try:
        return __import__(name)
    except (ImportError, OSError) as error:  # an OSError where libsndfile is missing
        raise ImportError(f'sound needs the package {name}: pip install "worldmodel[audio]"') from error
