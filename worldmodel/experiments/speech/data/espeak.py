"""One utterance of espeak-ng's library, in a process of its own: ``python espeak.py VOICE PITCH SPEED TEXT``.

The library remembers what it said before: the same words come out otherwise the second time. So this file is run once
for each utterance, needs nothing but Python, and writes to stdout a line of JSON, [[start, mnemonic], …] in samples,
and then the samples, int16.
"""

import ctypes
import json
import os
import sys

RATE = 22_050  # samples a second that espeak-ng speaks
NAMES = ("libespeak-ng.so.1", "libespeak-ng.1.dylib", "libespeak-ng.dll")

# of espeak-ng's speak_lib.h
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


def library() -> ctypes.CDLL:
    """espeak-ng's library.

    Raises:
        ImportError: if it is not on this machine.
    """
    for name in NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise ImportError(f"speech is synthesized by espeak-ng, and {NAMES[0]} is not here: apt install espeak-ng")


def version() -> str:
    """That of the library; raises as :func:`library`."""
    info = library().espeak_Info
    info.restype = ctypes.c_char_p
    return info(None).decode()


def speak(text: str, voice: str, pitch: int, speed: int) -> tuple[bytes, list[tuple[int, str]]]:
    """Say a text, once in the life of a process.

    Args:
        voice: espeak-ng's name of it, with +VARIANT or without.
        pitch: 0 to 99.
        speed: words a minute.

    Returns:
        The samples, int16, and of each phoneme the sample that it begins with and espeak-ng's mnemonic.

    Raises:
        ImportError: if espeak-ng is not on this machine.
        ValueError: if it has no such voice.
    """
    spoken, sounds = bytearray(), []

    def hear(samples, count, events):
        if count:
            spoken.extend(ctypes.string_at(samples, 2 * count))
        place = 0
        while events[place].type != END_OF_LIST:
            if events[place].type == PHONEME:
                sounds.append((events[place].sample, events[place].name.string.decode()))
            place += 1
        return 0

    espeak, callback, home = library(), _CALLBACK(hear), ctypes.c_char_p()
    if espeak.espeak_Initialize(SYNCHRONOUS, 0, None, PHONEME_EVENTS | STAY_ALIVE) != RATE:
        raise ImportError("espeak-ng's library does not find its data: apt install espeak-ng-data")
    espeak.espeak_Info(ctypes.byref(home))
    variant = voice.partition("+")[2]
    there = not variant or os.path.isfile(os.path.join(os.fsdecode(home.value), "voices", "!v", variant))
    if not there or espeak.espeak_SetVoiceByName(voice.encode()):  # which does not mind an unknown variant
        raise ValueError(f"espeak-ng has no voice {voice!r}: espeak-ng --voices=en and --voices=variant list them")
    espeak.espeak_SetSynthCallback(callback)
    espeak.espeak_SetParameter(PITCH, pitch, 0)
    espeak.espeak_SetParameter(SPEED, speed, 0)
    data = text.encode()
    espeak.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, CHARACTER, 0, UTF8, None, None)
    return bytes(spoken), sounds


if __name__ == "__main__":
    try:
        samples, sounds = speak(sys.argv[4], sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    except (ImportError, ValueError) as error:
        sys.exit(str(error))
    sys.stdout.buffer.write(json.dumps(sounds).encode() + b"\n" + samples)
