"""Stretches of long recordings: read by seeking, in fixed blocks, through a cache of bounded memory.

A block is always decoded by the same call, so a sample has the same bits whichever stretch is asked for first.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..audio.io import SAMPLE_RATE
from ..audio.manifest import Recording
from ..errors import AudioError
from .cache import ByteCache

BLOCK = 10 * SAMPLE_RATE  # samples decoded at once
WHOLE = 30.0  # a recording of at most so many seconds is one block
PROBES = 16  # seconds of a long recording that stand for its level


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
    """Reads any stretch of any `Recording` at 16 kHz, looping what is too short; holds `cache_mb` of decoded audio."""

    def __init__(self, cache_mb: float) -> None:
        self._blocks: ByteCache[_Packed] = ByteCache(cache_mb * 2**20)
        self._known: dict[Any, Any] = {}  # lengths and levels: a number or two for each recording met

    def num_samples(self, recording: Recording) -> int:
        """Samples that can be read without looping. Raises `AudioError` when the recording cannot be used."""
        if recording.seconds > WHOLE:
            return int(recording.seconds * SAMPLE_RATE)
        return self._remember("length", recording, lambda: len(self._block(recording, 0).samples))

    def level(self, recording: Recording) -> float:
        """Mean power of a recording; of `PROBES` evenly spread seconds if it is long."""
        return self._remember("level", recording, lambda: self._measure(recording))

    def read(self, recording: Recording, start: int, count: int) -> np.ndarray:
        """`count` samples from sample `start` on, from the beginning again after the end: (count,) float32."""
        total = self.num_samples(recording)
        if total < 1:
            raise AudioError(f"{recording.path} holds no audio: leave it out.", "empty")
        out = np.empty(count, np.float32)
        done, position = 0, start % total
        while done < count:
            number, inside = (0, position) if recording.seconds <= WHOLE else divmod(position, BLOCK)
            block = self._block(recording, number)
            piece = block.wave(inside, min(inside + count - done, len(block.samples)))
            out[done : done + len(piece)] = piece
            done += len(piece)
            # A header that promises more than there is makes the loop come round earlier.
            position = (position + len(piece)) % total if len(piece) else 0
            if not len(piece) and inside == 0:
                raise AudioError(f"{recording.path} ends before its stated length: leave it out.", "corrupt")
        return out

    def _block(self, recording: Recording, number: int) -> _Packed:
        return self._blocks.get((*_key(recording), number), lambda: self._decode(recording, number))

    def _decode(self, recording: Recording, number: int) -> _Packed:
        if recording.seconds <= WHOLE:
            return _Packed.of(recording.load())
        start = number * BLOCK / SAMPLE_RATE
        return _Packed.of(recording.load(start, BLOCK / SAMPLE_RATE))

    def _measure(self, recording: Recording) -> float:
        if recording.seconds <= WHOLE:
            block = self._block(recording, 0)
            probes = [block.wave(0, len(block.samples))]
        else:
            starts = np.linspace(0, recording.seconds - 1.5, PROBES)
            probes = [recording.load(float(start), 1.0) for start in starts]
        return float(np.mean([np.square(probe, dtype=np.float64).mean() if len(probe) else 0.0 for probe in probes]))

    def _remember(self, what: str, recording: Recording, make: Any) -> Any:
        key = (what, *_key(recording))
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


def _key(recording: Recording) -> tuple[Hashable, ...]:
    return recording.path, recording.start, recording.seconds, recording.extra.get("use_channel")


def by_id(recordings: Iterable[Recording]) -> dict[str, Recording]:
    """Recordings by id, in an order that does not depend on theirs; equal ids of different files get the path added."""
    result: dict[str, Recording] = {}
    for recording in sorted(recordings, key=lambda r: (r.id, r.path, r.start)):
        twin = result.get(recording.id)
        if twin == recording:
            continue
        result[recording.id if twin is None else f"{recording.id} ({recording.path}@{recording.start:g})"] = recording
    return result
