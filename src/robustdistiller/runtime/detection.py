"""Keywords in endless audio: the scores of a detector's stream, smoothed, with a threshold and a refractory time.

from robustdistiller.runtime import Detector

detector = Detector("exported/keywords.stream.onnx", threshold=0.8)
for chunk in microphone:
    for detection in detector.push(chunk):           # label, score, time
        ...
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .models import Features
from .stream import Stream

BACKGROUND = ("silence", "_silence_", "unknown", "_unknown_", "other", "background")
"""Labels that are no keyword."""


class Detection(NamedTuple):
    """A keyword: its label, its smoothed probability, and the second of the audio by which it was decided."""

    label: str
    score: float
    time: float


class Trigger:
    """Scores in, detections out, frame by frame, whatever the cut: a moving average, a threshold, a refractory time.

    Args:
        labels: Of the columns of the scores.
        threshold: The smoothed score from which a keyword is told.
        smooth: Frames that the moving average spans.
        refractory: Frames after a detection in which there is no other.
        background: Labels that are never told.
        warm_up: Frames before the first detection, which would be about a piece of a word.
    """

    def __init__(
        self,
        labels: Sequence[str],
        threshold: float = 0.5,
        smooth: int = 10,
        refractory: int = 50,
        background: Sequence[str] = BACKGROUND,
        warm_up: int = 50,
    ):
        self.keywords = [k for k, label in enumerate(labels) if label not in background]
        if not 0 < threshold <= 1 or smooth < 1 or refractory < 0 or not self.keywords:
            raise UserError(
                "A detector needs a threshold above 0 and up to 1, a smoothing of at least one frame, a refractory time that "
                "is not negative, and a label that is no background: correct them."
            )
        self.threshold, self.smooth, self.refractory = threshold, smooth, refractory
        self._last = np.zeros((smooth - 1, len(self.keywords)))
        self._frame, self._quiet_until = 0, warm_up

    def __call__(self, scores: NDArray[Any]) -> list[tuple[int, int, float]]:
        """Scores (F, classes) of the next frames → (frame, column, smoothed score) of every detection."""
        mine = np.concatenate([self._last, scores[:, self.keywords]])
        self._last = mine[len(mine) - self.smooth + 1 :]
        return self.tell(smooth_scores(mine, self.smooth))

    def tell(self, smoothed: NDArray[Any]) -> list[tuple[int, int, float]]:
        """As a call, from scores of the keywords (F, keywords) that are smoothed."""
        above, found = np.flatnonzero(smoothed.max(1, initial=0) >= self.threshold), []
        while (k := int(np.searchsorted(above, self._quiet_until - self._frame))) < len(above):
            frame = int(above[k])
            best = int(smoothed[frame].argmax())
            found.append((self._frame + frame, self.keywords[best], float(smoothed[frame, best])))
            self._quiet_until = self._frame + frame + max(1, self.refractory)
        self._frame += len(smoothed)
        return found


def smooth_scores(scores: NDArray[Any], smooth: int) -> NDArray[np.float64]:
    """The mean of the last `smooth` rows at every row that has so many: (F + smooth - 1, K) → (F, K)."""
    if len(scores) < smooth:
        return np.zeros((0, scores.shape[1]))
    return np.lib.stride_tricks.sliding_window_view(scores.astype(np.float64), smooth, axis=0).mean(-1)  # type: ignore[no-any-return]


class Detector(Stream):
    """A `Stream` with a head: `push` and `close` give detections. smoothing and refractory in seconds.

    threshold: for the false alarms an hour that are bearable, from a benchmark of kind detection
    """

    kind = "detector"

    def __init__(
        self,
        path: str | os.PathLike[str],
        threshold: float = 0.5,
        smoothing: float = 0.2,
        refractory: float = 1.0,
        background: Sequence[str] = BACKGROUND,
        threads: int | None = None,
    ):
        super().__init__(path, threads)
        self._configure(threshold, smoothing, refractory, background)

    def _configure(self, threshold: float, smoothing: float, refractory: float, background: Sequence[str]) -> None:
        (self.labels,) = self.description.labels.values()
        rate = self.rate / self.description.stride
        self._trigger = Trigger(
            self.labels, threshold, max(1, round(smoothing * rate)), round(refractory * rate), background
        )
        self.scores = np.zeros((0, len(self.labels)))

    def push(self, chunk: Any, time: float | None = None) -> list[Detection]:  # type: ignore[override]
        """Hear the next samples and tell the keywords in what they complete; `scores` (F, classes) holds its probabilities."""
        return self._told(super().push(chunk, time))

    def close(self) -> list[Detection]:  # type: ignore[override]
        """Say that the audio ends here, and tell what is left."""
        return self._told(super().close())

    def _told(self, features: Features) -> list[Detection]:
        self.scores, d = features.states[0], self.description
        found = []
        for frame, column, score in self._trigger(self.scores):
            last = (frame // self.chunk + 1) * self.chunk - 1 + self.look_ahead  # that the frame's chunk has waited for
            found.append(Detection(self.labels[column], score, (last * d.stride + d.field) / self.rate))
        return found


def microphone(block: int = 1600, rate: int = 16_000) -> Iterator[NDArray[np.float32]]:
    """Blocks of samples from the default microphone, without end. Raises `UserError` without `sounddevice` or a device."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: PortAudio itself is missing
        raise UserError("The microphone needs the package 'sounddevice': run  pip install sounddevice.") from error
    try:
        with sounddevice.InputStream(rate, block, channels=1, dtype="float32") as stream:
            while True:
                yield stream.read(block)[0][:, 0]
    except sounddevice.PortAudioError as error:
        raise UserError(f"The microphone cannot be opened ({error}): check the device, or give a WAV file.") from error
