"""Stretches of long recordings: read by seeking, in fixed blocks, through a cache of bounded memory.

A block is always decoded by the same call, so a sample has the same bits whichever stretch is asked for first.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..audio.io import SAMPLE_RATE
from ..audio.manifest import Recording
from ..errors import AudioError
from .cache import ByteCache
from .convolution import EDGE, audible_power, high_pass, mean_power

log = logging.getLogger(__name__)

_NAMED = 3  # recordings that a warning names for each reason
BLOCK = 10 * SAMPLE_RATE  # samples decoded at once
WHOLE = 30.0  # a recording of at most so many seconds is one block
PROBES = 16  # seconds of a long recording that stand for its level
FRAME = SAMPLE_RATE // 10  # samples whose power tells whether there is sound
FADE = SAMPLE_RATE // 50  # samples (20 ms) over which the end of a loop fades into its beginning


@dataclass(frozen=True)
class _Packed:
    """Audio at 16 bits relative to its own peak: half the memory, 98 dB below the peak."""

    samples: np.ndarray  # (T,) int16
    peak: float

    @property
    def nbytes(self) -> int:
        return self.samples.nbytes

    @classmethod
    def of(cls, wave: np.ndarray) -> _Packed:
        peak = float(np.abs(wave).max(initial=0.0))
        if not np.isfinite(peak):
            raise AudioError("The recording holds samples that are not numbers: leave it out.", "nan")
        return cls(np.round(wave * np.float32(32767 / peak if peak else 0.0)).astype(np.int16), peak)

    def wave(self, start: int, stop: int) -> np.ndarray:
        return self.samples[start:stop].astype(np.float32) * np.float32(self.peak / 32767)


class Clips:
    """Reads any stretch of any `Recording` at 16 kHz without mean and infrasound; holds `cache_mb` of decoded audio."""

    def __init__(self, cache_mb: float) -> None:
        self._blocks: ByteCache[_Packed] = ByteCache(cache_mb * 2**20)
        self._known: dict[Any, Any] = {}  # lengths and levels: a few numbers for each recording met
        self._last: tuple[Any, np.ndarray] | None = None  # what is drawn is looked at, and read again at once

    def num_samples(self, recording: Recording) -> int:
        """Samples that can be read without looping. Raises `AudioError` when the recording cannot be used."""
        return self._remember("length", recording, lambda: self._length(recording))

    def level(self, recording: Recording) -> float:
        """Mean power of a recording; of `PROBES` evenly spread seconds if it is long, unless these are all silent."""
        return self._remember("level", recording, lambda: self._measure(recording))

    def frame_powers(self, recording: Recording) -> np.ndarray:
        """Mean power of each `FRAME` of the whole recording, (N,): decodes all of it once."""
        return self._remember("frames", recording, lambda: self._frame_powers(recording))

    def read(self, recording: Recording, start: int, count: int) -> np.ndarray:
        """`count` samples from `start` on, repeated as `looped` does where it is shorter: (count,) float32, read-only."""
        key, last = (*_key(recording), start, count), self._last
        if last is None or last[0] != key:
            total = self.num_samples(recording)
            wave = looped(lambda first, number: self._stretch(recording, first, number), total, start, count)
            wave.flags.writeable = False
            self._last = last = key, wave
        return last[1]

    def _length(self, recording: Recording) -> int:
        last = 0 if recording.seconds <= WHOLE else (int(recording.seconds * SAMPLE_RATE) - 1) // BLOCK
        total = last * BLOCK + len(self._block(recording, last).samples)
        if total < 1:
            raise AudioError(f"{recording.path} holds no audio: leave it out.", "empty")
        return total if recording.seconds <= WHOLE else min(total, int(recording.seconds * SAMPLE_RATE))

    def _stretch(self, recording: Recording, start: int, count: int) -> np.ndarray:
        out = np.empty(count, np.float32)
        done = 0
        while done < count:
            number, inside = (0, start) if recording.seconds <= WHOLE else divmod(start + done, BLOCK)
            piece = self._block(recording, number).wave(inside, inside + count - done)
            if not len(piece):
                raise AudioError(f"{recording.path} ends before its stated length: leave it out.", "corrupt")
            out[done : done + len(piece)] = piece
            done += len(piece)
        return out

    def _block(self, recording: Recording, number: int) -> _Packed:
        return self._blocks.get((*_key(recording), number), lambda: self._decode(recording, number))

    def _decode(self, recording: Recording, number: int) -> _Packed:
        if recording.seconds <= WHOLE:
            return _Packed.of(_audible(recording.load()))
        first = max(0, number * BLOCK - EDGE)  # the high pass looks beyond the block
        wave = recording.load(first / SAMPLE_RATE, ((number + 1) * BLOCK + EDGE - first) / SAMPLE_RATE)
        return _Packed.of(_audible(wave)[number * BLOCK - first :][:BLOCK])

    def _measure(self, recording: Recording) -> float:
        if recording.seconds <= WHOLE:
            return mean_power(self._stretch(recording, 0, self.num_samples(recording)))
        starts = np.linspace(0, recording.seconds - 1.5, PROBES)
        level = np.mean([audible_power(recording.load(float(start), 1.0)) for start in starts])
        return float(level if level > 0 else self.frame_powers(recording).mean())

    def _frame_powers(self, recording: Recording) -> np.ndarray:
        total = self.num_samples(recording)
        blocks = (self._stretch(recording, start, min(BLOCK, total - start)) for start in range(0, total, BLOCK))
        parts = (block[start : start + FRAME] for block in blocks for start in range(0, len(block), FRAME))
        return np.array([np.square(part, dtype=np.float64).mean() for part in parts])

    def _remember(self, what: str, recording: Recording, make: Any) -> Any:
        key = (what, *_key(recording))
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


def _audible(wave: np.ndarray) -> np.ndarray:
    """`wave` after the high pass, silent where it was constant for 50 ms: the filter rings into digital silence."""
    out = high_pass(wave)
    changes = np.flatnonzero(np.diff(wave)) + 1
    edges = np.concatenate([[0], changes, [len(wave)]])
    for k in np.flatnonzero(np.diff(edges) >= SAMPLE_RATE // 20):
        out[edges[k] : edges[k + 1]] = 0
    return out


def looped(read: Callable[[int, int], np.ndarray], total: int, start: int, count: int) -> np.ndarray:
    """`count` samples from `start` on of a sound of `total` samples that repeats: (count,) float32.

    `read(start, count)` gives a part of it. Where the end meets the beginning they are faded into each other at constant
    power, so that a short noise does not click at every turn.
    """
    start %= total
    if start + count <= total:
        return read(start, count)
    fade = min(FADE, total // 4)
    period = total - fade
    head = read(start, period - start) if start < period else np.zeros(0, np.float32)
    first, rest = max(start - period, 0), count - len(head)
    turn = read(0, min(period, first + rest))
    turn[:fade] = _faded(read(period, fade), turn)
    return np.concatenate([head, turn[first:], np.resize(turn, max(rest - len(turn[first:]), 0))])[:count]


def _faded(end: np.ndarray, beginning: np.ndarray) -> np.ndarray:
    """Fade from one sound to the other, weighted so that the power stays whatever their correlation."""
    angle = (np.arange(len(end), dtype=np.float32) + 0.5) * np.float32(np.pi / 2 / max(len(end), 1))
    beginning = beginning[: len(end)]
    end, angle = end[: len(beginning)], angle[: len(beginning)]
    norm = float(np.linalg.norm(end) * np.linalg.norm(beginning))
    correlation = float(end @ beginning) / norm if norm > 0 else 0.0
    mixed = end * np.cos(angle) + beginning * np.sin(angle)
    return mixed / np.sqrt(np.maximum(1 + correlation * np.sin(2 * angle), 0.1))


def _key(recording: Recording) -> tuple[Hashable, ...]:
    return recording.path, recording.start, recording.seconds, recording.extra.get("use_channel")


class Complaints:
    """Warns of recordings that are passed over: of each once, and of the first few only where many share one reason."""

    def __init__(self, what: str) -> None:
        self._what, self._met = what, set[str]()
        self._reasons: Counter[str] = Counter()

    def __call__(self, id: str, error: AudioError) -> None:
        if id in self._met:
            return
        self._met.add(id)
        self._reasons[error.reason] += 1
        if self._reasons[error.reason] <= _NAMED:
            log.warning("%s %s is passed over: %s", self._what, id, error)
            if self._reasons[error.reason] == _NAMED:
                log.warning("More that are passed over as %s are not named.", error.reason)


def by_id(recordings: Iterable[Recording]) -> dict[str, Recording]:
    """Recordings by id, in an order that does not depend on theirs; equal ids of different files get the path added."""
    result: dict[str, Recording] = {}
    for recording in sorted(recordings, key=lambda r: (r.id, r.path, r.start)):
        twin = result.get(recording.id)
        if twin == recording:
            continue
        result[recording.id if twin is None else f"{recording.id} ({recording.path}@{recording.start:g})"] = recording
    return result
