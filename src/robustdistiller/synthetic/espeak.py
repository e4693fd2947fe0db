"""The voices of espeak-ng, spoken into memory: text and a voice in, a wave with the times of its words and phones out.

This is formant synthesis: clear, deterministic, fast (hundreds of times real time), in some hundred voices, and audibly
a machine. It stands in for people where no recordings are at hand; it is not a substitute for them.

The library comes with the optional package ``espeakng_loader`` (GPL-3.0); nothing else in the project imports it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from ..audio.io import SAMPLE_RATE
from ..errors import UserError, closest, optional

Interval = tuple[float, float, str]  # start (s), end (s), symbol

# speak_lib.h
_SYNCHRONOUS, _PHONEME_EVENTS, _PHONEME_IPA, _DONT_EXIT = 2, 0x1, 0x2, 0x8000
_UTF8, _CHARACTERS = 1, 1
_RATE, _VOLUME, _PITCH, _RANGE, _WORD_GAP = 1, 2, 3, 4, 7
_LIST_TERMINATED, _WORD, _PHONEME = 0, 1, 7
_NATIVE_RATE = 22_050

_PLAIN = str.maketrans({"ˈ": None, "ˌ": None, ":": "ː"})  # no stress, one sign of length

_Mark = tuple[int, int, int, bytes]  # type, text position, sample, symbol

_lock = threading.Lock()


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # of the word this event belongs to, counted in characters from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Speech:
    """What was said: `wave` (T,) float32 at `SAMPLE_RATE`, and when; the intervals are ordered and inside the wave.

    Phones are IPA without stress marks. Words that the synthesiser runs together ("in the") share one interval.
    """

    wave: np.ndarray
    words: tuple[Interval, ...]
    phones: tuple[Interval, ...]

    @property
    def seconds(self) -> float:
        return len(self.wave) / SAMPLE_RATE


def available() -> bool:
    """Whether the voices are installed."""
    return importlib.util.find_spec("espeakng_loader") is not None


def variants() -> list[str]:
    """The names that may follow the "+" of a voice, sorted."""
    return sorted(file.name for file in (_files()[1] / "voices" / "!v").iterdir())


def speak(
    text: str,
    voice: str = "en-us",
    *,
    rate: int = 175,
    pitch: int = 50,
    pitch_range: int = 50,
    word_gap: int = 0,
    formants: float = 1.0,
) -> Speech:
    """Say `text`; the same arguments give the same samples, whatever was said before.

    `voice` is a language or accent with an optional variant ("en-us", "en-gb-scotland+f3"); `rate` in words per minute
    (80 to 450); `pitch` and `pitch_range` 0 to 99, around the variant's own; `word_gap` in units of 10 ms; `formants`
    scales the vocal tract's resonances by playing the voice faster (the pitch moves along, the tempo is kept).

    Raises `UserError` when the package or the voice is missing or the text holds nothing to say. Thread-safe.
    """
    library, data = _files()
    variant = voice.partition("+")[2]
    if variant and variant not in variants():
        raise UserError(f"espeak-ng has no voice '{voice}'.{closest(variant, variants())} Name one such as en-us+f3.")
    parameters = {
        _RATE: min(max(round(rate / formants), 80), 450),
        _VOLUME: 30,  # at full volume some variants clip
        _PITCH: min(max(pitch, 0), 99),
        _RANGE: min(max(pitch_range, 0), 99),
        _WORD_GAP: word_gap,
    }
    samples, events = _synthesise(library, data, text, voice, parameters)
    native = _NATIVE_RATE * formants
    wave = soxr.resample(samples.astype(np.float32) / 32768, native, SAMPLE_RATE)
    words, phones = _align(text, events, native, len(wave) / SAMPLE_RATE)
    if not phones:
        raise UserError(f"espeak-ng cannot say {text!r} with the voice '{voice}': give it text with words in it.")
    return Speech(wave, words, phones)


@functools.cache
def _files() -> tuple[Path, Path]:
    loader = optional("espeakng_loader", "speech", "Synthetic speech")
    return Path(loader.get_library_path()), Path(loader.get_data_path())


def _synthesise(
    path: Path, data: Path, text: str, voice: str, parameters: dict[int, int]
) -> tuple[np.ndarray, list[_Mark]]:
    """Samples (T,) int16 at `_NATIVE_RATE` and the events of `text`.

    The library is one global state machine whose vibrato, echo and gain run on from text to text, so that what is said
    now depends on everything said before. It has no way to reset them; loading it anew for each text (2 ms) does.
    """
    pieces: list[np.ndarray] = []
    marks: list[_Mark] = []

    def receive(wave: Any, count: int, events: Any) -> int:
        if wave and count > 0:
            pieces.append(np.ctypeslib.as_array(wave, (count,)).copy())
        index = 0
        while events[index].type != _LIST_TERMINATED:
            event = events[index]
            if event.type in (_WORD, _PHONEME):
                marks.append((event.type, event.text_position, event.sample, event.id.string))
            index += 1
        return 0

    callback = _Callback(receive)
    with _lock:
        library = ctypes.CDLL(str(path))
        try:
            options = _PHONEME_EVENTS | _PHONEME_IPA | _DONT_EXIT
            if library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), options) != _NATIVE_RATE:
                # Its path buffer holds 160 characters, and it cannot say more than "failed".
                raise UserError(f"espeak-ng cannot open its voices in {data}: install it under a shorter path.")
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # otherwise the time of day
            library.espeak_SetSynthCallback(callback)
            if library.espeak_SetVoiceByName(voice.encode()) != 0:
                raise UserError(f"espeak-ng has no voice '{voice}': name one such as en-us or en-gb-scotland+f3.")
            for number, value in parameters.items():
                library.espeak_SetParameter(number, int(value), 0)
            encoded = text.encode() + b"\0"
            library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, _CHARACTERS, 0, _UTF8, None, None)
            library.espeak_Terminate()
        finally:
            _unload(library)
    return np.concatenate(pieces or [np.zeros(1, np.int16)]), marks


def _unload(library: ctypes.CDLL) -> None:
    import _ctypes

    release = getattr(_ctypes, "dlclose", None) or getattr(_ctypes, "FreeLibrary", None)
    if release is not None:
        release(library._handle)


def _align(
    text: str, events: list[_Mark], native: float, seconds: float
) -> tuple[tuple[Interval, ...], tuple[Interval, ...]]:
    """Events mark beginnings: a phone lasts to the next one, a word from its first phone to the end of its last."""
    phones: list[Interval] = []
    owner: list[int] = []  # text position of each phone's word
    marks = [event for event in events if event[0] == _PHONEME]
    for (_, position, sample, name), following in zip(marks, [*marks[1:], None], strict=True):
        symbol = name.decode("utf-8", "ignore").translate(_PLAIN)
        start = min(sample / native, seconds)
        end = min(following[2] / native, seconds) if following else seconds
        if symbol.strip("_ː") and end > start:
            phones.append((round(start, 4), round(end, 4), symbol))
            owner.append(position)
    words: list[Interval] = []
    # A few phrases of its dictionary ("too much") are marked inside a word as well.
    begins = sorted({at for kind, at, _, _ in events if kind == _WORD and not text[at - 2 : at - 1].strip()})
    for position, following_position in zip(begins, [*begins[1:], len(text) + 1], strict=False):
        spoken = [phone for phone, word in zip(phones, owner, strict=True) if position <= word < following_position]
        symbol = " ".join(part.strip('.,;:?!"()') for part in text[position - 1 : following_position - 1].split())
        if spoken and symbol:
            words.append((spoken[0][0], spoken[-1][1], symbol.lower()))
    return tuple(words), tuple(phones)
