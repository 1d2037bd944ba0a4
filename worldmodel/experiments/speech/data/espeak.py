"""Synthesize one utterance with espeak-ng's library: ``python espeak.py VOICE PITCH SPEED TEXT``.

The library keeps state: a second utterance of the same words sounds different. So this file runs in a new process for
each utterance, needs nothing but Python, and writes to stdout a line of JSON, [[start, mnemonic], …] in samples, and
then the samples, int16.
"""

import ctypes
import json
import os
import sys

RATE = 22_050  # Hz, espeak-ng's sample rate
LIBRARY_NAMES = ("libespeak-ng.so.1", "libespeak-ng.1.dylib", "libespeak-ng.dll")

# constants of espeak-ng's speak_lib.h
SYNCHRONOUS, PHONEME_EVENTS, STAY_ALIVE = 2, 1, 0x8000
SPEED, PITCH = 1, 3
END_OF_LIST, PHONEME = 0, 7
CHARACTER, UTF8 = 1, 1


class _Name(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("pointer", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", _Name),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def load_library() -> ctypes.CDLL:
    """Load espeak-ng's library.

    Raises:
        ImportError: if it is not installed.
    """
    for name in LIBRARY_NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise ImportError(f"synthesis needs espeak-ng, and {LIBRARY_NAMES[0]} is not installed: apt install espeak-ng")


def version() -> str:
    """Return espeak-ng's version; raises as :func:`load_library`."""
    info = load_library().espeak_Info
    info.restype = ctypes.c_char_p
    return info(None).decode()


def speak(text: str, voice: str, pitch: int, speed: int) -> tuple[bytes, list[tuple[int, str]]]:
    """Synthesize a text; call this once per process.

    Args:
        voice: espeak-ng's name of the voice, with or without +VARIANT.
        pitch: pitch from 0 to 99.
        speed: words per minute.

    Returns:
        The samples, int16, and the first sample and espeak-ng's mnemonic of each phoneme.

    Raises:
        ImportError: if espeak-ng is not installed.
        ValueError: for an unknown voice.
    """
    output, sounds = bytearray(), []

    def collect(samples, count, events):
        if count:
            output.extend(ctypes.string_at(samples, 2 * count))
        n = 0
        while events[n].type != END_OF_LIST:
            if events[n].type == PHONEME:
                sounds.append((events[n].sample, events[n].name.string.decode()))
            n += 1
        return 0

    espeak, callback, data_folder = load_library(), _CALLBACK(collect), ctypes.c_char_p()
    if espeak.espeak_Initialize(SYNCHRONOUS, 0, None, PHONEME_EVENTS | STAY_ALIVE) != RATE:
        raise ImportError("espeak-ng's library does not find its data: apt install espeak-ng-data")
    espeak.espeak_Info(ctypes.byref(data_folder))
    variant = voice.partition("+")[2]  # the library accepts unknown ones
    known = not variant or os.path.isfile(os.path.join(os.fsdecode(data_folder.value or b""), "voices", "!v", variant))
    if not known or espeak.espeak_SetVoiceByName(voice.encode()):
        raise ValueError(f"espeak-ng has no voice {voice!r}: espeak-ng --voices=en and --voices=variant list them")
    espeak.espeak_SetSynthCallback(callback)
    espeak.espeak_SetParameter(PITCH, pitch, 0)
    espeak.espeak_SetParameter(SPEED, speed, 0)
    data = text.encode()
    espeak.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, CHARACTER, 0, UTF8, None, None)
    return bytes(output), sounds


if __name__ == "__main__":
    try:
        samples, sounds = speak(sys.argv[4], sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    except (ImportError, ValueError) as error:
        sys.exit(str(error))
    sys.stdout.buffer.write(json.dumps(sounds).encode() + b"\n" + samples)
