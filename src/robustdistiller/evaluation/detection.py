"""Keywords in endless audio: how many are found at how many false alarms an hour, and how late.

A head reads the mean of the last second of frames, fifty times a second; its probabilities are smoothed, and a keyword is told
where they reach a threshold, once in a refractory time (`runtime.Trigger`, so that the device does the same). Positives are
keywords with known ends in the middle of running speech or noise, negatives are hours without any. For every threshold there
is a false alarm rate and a recall: the DET curve. Its intervals resample positives and stretches of the negatives.

Shapes: F frames (50 a second), S states, D dimensions, K labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UserError
from ..models.frames import GRID
from ..randomness import generator
from ..runtime.detection import BACKGROUND, Trigger

Array = NDArray[np.float64]
Wave = NDArray[np.float32]

RATE = 16_000
WINDOW = 50
"""Frames that a head averages: a second, as long as a spoken keyword."""
PIECE, CONTEXT = 2048, 416
"""Frames. Long audio is processed in pieces with context; both are whole chunks of up to 640 ms, and a streaming student of two
layers reaches back 260 frames, so that its input is what it would be in one piece."""
STRETCH_SECONDS = 60.0  # of negatives that the bootstrap draws as one
THRESHOLDS = 1 - np.geomspace(1e-3, 0.95, 60)[::-1]  # dense where false alarms are rare, from 0.05 to 0.999


@dataclass(frozen=True)
class DetectionConfig:
    """Seconds of smoothing and refractory time, the labels that are no keyword, and how late a detection may come."""

    smoothing: float = 0.2
    refractory: float = 1.0
    background: tuple[str, ...] = BACKGROUND
    tolerance: float = 1.0  # after the end of the word
    alarms_per_hour: float = 0.5

    def trigger(self, labels: Sequence[str], threshold: float) -> Trigger:
        """The trigger of these times at one threshold."""
        per_second = RATE / GRID.stride
        smooth = max(1, round(self.smoothing * per_second))
        return Trigger(labels, threshold, smooth, round(self.refractory * per_second), self.background)


@dataclass(frozen=True)
class PositiveScene:
    """Scores (F, K) of a scene with one keyword: its label, and the frames in which the word begins and ends."""

    scores: Array
    label: int
    begin: int
    end: int


@dataclass
class Curve:
    """A DET curve: one entry a threshold; the low and high ends of 95 % intervals; latencies at the operating point."""

    thresholds: Array
    recall: Array
    alarms_per_hour: Array
    recall_interval: tuple[Array, Array]
    alarms_interval: tuple[Array, Array]
    hours: float
    positives: int
    summary: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = zip(
            self.thresholds,
            self.recall,
            *self.recall_interval,
            self.alarms_per_hour,
            *self.alarms_interval,
            strict=True,
        )
        names = ("threshold", "recall", "recall_low", "recall_high", "alarms", "alarms_low", "alarms_high")
        points = [dict(zip(names, map(float, row), strict=True)) for row in rows]
        return {**self.summary, "hours": self.hours, "positives": self.positives, "points": points}


def pooled_scores(head: nn.Module, states: Tensor) -> Tensor:
    """A head on the mean of the last `WINDOW` frames, at every frame: states (1, S, F, D) → probabilities (F, K)."""
    total = states.double().cumsum(2)
    total = total - functional.pad(total, (0, 0, WINDOW, 0))[:, :, : total.shape[2]]
    mean = total / torch.arange(1, total.shape[2] + 1, device=states.device).clamp(max=WINDOW)[:, None]
    with torch.no_grad():
        kind = next(head.parameters()).dtype
        return head(mean[0].transpose(0, 1).to(kind))[0].softmax(-1)  # type: ignore[no-any-return]


@torch.no_grad()
def long_scores(states: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], head: nn.Module, wave: Wave) -> Array:
    """Probabilities (F, K) of any length of audio (T,), processed in pieces with context before each.

    states: as `Student.states`. A streaming student works as on a stream; other models get windows.
    """
    total = max(0, (len(wave) - GRID.field) // GRID.stride + 1)
    parts = []
    for first in range(0, total, PIECE):
        begin = max(0, first - CONTEXT)
        last = min(first + PIECE + CONTEXT, total)  # what follows is the look-ahead of the piece's end
        part = torch.from_numpy(wave[begin * GRID.stride : (last - 1) * GRID.stride + GRID.field])[None]
        found = pooled_scores(head, states(part, torch.tensor([part.shape[1]]))[0])
        parts.append(found[first - begin : min(first + PIECE, total) - begin].double().cpu().numpy())
    return np.concatenate(parts)


def detections(
    scores: Array, labels: Sequence[str], config: DetectionConfig, threshold: float
) -> list[tuple[int, int]]:
    """(frame, column) of every detection in scores (F, K)."""
    return [(frame, column) for frame, column, _ in config.trigger(labels, threshold)(scores)]


def detection_curve(
    positives: Sequence[PositiveScene],
    negatives: Sequence[Array],
    labels: Sequence[str],
    config: DetectionConfig = DetectionConfig(),
    delay: float = 0.0,
    replicates: int = 1000,
    seed: int = 0,
) -> Curve:
    """Recall and false alarms an hour at every threshold, with bootstrap intervals, and the operating point.

    Args:
        positives: Scenes with one keyword each.
        negatives: Scores (F, K) of recordings without any keyword.
        delay: Seconds that a stream adds to every decision: chunk and look-ahead.

    Raises:
        UserError: Where there are no positives or less than a minute of negatives.
    """
    per_second = RATE / GRID.stride
    seconds = sum(len(scores) for scores in negatives) / per_second
    if not positives or seconds < STRETCH_SECONDS:
        raise UserError("A detection curve needs keywords and at least a minute of audio without any: give more.")
    size = int(STRETCH_SECONDS * per_second)
    counts = [np.zeros((-(-len(scores) // size), len(THRESHOLDS))) for scores in negatives]
    hits = np.zeros((len(positives), len(THRESHOLDS)))
    late = np.full(hits.shape, np.nan)
    for column, threshold in enumerate(THRESHOLDS):
        for stretches, scores in zip(counts, negatives, strict=True):
            for frame, _ in detections(scores, labels, config, threshold):
                stretches[frame // size, column] += 1
        for row, positive in enumerate(positives):
            latest = positive.end + config.tolerance * per_second
            right = [
                frame for frame, label in detections(positive.scores, labels, config, threshold)
                if label == positive.label and positive.begin <= frame <= latest
            ]  # fmt: skip
            if right:
                hits[row, column], late[row, column] = 1, (right[0] - positive.end) / per_second + delay
    alarms, length = np.concatenate(counts), np.concatenate([_lengths(len(scores), size) for scores in negatives])
    rng = generator(seed, "detection bootstrap")
    recalls = np.stack([hits[rng.integers(len(hits), size=len(hits))].mean(0) for _ in range(replicates)])
    rates = []
    for _ in range(replicates):
        drawn = rng.integers(len(alarms), size=len(alarms))
        rates.append(alarms[drawn].sum(0) / length[drawn].sum() * per_second * 3600)
    hours = seconds / 3600
    curve = Curve(
        THRESHOLDS, hits.mean(0), alarms.sum(0) / hours, _ends(recalls), _ends(np.stack(rates)), hours, len(positives)
    )
    curve.summary = _operating_point(curve, recalls, late, config.alarms_per_hour)
    return curve


def _operating_point(curve: Curve, recalls: Array, late: Array, allowed: float) -> dict[str, Any]:
    """The lowest threshold from which there are never more than `allowed` false alarms an hour."""
    good = np.flatnonzero(curve.alarms_per_hour > allowed)
    column = int(good[-1]) + 1 if len(good) else 0
    if column == len(curve.thresholds):
        return {"allowed_alarms_per_hour": allowed, "threshold": None, "recall": None}
    seconds = late[:, column][np.isfinite(late[:, column])]
    low, high = np.quantile(recalls[:, column], (0.025, 0.975))
    return {
        "allowed_alarms_per_hour": allowed,
        "threshold": float(curve.thresholds[column]),
        "recall": float(curve.recall[column]),
        "recall_interval": [float(low), float(high)],
        "latency_median": float(np.median(seconds)) if len(seconds) else None,
        "latency_90": float(np.quantile(seconds, 0.9)) if len(seconds) else None,
    }


def _lengths(frames: int, size: int) -> Array:
    """The frames of each stretch of a recording."""
    return np.diff(np.append(np.arange(0, frames, size), frames)).astype(np.float64)


def _ends(values: Array) -> tuple[Array, Array]:
    low, high = np.quantile(values, (0.025, 0.975), axis=0)
    return low, high


def word_bounds(wave: Wave, below_db: float = 30.0) -> tuple[int, int]:
    """First and last sample of a word in a clip (T,): where 20 ms are within `below_db` of the loudest 20 ms."""
    size = GRID.stride
    if len(wave) < size:
        return 0, len(wave)
    power = np.square(wave[: len(wave) // size * size].reshape(-1, size), dtype=np.float64).mean(1)
    loud = np.flatnonzero(power >= power.max() * 10 ** (-below_db / 10))
    return int(loud[0]) * size, int(loud[-1] + 1) * size


def embed(word: Wave, background: Wave, at: int, snr_db: float) -> tuple[Wave, int, int]:
    """A word in the middle of `background` (T,), its own bounds `snr_db` above the background beneath them.

    Returns the scene (T,) and the samples in which the word begins and ends in it. Raises `UserError` where it does not fit.
    """
    begin, end = word_bounds(word)
    if at < 0 or at + len(word) > len(background):
        raise UserError("The background is shorter than the keyword and what is around it: give longer recordings.")
    beneath = np.square(background[at + begin : at + end], dtype=np.float64).mean()
    power = np.square(word[begin:end], dtype=np.float64).mean()
    gain = np.sqrt(power / max(beneath, 1e-20) * 10 ** (-snr_db / 10)) if beneath > 0 else 1.0
    scene = (gain * background).astype(np.float32)
    scene[at : at + len(word)] += word
    return scene, at + begin, at + end


def training_clip(
    kind: str, word: Wave, speech: Wave, key: Sequence[int | str], seconds: float = WINDOW / 50
) -> tuple[Wave, bool]:
    """A second as a running head gets it, and whether it holds the whole keyword `word`.

    kind: "whole", the word somewhere in it; "shifted", cut off so that at most half is left; "speech", a part of other
    speech; "silence", a faint noise
    """
    rng, size = generator("training clip", *key), int(seconds * RATE) + GRID.field - GRID.stride
    out = (1e-4 * rng.standard_normal(size)).astype(np.float32)
    if kind == "speech" and len(speech):
        start = int(rng.integers(max(1, len(speech) - size + 1)))
        part = speech[start : start + size]
        out[: len(part)] += part
    elif kind in ("whole", "shifted"):
        begin, end = word_bounds(word)
        inside = word[begin:end][:size]
        if kind == "whole":
            at = int(rng.integers(size - len(inside) + 1))
            out[at : at + len(inside)] += inside
        else:
            half = max(1, int(len(inside) * rng.uniform(0.2, 0.5)))
            if rng.random() < 0.5:  # just begun
                out[size - half :] += inside[:half]
            else:  # nearly over
                out[:half] += inside[len(inside) - half :]
    return out, kind == "whole"
