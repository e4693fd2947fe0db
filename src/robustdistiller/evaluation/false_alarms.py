"""Keywords in running speech: how many are found at how many false alarms an hour, and how late.

A head reads the last second of frames, fifty times a second; its probabilities are smoothed, and a keyword is told where they
reach a threshold, once in a refractory time (`runtime.Trigger`, so that the device does the same). For every
threshold there is a recall, over scenes with a keyword whose end is known, and a rate of false alarms, over stretches without
any (scenes.py): the DET curve. Its intervals resample speakers of keywords, and stretches.

Shapes: F frames (50 a second), S states, D dimensions, K labels, T thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ..audio.io import SAMPLE_RATE
from ..models.frames import GRID
from ..runtime.detection import Trigger, smooth_scores
from .metrics import AnyScores, DetectionScores, operating_column
from .statistics import Bootstrap
from .task_file import DetectionConfig
from .task_heads import Mix, Weights, cross_entropies

Array = NDArray[np.float64]

FRAME_RATE = SAMPLE_RATE / GRID.stride
WINDOW = 50
"""Frames that a head reads: a second, as long as a spoken keyword. Before that many, nothing is told."""
PART, HIDDEN = 10, 128  # frames that a head takes the mean of, and what it makes of the five of them
LATE = 0.3  # seconds after a word's end in which it is to be told
THRESHOLDS = 1 - np.geomspace(1e-5, 0.95, 64)[::-1]  # dense where false alarms are rare, from 0.05 to 0.99999
REPLICATES = 1000  # behind the intervals of a curve


class DetectionHead(nn.Module):
    """Reads a second in order: the means of its parts (B, P, S, D) → logits [(B, classes)], as an `UtteranceHead`."""

    def __init__(self, states: int, size: int, classes: Sequence[int]):
        super().__init__()
        self.mix = Mix(states, size)
        self.parts = nn.Linear(WINDOW // PART * size, HIDDEN)
        self.dropout = nn.Dropout(0.2)
        self.answer = nn.Linear(HIDDEN, classes[0])

    def forward(self, means: Tensor) -> list[Tensor]:
        return [self._answers(self.mix(means))]

    def losses(self, weights: Weights, means: Tensor, targets: Tensor) -> Tensor:
        """As of an `UtteranceHead`, with `means` (C or 1, B, P, S, D)."""
        shares = weights["mix.weights"].softmax(1)[:, None, None, None]
        mixed = (shares @ self.mix.standardised(means)).flatten(2)  # (C, B, P · D)
        hidden = mixed @ weights["parts.weight"].mT + weights["parts.bias"][:, None]
        hidden = self.dropout(functional.gelu(hidden))
        logits = hidden @ weights["answer.weight"].mT + weights["answer.bias"][:, None]
        return cross_entropies(logits, targets[..., 0])

    def running(self, states: Tensor) -> Tensor:
        """States (S, F, D) → logits (F - WINDOW + 1, classes) of all windows."""
        means = functional.avg_pool1d(states.transpose(1, 2), PART, 1)  # (S, D, F - PART + 1)
        mixed, count = self.mix(means.permute(2, 0, 1)), states.shape[1] - WINDOW + 1
        return self._answers(torch.stack([mixed[k : k + count] for k in range(0, WINDOW, PART)], 1))

    def _answers(self, parts: Tensor) -> Tensor:
        """(B, P, D) → (B, classes)"""
        hidden = self.dropout(functional.gelu(self.parts(parts.flatten(1))))
        return self.answer(hidden)  # type: ignore[no-any-return]


def part_means(rows: NDArray[Any], ends: Sequence[int]) -> NDArray[np.float32]:
    """Of frames (F, S, D), what `DetectionHead` reads of the windows that end with the frames `ends` (N,), (N, P, S, D)."""
    windows = (np.asarray(rows[end - WINDOW + 1 : end + 1], np.float32) for end in ends)
    return np.stack([window.reshape(-1, PART, *window.shape[1:]).mean(1) for window in windows])


def label_windows(begin: float, end: float, frames: int) -> list[tuple[int, bool]]:
    """The windows of a scene that a head learns from, by their last frames, and whether the word has just been said.

    That is up to `LATE` after its end; it is not before its middle, nor long after it. Other windows are left out.

    begin, end: seconds of the word
    """
    said, middle, late = round(end * FRAME_RATE), (begin + end) / 2 * FRAME_RATE, round(LATE * FRAME_RATE)
    other = [k for k in range(WINDOW - 1, frames, 20) if k < middle or k > said + 2 * late]
    return [(k, True) for k in range(said, min(said + late, frames), 5)] + [(k, False) for k in other]


def window_scores(head: nn.Module, states: Tensor) -> Tensor:
    """States (1, S, F, D) → probabilities (F - WINDOW + 1, classes) of all windows; other heads read their means."""
    if isinstance(head, DetectionHead):
        return head.running(states[0]).softmax(-1)
    mean = functional.avg_pool1d(states[0].transpose(1, 2), WINDOW, 1)  # (S, D, windows)
    return head(mean.permute(2, 0, 1))[0].softmax(-1)  # type: ignore[no-any-return]


def frame_scores(head: nn.Module, states: Tensor) -> Tensor:
    """The same (F, classes) at every frame, for the window that ends with it; before the first there are zeros."""
    kind = next(head.parameters()).dtype
    with torch.no_grad():
        return window_scores(head, functional.pad(states.to(kind), (0, 0, WINDOW - 1, 0)))


def detections(
    scores: NDArray[Any], labels: Sequence[str], config: DetectionConfig
) -> Iterator[list[tuple[int, int, float]]]:
    """For every threshold, (frame, column, smoothed score) of all detections in scores (F, K)."""
    smooth = max(1, round(config.smoothing * FRAME_RATE))
    smoothed = None
    for threshold in THRESHOLDS:
        trigger = Trigger(
            labels, float(threshold), smooth, round(config.refractory * FRAME_RATE), config.background, WINDOW
        )
        if smoothed is None:
            mine = scores[:, trigger.keywords]
            smoothed = smooth_scores(np.concatenate([np.zeros((smooth - 1, mine.shape[1])), mine]), smooth)
        yield trigger.tell(smoothed)


def hits(
    scores: NDArray[Any], labels: Sequence[str], keyword: str, ends: tuple[float, float], config: DetectionConfig
) -> list[float | None]:
    """Seconds from the end of the word to its first detection, for every threshold; None where there is none in time.

    ends: seconds in which the word begins and ends
    """
    begin, latest = ends[0] * FRAME_RATE, (ends[1] + config.tolerance) * FRAME_RATE
    found: list[float | None] = []
    for told in detections(scores, labels, config):
        frames = [frame for frame, column, _ in told if labels[column] == keyword and begin <= frame <= latest]
        found.append(round(frames[0] / FRAME_RATE - ends[1], 3) if frames else None)
    return found


def alarms(scores: NDArray[Any], labels: Sequence[str], config: DetectionConfig) -> list[int]:
    """How many detections there are, for every threshold; never more at a higher one."""
    return [len(told) for told in detections(scores, labels, config)]


def detection_curves(scores: AnyScores, bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """The DET curve of `DetectionScores` as plain values: one, or none for other scores.

    `late` has the median and the 90th percentile of seconds from the end of a word to its detection, at the operating point
    and without what a stream waits for: chunk and look-ahead.
    """
    if not isinstance(scores, DetectionScores):
        return []
    per_head, chosen = scores.rates(), []
    recall, rate = (values.mean(0) for values in per_head)
    drawn = [v.mean(1) for v in bootstrap.detection_rates(scores, slice(0, min(REPLICATES, bootstrap.replicates)))]
    ends = [np.nanpercentile(values, [2.5, 97.5], axis=0) for values in drawn]
    for late, column in zip(scores.late, operating_column(per_head[1], scores.allowed), strict=True):
        if column < len(scores.thresholds):
            chosen.append(late[:, column][np.isfinite(late[:, column])])
    told = np.concatenate(chosen) if chosen else np.zeros(0)
    column = int(operating_column(rate, scores.allowed))
    rows = zip(scores.thresholds, recall, *ends[0], rate, *ends[1], strict=True)
    names = ("threshold", "recall", "recall_low", "recall_high", "alarms", "alarms_low", "alarms_high")
    curve = {
        "hours": scores.seconds.sum() / 3600,
        "keywords": int((scores.seconds == 0).sum()),
        "threshold": float(scores.thresholds[column]) if column < len(scores.thresholds) else None,
        "late": [float(np.quantile(told, share)) for share in (0.5, 0.9)] if len(told) else None,
        "points": [{name: round(float(v), 6) for name, v in zip(names, row, strict=True)} for row in rows],
    }
    return [curve]
