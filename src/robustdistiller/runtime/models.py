"""The three kinds of exported models: features, enhanced speech, and answers.

Shapes: T samples, F frames, S states, D hidden.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import AudioError
from .engine import open_graph
from .sound import Wave, check_wave
from .windows import Window, WindowedStream, Windows, windows

Floats = NDArray[np.float32]


class Features(NamedTuple):
    """states (S, F, D); times (F,): the centres of the frames in seconds from the start of the recording or stream."""

    states: Floats
    times: NDArray[np.float64]


class Answer(NamedTuple):
    """A classifier's answer: the label and its probability per slot, when (seconds), and the whole distribution."""

    labels: dict[str, str]
    probability: float  # of the least certain slot
    time: float
    distributions: dict[str, Floats]

    @property
    def label(self) -> str:
        """The answer as one word: the label, or the labels of all slots joined by spaces."""
        return " ".join(self.labels.values())


def _feeds(wave: Wave) -> dict[str, NDArray[Any]]:
    """The inputs of a graph for one recording (T,)."""
    return {"wave": wave[None], "lengths": np.array([len(wave)], np.int64)}


class _Model:
    kind = ""

    def __init__(
        self, path: str | os.PathLike[str], threads: int | None = None, engine: str = "onnxruntime", verify: bool = True
    ):
        """Open an exported file.

        threads: None for as many as there are cores; engine: onnxruntime or openvino; verify: compare the file's digest.
        Raises `UserError`.
        """
        self.description, self._engine = open_graph(path, self.kind, engine, threads, verify)
        self.rate = self.description.sampling_rate

    def _windows(self, hop: float, left: float, right: float, stride: int, field: int) -> Windows:
        """Seconds → units, at least one unit of hop. Raises `AudioError` for times that are none."""
        if not (0 < hop < 1e6 and 0 <= left < 1e6 and 0 <= right < 1e6):
            raise AudioError(f"A stream needs a hop above 0 s and contexts from 0, not {hop}, {left}, {right}.", "hop")
        unit = self.rate / stride
        return Windows(round(left * unit), max(1, round(hop * unit)), round(right * unit), stride, field)


class Encoder(_Model):
    """Speech → hidden states; `names` tells the states in order."""

    kind = "encoder"

    @property
    def names(self) -> tuple[str, ...]:
        return self.description.states

    def __call__(self, wave: Any) -> Features:
        """The states of one recording (T,) of 16 kHz floats. Raises `AudioError` for what is no audio."""
        d = self.description
        wave = check_wave(wave, d.field)
        parts = [self._kept(window) for window in windows(wave, d.stride, d.field, self.rate)]
        return Features(np.concatenate([p.states for p in parts], 1), np.concatenate([p.times for p in parts]))

    def batch(self, waves: Sequence[Any]) -> list[Features]:
        """Several recordings in one padded batch; each gets what it would get alone. Raises `AudioError`."""
        d = self.description
        checked = [check_wave(wave, d.field, f"Recording {k}") for k, wave in enumerate(waves)]
        if not checked:
            return []
        lengths = np.array([len(wave) for wave in checked], np.int64)
        padded = np.zeros((len(checked), int(lengths.max())), np.float32)
        for row, wave in zip(padded, checked, strict=True):
            row[: len(wave)] = wave
        states, frames = self._engine.run({"wave": padded, "lengths": lengths})
        return [Features(row[:, :count], self._times(0, int(count))) for row, count in zip(states, frames, strict=True)]

    def stream(self, hop: float = 12.0, left: float = 0.5, right: float = 0.3) -> WindowedStream[Features]:
        """Listen to chunks: every `hop` seconds of frames are computed with `left` and `right` seconds of context.

        A frame is late by at most hop + right; the computation grows by (left + right) / hop.
        """
        d = self.description
        return WindowedStream(self._windows(hop, left, right, d.stride, d.field), self._kept, self.rate)

    def _kept(self, window: Window) -> Features:
        states, frames = self._engine.run(_feeds(window.wave))
        inner = slice(window.first - window.begin, window.last - window.begin)
        return Features(states[0, :, inner], self._times(window.begin, int(frames[0]))[inner])

    def _times(self, begin: int, frames: int) -> NDArray[np.float64]:
        d = self.description
        return ((begin + np.arange(frames)) * d.stride + d.field / 2) / self.rate


class Enhancer(_Model):
    """Noisy speech → an estimate of the clean speech, as long as the input."""

    kind = "enhancer"

    def __call__(self, wave: Any) -> Wave:
        """Enhance one recording (T,) of 16 kHz floats. Raises `AudioError` for what is no audio."""
        wave = check_wave(wave, self.description.field)
        return np.concatenate([self._kept(window) for window in windows(wave, rate=self.rate)])

    def stream(self, hop: float = 12.0, left: float = 0.5, right: float = 0.3) -> WindowedStream[Wave]:
        """Listen to chunks; the enhanced samples come in pieces that follow each other without a gap."""
        return WindowedStream(self._windows(hop, left, right, 1, 1), self._kept, self.rate)

    def _kept(self, window: Window) -> Wave:
        wave = window.wave
        if len(wave) < self.description.field:  # the end of a stream that is not even one frame long
            wave = np.pad(wave, (0, self.description.field - len(wave)))
        return self._engine.run(_feeds(wave))[0][0, window.first - window.begin : window.last - window.begin]


class Classifier(_Model):
    """Speech → a label, for each slot of its task; `labels` lists what it knows."""

    kind = "classifier"

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        return self.description.labels

    def __call__(self, wave: Any) -> Answer:
        """The answer for one recording (T,) of 16 kHz floats. Raises `AudioError` for what is no audio."""
        wave = check_wave(wave, self.description.field)
        return self._answer(wave, len(wave) / self.rate)

    def stream(self, window: float = 1.0, hop: float = 0.25) -> WindowedStream[Answer]:
        """Listen to chunks: an answer for the last `window` seconds, every `hop` seconds, without latency beyond `hop`.

        The first answers cover less than a whole window. Each second of audio is processed window / hop times.
        """
        if not 0 < hop <= window:
            raise AudioError("The hop of a classifier's stream lies between 0 and its window: correct them.", "hop")
        field = self.description.field
        windows = self._windows(hop, window - hop, 0.0, 1, 1)

        def work(part: Window) -> Answer:
            wave = part.wave if len(part.wave) >= field else np.pad(part.wave, (0, field - len(part.wave)))
            return self._answer(wave, part.last / self.rate)

        return WindowedStream(windows, work, self.rate)

    def _answer(self, wave: Wave, time: float) -> Answer:
        outputs = self._engine.run(_feeds(wave))
        probabilities = {slot: output[0] for slot, output in zip(self.labels, outputs, strict=True)}
        best = {slot: int(np.argmax(row)) for slot, row in probabilities.items()}
        certain = min(probabilities[slot][k] for slot, k in best.items())
        return Answer({slot: self.labels[slot][k] for slot, k in best.items()}, float(certain), time, probabilities)
