"""From scores to the figures that are reported: intervals, averages over conditions, differences to the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .conditions import Condition
from .metrics import Metric, Scores, TrialScores
from .statistics import Bootstrap, Difference, Interval, difference, holm, interval

Array = NDArray[np.float64]
Measured = Mapping[str, Mapping[str, Scores | TrialScores]]
"""Model → condition → scores of one metric."""

AVERAGES = {
    "noise": "all noise",
    "reverb": "all reverberation",
    "both": "all noise in rooms",
    "contaminated": "all contaminated",
    "seen": "seen in training",
    "unseen": "unseen in training",
}


@dataclass(frozen=True)
class Figure:
    """One reported number. `condition` is a condition's name, or ``mean:`` and a name of `AVERAGES`."""

    task: str
    metric: str
    model: str
    condition: str
    estimate: Interval
    utterances: int
    against: str | None = None  # the reference model
    difference: Difference | None = None  # value minus the reference's
    error_reduction: Interval | None = None  # 1 - error / error of the reference

    def to_dict(self) -> dict[str, Any]:
        """Flat JSON values."""
        flat: dict[str, Any] = {k: getattr(self, k) for k in ("task", "metric", "model", "condition", "utterances")}
        flat |= asdict(self.estimate)
        if self.against is not None and self.difference is not None:
            flat["against"] = self.against
            flat |= {f"difference_{k}": v for k, v in asdict(self.difference).items()}
            flat["significant"] = self.difference.significant
        if self.error_reduction is not None:
            flat |= {f"error_reduction_{k}": getattr(self.error_reduction, k) for k in ("value", "low", "high")}
        return flat


def averaged(conditions: Sequence[Condition]) -> dict[str, list[str]]:
    """The conditions behind each average that makes sense for this grid."""
    contaminated = [c for c in conditions if c.kind != "clean"]
    groups = {kind: [c.name for c in contaminated if c.kind == kind] for kind in ("noise", "reverb", "both")}
    groups["contaminated"] = [c.name for c in contaminated]
    for mark in ("seen", "unseen"):
        groups[mark] = [c.name for c in contaminated if c.seen == mark]
    if not (groups["seen"] and groups["unseen"]):
        groups["seen"] = groups["unseen"] = []
    return {name: members for name, members in groups.items() if members}


def figures(
    task: str,
    metric: Metric,
    measured: Measured,
    conditions: Sequence[Condition],
    bootstrap: Bootstrap,
    reference: str | None,
) -> list[Figure]:
    """All figures of one metric of one task: every model under every condition and on every average.

    reference: the model that the others are compared with, or None.
    """
    groups = averaged(conditions)
    values: dict[tuple[str, str], float] = {}
    replicates: dict[tuple[str, str], Array] = {}
    seeds: dict[tuple[str, str], Array] = {}
    for model, by_condition in measured.items():
        for condition, scores in by_condition.items():
            key = (model, condition)
            values[key] = scores.value()
            replicates[key] = bootstrap.replicate(scores, model)
            seeds[key] = _seed_values(scores)
        for name, members in groups.items():
            inside = [(model, member) for member in members if member in by_condition]
            if inside:
                key = (model, f"mean:{name}")
                values[key] = float(np.mean([values[k] for k in inside]))
                replicates[key] = np.mean([replicates[k] for k in inside], axis=0)
                seeds[key] = np.mean([seeds[k] for k in inside], axis=0)
    count = {(m, c): _utterances(s) for m, by_condition in measured.items() for c, s in by_condition.items()}
    differences = _differences(values, replicates, reference)
    found = []
    for key, value in values.items():
        model, condition = key
        compared = differences.get(key)
        found.append(
            Figure(
                task, metric.name, model, condition,
                interval(value, replicates[key], seeds[key].tolist()),
                count.get(key, max(count.values(), default=0)),
                reference if compared else None, compared,
                _reduction(metric, key, reference, values, replicates) if compared else None,
            )
        )  # fmt: skip
    return found


def _differences(
    values: Mapping[tuple[str, str], float], replicates: Mapping[tuple[str, str], Array], reference: str | None
) -> dict[tuple[str, str], Difference]:
    """Every model against the reference; single conditions are corrected as one family, and so are the averages."""
    from dataclasses import replace

    raw = {
        (model, condition): difference(
            value - values[reference, condition], replicates[model, condition] - replicates[reference, condition]
        )
        for (model, condition), value in values.items()
        if reference is not None and model != reference and (reference, condition) in values
    }
    corrected: dict[tuple[str, str], Difference] = {}
    for averages in (False, True):
        family = {key: d for key, d in raw.items() if key[1].startswith("mean:") is averages}
        names = {"\n".join(key): key for key in family}
        for name, p in holm({name: family[key].p for name, key in names.items()}).items():
            corrected[names[name]] = replace(family[names[name]], p_holm=p)
    return corrected


def _reduction(
    metric: Metric,
    key: tuple[str, str],
    reference: str | None,
    values: Mapping[tuple[str, str], float],
    replicates: Mapping[tuple[str, str], Array],
) -> Interval | None:
    if metric.ceiling is None or reference is None:
        return None
    other = (reference, key[1])
    base = metric.error(values[other])
    if not base > 0:
        return None
    errors, bases = metric.error(replicates[key]), metric.error(replicates[other])
    drawn = np.divide(errors, bases, out=np.full(len(errors), np.nan), where=bases > 0)
    return interval(1 - metric.error(values[key]) / base, 1 - drawn)


def _seed_values(scores: Scores | TrialScores) -> Array:
    """The figure of every head seed."""
    if isinstance(scores, Scores):
        return scores.total.sum(1) / scores.count.sum()  # type: ignore[no-any-return]
    from dataclasses import replace

    return np.array([replace(scores, similarity=s[None]).value() for s in scores.similarity])


def _utterances(scores: Scores | TrialScores) -> int:
    if isinstance(scores, TrialScores):
        return len(np.union1d(scores.left, scores.right))
    return int((scores.count > 0).sum()) if scores.metric.unit != "%" else len(scores.count)
