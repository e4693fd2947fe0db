"""Intervals and differences: a paired bootstrap over speakers and head seeds.

Utterances of one speaker are not independent, so whole speakers are drawn with replacement, and with them everything that
they said, under every condition and for every model alike (hence "paired"). Each replicate also draws the trainings of a
model, and of each drawn one its heads, with replacement: the interval covers the choice of test speakers, the luck of the
training and the luck of the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..randomness import generator
from .metrics import AnyScores, DetectionScores, RankedTrials, Scores, TrialScores, recall_at

Array = NDArray[np.float64]
CHUNK = 1000  # replicates computed at once
TRIALS = 2000  # replicates of an equal error rate, each of which is a pass over all pairs


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval, and its standard deviation over heads and over trainings where there are several."""

    value: float
    low: float
    high: float
    seed_std: float | None = None
    training_std: float | None = None


@dataclass(frozen=True)
class Difference:
    """A difference to the reference model: its interval, its two-sided p, and p corrected over all that were tested (Holm)."""

    value: float
    low: float
    high: float
    p: float
    p_holm: float | None = None

    @property
    def significant(self) -> bool:
        return (self.p if self.p_holm is None else self.p_holm) < 0.05


class Bootstrap:
    """Draws over the speakers of one test set; the same draws serve every model, condition and metric.

    clusters: (N,) the speaker of every test utterance.
    """

    def __init__(self, clusters: Sequence[str], replicates: int = 10_000, seed: int = 0):
        names, self.cluster = np.unique(np.asarray(clusters), return_inverse=True)
        self.size, self.replicates, self.seed = len(names), replicates, seed
        # How often each speaker was drawn, (K, speakers); a byte holds any count that will ever come up.
        self.weights = np.empty((replicates, self.size), np.uint8)
        chances = np.full(self.size, 1 / self.size)
        for number, part in enumerate(self._chunks()):
            rng = generator(seed, "bootstrap clusters", number)
            self.weights[part] = np.minimum(rng.multinomial(self.size, chances, size=part.stop - part.start), 255)

    def _chunks(self) -> list[slice]:
        starts = range(0, self.replicates, CHUNK)
        return [slice(start, min(start + CHUNK, self.replicates)) for start in starts]

    def replicate(self, scores: AnyScores, model: str = "") -> Array:
        """The figure in every replicate, (K,), or the first `TRIALS` of them for pairs; `model`: whose head seeds are drawn."""
        if isinstance(scores, DetectionScores):
            return self._detection(scores, model)
        return self._trials(scores, model) if isinstance(scores, TrialScores) else self._ratio(scores, model)

    def _head_weights(self, heads: int, trainings: int, model: str) -> Array:
        """How much every head counts in every replicate, (K, R): trainings are drawn first, then heads of each."""
        rng, each = generator(self.seed, "bootstrap head seeds", model), heads // trainings
        drawn = rng.multinomial(trainings, np.full(trainings, 1 / trainings), size=self.replicates)  # (K, trainings)
        draws = rng.multinomial(each * drawn, np.full(each, 1 / each))  # (K, trainings, each)
        return draws.reshape(self.replicates, heads) / heads

    def _ratio(self, scores: Scores, model: str) -> Array:
        sums = np.zeros((self.size, len(scores.total)))
        np.add.at(sums, self.cluster, scores.total.T)
        counts = np.zeros(self.size)
        np.add.at(counts, self.cluster, scores.count)
        luck = self._head_weights(len(scores.total), scores.trainings, model)
        values = np.empty(self.replicates)
        for part in self._chunks():
            weights = self.weights[part].astype(np.float64)
            total, count = ((weights @ sums) * luck[part]).sum(1), weights @ counts
            values[part] = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
        return values

    def detection_rates(self, scores: DetectionScores, part: slice) -> tuple[Array, Array]:
        """Recall and false alarms an hour in some replicates, (K, R, T) each; nan where none of either kind was drawn."""

        def summed(rows: Array) -> Array:
            sums = np.zeros((self.size, *rows.shape[1:]))
            np.add.at(sums, self.cluster, rows)
            return np.tensordot(self.weights[part].astype(np.float64), sums, 1)

        hits, alarms = (np.moveaxis(x, 0, 1).astype(np.float64) for x in (np.isfinite(scores.late), scores.alarms))
        words, hours = summed((scores.seconds == 0).astype(np.float64)), summed(scores.seconds) / 3600
        words, hours = (np.where(count > 0, count, np.nan)[:, None, None] for count in (words, hours))
        return summed(hits) / words, summed(alarms) / hours

    def _detection(self, scores: DetectionScores, model: str) -> Array:
        luck = self._head_weights(len(scores.late), scores.trainings, model)
        values = np.empty(self.replicates)
        for part in self._chunks():
            recall, alarms = self.detection_rates(scores, part)
            values[part] = (recall_at(recall, alarms, scores.allowed) * luck[part]).sum(1)
            values[part][np.isnan(alarms).any((1, 2))] = np.nan
        return values

    def _trials(self, scores: TrialScores, model: str) -> Array:
        """A pair counts as often as its two speakers were drawn together."""
        left, right = self.cluster[scores.left], self.cluster[scores.right]
        rng = generator(self.seed, "bootstrap head seeds", model)
        seeds = rng.integers(len(scores.similarity), size=self.replicates)
        ranked = [RankedTrials(similarity, scores.same) for similarity in scores.similarity]
        values = []
        for weights, seed in zip(self.weights[:TRIALS], seeds[:TRIALS], strict=True):
            drawn = weights.astype(np.float64)
            pairs = np.where(scores.same, drawn[left], drawn[left] * drawn[right])
            values.append(ranked[seed].equal_error_rate(pairs))
        return np.array(values)


def interval(value: float, replicates: Array, by_head: Sequence[float] = (), trainings: int = 1) -> Interval:
    """The percentile interval of an estimate; it always holds the estimate itself.

    by_head: the estimate of every head; those of each of the `trainings` stand together.
    """
    finite = replicates[np.isfinite(replicates)]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (value, value)
    spread = float(np.std(by_head, ddof=1)) if len(by_head) > 1 else None
    by_training = np.reshape(by_head, (trainings, -1)).mean(1) if trainings > 1 else []
    return Interval(
        value, float(min(low, value)), float(max(high, value)), spread,
        float(np.std(by_training, ddof=1)) if trainings > 1 else None,
    )  # fmt: skip


def difference(value: float, replicates: Array) -> Difference:
    """A difference with its percentile interval and the two-sided bootstrap p of "no difference"."""
    finite = replicates[np.isfinite(replicates)]
    if not len(finite):
        return Difference(value, value, value, 1.0)
    low, high = np.percentile(finite, [2.5, 97.5])
    tail = min((finite <= 0).sum(), (finite >= 0).sum())
    return Difference(value, float(low), float(high), float(min(1.0, 2 * (tail + 1) / (len(finite) + 1))))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction of a family of p values: the chance of even one false alarm stays below the level asked."""
    corrected: dict[str, float] = {}
    highest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p))
        corrected[name] = highest
    return corrected
