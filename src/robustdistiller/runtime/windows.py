"""Endless audio through a model of whole utterances: overlapping windows, cut the same way whatever the chunks.

A window is processed with `left` units of context before and `right` units after the `hop` units that are kept of it; units are
frames (encoder) or samples (enhancer). Where the windows lie depends on nothing but these three numbers, so that the result of
a stream is that of the same windows over the whole recording, to the last bit, for chunks of any size. What it is not equal to
is one pass over the whole recording: attention and the normalisation over time see only the window.

A unit is out after at most `hop + right` units: the latency. Each window computes `left + hop + right` units for `hop` that
are kept: the overhead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from ..errors import AudioError
from .sound import Wave, check_wave

T = TypeVar("T")


@dataclass(frozen=True)
class Windows:
    """The cutting rule; left, hop, right in units, of which number u covers the samples [u·stride, u·stride + field)."""

    left: int
    hop: int
    right: int
    stride: int
    field: int

    def __post_init__(self) -> None:
        if self.hop < 1 or self.left < 0 or self.right < 0:
            raise ValueError("a stream needs a hop of at least one unit, and contexts that are not negative")

    @property
    def latency(self) -> int:
        """Samples between the first sample of a unit and the moment when it is given out, at worst."""
        return (self.hop + self.right - 1) * self.stride + self.field

    @property
    def overhead(self) -> float:
        """Units computed beyond those kept, per unit kept."""
        return (self.left + self.right) / self.hop

    def units(self, samples: int) -> int:
        """Whole units in so many samples."""
        return max(0, (samples - self.field) // self.stride + 1)


@dataclass(frozen=True)
class Window:
    """A part of the audio: `wave` starts at unit `begin`; of its result the units [first, last) are kept."""

    wave: Any  # an array, or a tensor where the audio is one
    begin: int
    first: int
    last: int


# A recording longer than WINDOW + 2 · CONTEXT is processed in windows: attention costs the square of the length.
WINDOW_SECONDS, CONTEXT_SECONDS = 30, 1


def windows(wave: Any, stride: int = 1, field: int = 1, rate: int = 16_000) -> Iterator[Window]:
    """Cut a whole recording into windows; the device and PyTorch cut the same way.

    Unlike those of a stream, which cannot know the end, the last one is never a sliver: what it keeps is longer than two
    contexts. It ends with the audio, because the remainder of a frame still counts for the statistics over time.

    Args:
        wave: Samples (T,), an array or a tensor.
        stride: Samples from unit to unit.
        field: Samples of a unit.
        rate: Samples a second.

    Yields:
        Windows in order, whose kept units cover all ``(T - field) // stride + 1``.
    """
    total = (len(wave) - field) // stride + 1
    size, context = (round(seconds * rate / stride) for seconds in (WINDOW_SECONDS, CONTEXT_SECONDS))
    first = 0
    while first < total:
        last = first + size if total - first - size > 2 * context else total
        begin, end = max(0, first - context), min(total, last + context)
        stop = (end - 1) * stride + field if end < total else len(wave)
        yield Window(wave[begin * stride : stop], begin, first, last)
        first = last


class Cutter:
    """Chunks in, windows out; holds no more audio than one window and one chunk."""

    def __init__(self, windows: Windows):
        self.windows = windows
        self.chunks: list[Wave] = []  # joined when a window is complete: once, not with every chunk
        self.start = 0  # the sample at which they begin
        self.next = 0  # the unit that is given out next
        self.end = 0  # samples received so far

    def push(self, chunk: Wave) -> Iterator[Window]:
        """Every window that the audio so far completes."""
        w = self.windows
        self.chunks.append(chunk.copy())  # the caller may fill the same array again
        self.end += len(chunk)
        while w.units(self.end) >= self.next + w.hop + w.right:
            stop = self.next + w.hop + w.right
            yield self._window(self.next + w.hop, (stop - 1) * w.stride + w.field)

    def close(self) -> Iterator[Window]:
        """The last window, which takes the audio to its last sample and keeps all units that are left, if there are any."""
        total = self.windows.units(self.end)
        if total > self.next:
            yield self._window(total, self.end)

    def _window(self, last: int, high: int) -> Window:
        """Keep the units up to `last` of the audio up to sample `high`."""
        w = self.windows
        begin = max(0, self.next - w.left)
        low = begin * w.stride
        buffer = np.concatenate(self.chunks)
        window = Window(buffer[low - self.start : high - self.start], begin, self.next, last)
        self.next = last
        spare = min(max(0, last - w.left) * w.stride - self.start, len(buffer))
        self.chunks, self.start = [buffer[spare:].copy()], self.start + spare
        return window


class WindowedStream(Generic[T]):
    """A model that listens: `push` chunks, `close` at the end; both give what is ready.

    latency: seconds between the first sample of a frame and its appearance, at worst, without the time to compute it
    overhead: share of computation that the windows' contexts add
    """

    def __init__(self, windows: Windows, work: Callable[[Window], T], rate: int):
        self._cutter = Cutter(windows)
        self._work = work
        self._closed = False
        self.windows = windows
        self.latency = windows.latency / rate
        self.overhead = windows.overhead

    def push(self, chunk: Any) -> list[T]:
        """Hear the next samples (any number) and give what they complete. Raises `AudioError` for what is no audio."""
        self._check_open()
        return [self._work(window) for window in self._cutter.push(check_wave(chunk, 0, "The chunk"))]

    def close(self) -> list[T]:
        """Say that the audio ends here, and give what is left."""
        self._check_open()
        self._closed = True
        return [self._work(window) for window in self._cutter.close()]

    def _check_open(self) -> None:
        if self._closed:
            raise AudioError("This stream is closed: open another one.", "closed")

    def run(self, chunks: Iterable[Any]) -> Iterator[T]:
        """All of `chunks`, then the end."""
        for chunk in chunks:
            yield from self.push(chunk)
        yield from self.close()
