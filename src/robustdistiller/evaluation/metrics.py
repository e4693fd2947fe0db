"""The figures of merit: accuracy, equal error rate, word and phone error rate, and means of speech quality.

Whatever the task, a model's performance under one condition is kept as `Scores`, per utterance, so that every figure can be
recomputed on resampled utterances: that is where the intervals come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """What a figure is called, whether more is better, and how it is written."""

    name: str
    title: str
    unit: str = "%"
    higher_is_better: bool = True
    ceiling: float | None = 1.0  # the best value, from which errors are counted; None: no such value
    scale: float = 100.0
    decimals: int = 1

    def error(self, value: Any) -> Any:
        """Distance to perfection, for relative error reductions; None where there is no perfection."""
        return None if self.ceiling is None else abs(self.ceiling - value)


ACCURACY = Metric("accuracy", "Accuracy")
SLOTS = Metric("slots", "Slots right")
FRAMES = Metric("frame_accuracy", "Frames right")
EER = Metric("eer", "Equal error rate", higher_is_better=False, ceiling=0.0)
WER = Metric("wer", "Word error rate", higher_is_better=False, ceiling=0.0)
CER = Metric("cer", "Character error rate", higher_is_better=False, ceiling=0.0)
PER = Metric("per", "Phone error rate", higher_is_better=False, ceiling=0.0)
SI_SDR = Metric("si_sdr", "SI-SDR", unit="dB", ceiling=None, scale=1.0)
STOI = Metric("stoi", "STOI", unit="", scale=1.0, decimals=3)
PESQ = Metric("pesq", "PESQ", unit="MOS", ceiling=None, scale=1.0, decimals=2)
DNSMOS = Metric("dnsmos", "DNSMOS overall", unit="MOS", ceiling=None, scale=1.0, decimals=2)
RECALL = Metric("recall", "Recall")
METRICS = {m.name: m for m in (ACCURACY, SLOTS, FRAMES, EER, WER, CER, PER, SI_SDR, STOI, PESQ, DNSMOS)}


@dataclass(frozen=True)
class Scores:
    """Per utterance and head: `total` (R, N) over `count` (N,); the figure is sum(total) / sum(count).

    Accuracy: 1 or 0 over 1; error rates: wrong units over reference units; enhancement: the measure itself over 1.
    Of several `trainings` of a model, the heads of each stand together.
    """

    metric: Metric
    total: Array
    count: Array
    trainings: int = 1

    def value(self) -> float:
        """The figure over all utterances, averaged over head seeds."""
        return float(self.total.sum(1).mean() / self.count.sum())


@dataclass(frozen=True)
class TrialScores:
    """Speaker verification: P pairs of utterances `left`, `right` (P,), whether one speaker said both, `same` (P,), and their
    `similarity` (R, P) for every head seed."""

    metric: Metric
    similarity: Array
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    same: NDArray[np.bool_]
    trainings: int = 1

    def value(self) -> float:
        """The equal error rate, averaged over head seeds."""
        return float(np.mean([RankedTrials(s, self.same).equal_error_rate() for s in self.similarity]))


@dataclass(frozen=True)
class DetectionScores:
    """Keywords in running speech, at T thresholds, for every head seed.

    Attributes:
        metric: Recall at `allowed` false alarms an hour.
        late: Seconds from the end of the word to its detection, nan where it was missed, (R, N, T).
        alarms: Detections where there is no keyword, (R, N, T).
        seconds: Of speech without keywords, (N,); 0 for a scene with one.
        thresholds: (T,), rising.
        allowed: False alarms an hour.
        trainings: Of the model.
    """

    metric: Metric
    late: Array
    alarms: Array
    seconds: Array
    thresholds: Array
    allowed: float
    trainings: int = 1

    def rates(self) -> tuple[Array, Array]:
        """Recall and false alarms an hour of every head and threshold, (R, T) each."""
        hours = self.seconds.sum() / 3600
        return np.isfinite(self.late).sum(1) / (self.seconds == 0).sum(), self.alarms.sum(1) / hours

    def value(self) -> float:
        """Recall at the allowed false alarms, averaged over head seeds."""
        recall, alarms = self.rates()
        return float(recall_at(recall, alarms, self.allowed).mean())


def operating_column(alarms: Array, allowed: float) -> NDArray[np.int64]:
    """The lowest threshold from which there are never more than `allowed` alarms, (..., T) → (...); T where there is none."""
    bad = (alarms > allowed)[..., ::-1]
    return np.where(bad.any(-1), alarms.shape[-1] - bad.argmax(-1), 0)


def recall_at(recall: Array, alarms: Array, allowed: float) -> Array:
    """Recall (..., T) at the operating threshold, (...); 0 where no threshold is high enough."""
    padded = np.concatenate([recall, np.zeros((*recall.shape[:-1], 1))], -1)
    return np.take_along_axis(padded, operating_column(alarms, allowed)[..., None], -1)[..., 0]


AnyScores = Scores | TrialScores | DetectionScores


def join_scores(first: Sequence[AnyScores], second: Sequence[AnyScores]) -> list[AnyScores]:
    """The scores of two folds as those of one test set."""
    joined: list[AnyScores] = []
    for a, b in zip(first, second, strict=True):
        if not (isinstance(a, Scores) and isinstance(b, Scores)):
            raise TypeError("pairs of speakers and keywords in running speech have no folds")
        joined.append(Scores(a.metric, np.concatenate([a.total, b.total], 1), np.concatenate([a.count, b.count])))
    return joined


BY_HEAD = {Scores: ("total",), TrialScores: ("similarity",), DetectionScores: ("late", "alarms")}
"""The fields of scores that have a row for every head."""


def stack_trainings(trainings: Sequence[AnyScores]) -> AnyScores:
    """The scores of several trainings of one model on the same test set as those of one model."""
    first = trainings[0]
    stacked: dict[str, Any] = {}
    for name in BY_HEAD[type(first)]:
        stacked[name] = np.concatenate([getattr(scores, name) for scores in trainings])
    return replace(first, **stacked, trainings=len(trainings))


def by_head(scores: AnyScores) -> Array:
    """The figure of every head of every training."""
    names = BY_HEAD[type(scores)]
    heads = len(getattr(scores, names[0]))
    ones: list[dict[str, Any]] = [{name: getattr(scores, name)[k : k + 1] for name in names} for k in range(heads)]
    return np.array([replace(scores, **one, trainings=1).value() for one in ones])


class RankedTrials:
    """Pairs sorted by similarity once, for the equal error rate under many weightings."""

    def __init__(self, similarity: Array, same: NDArray[np.bool_]):
        self.order = np.argsort(-similarity, kind="stable")
        ranked = similarity[self.order]
        self.same = same[self.order]
        self.step = np.r_[ranked[1:] != ranked[:-1], True]  # pairs of equal similarity are accepted together

    def equal_error_rate(self, weights: Array | None = None) -> float:
        """The rate at which as many different pairs are accepted as same pairs are rejected, linear between thresholds.

        weights: (P,) how often each pair counts, in the order given; nan without both kinds of pairs.
        """
        ranked = np.ones(len(self.same)) if weights is None else weights[self.order]
        targets, impostors = np.cumsum(ranked * self.same), np.cumsum(ranked * ~self.same)
        if targets[-1] <= 0 or impostors[-1] <= 0:
            return float("nan")
        missed = np.r_[1.0, 1.0 - targets[self.step] / targets[-1]]
        accepted = np.r_[0.0, impostors[self.step] / impostors[-1]]
        k = int(np.argmax(accepted >= missed))  # at least 1: nothing is accepted at first
        before, after = missed[k - 1] - accepted[k - 1], accepted[k] - missed[k]
        share = before / (before + after) if before + after > 0 else 0.0
        return float(accepted[k - 1] + share * (accepted[k] - accepted[k - 1]))


def unit_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[int, int]:
    """(substitutions + deletions + insertions, reference units) of two sequences of words, phones or characters."""
    return Levenshtein.distance(reference, hypothesis), len(reference)
