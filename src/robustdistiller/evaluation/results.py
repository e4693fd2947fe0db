"""From scores to what is reported: intervals, averages over conditions, differences to the reference, the result as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from .conditions import Condition
from .evaluated import ReportedModel
from .false_alarms import detection_curves
from .metrics import AnyScores, DetectionScores, Metric, TrialScores, by_head, stack_trainings
from .rendering import ConditionRenderer
from .settings import Settings
from .statistics import Bootstrap, Difference, Interval, difference, holm, interval
from .task_file import Task

Array = NDArray[np.float64]
ScoresByTask = Mapping[str, Mapping[str, AnyScores]]
"""Model → condition → scores of one metric."""

AVERAGES = {
    "noise": "all noise", "reverb": "all reverberation", "both": "all noise in rooms",
    "contaminated": "all contaminated", "seen": "seen in training", "unseen": "unseen in training",
}  # fmt: skip


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


def task_summary(folds: Sequence[Task]) -> dict[str, Any]:
    """What a task is, before anything is measured on it."""
    task = folds[0]
    return {
        "name": task.report_name, "title": task.title, "kind": task.config.kind, "folds": len(folds),
        "slots": list(task.slots),
        "classes": [list(classes) for classes in task.classes] if task.slots else [],
        "utterances": {
            "train": len(task.train), "valid": len(task.valid), "test": sum(len(fold.test) for fold in folds)
        },
        "speakers": len({e.recording.speaker for fold in folds for e in fold.test} - {None}),
        "metrics": [], "figures": [], "heads": [], "confusion": [], "detection": [],
    }  # fmt: skip


def task_figures(
    folds: Sequence[Task],
    scored: Mapping[str, Mapping[str, Sequence[AnyScores]]],
    models: Sequence[ReportedModel],
    conditions: Sequence[Condition],
    settings: Settings,
    reference: str,
) -> dict[str, Any]:
    """The metrics of a task and their figures.

    scored: name of a model → condition → its scores by metric; whatever is no member of `models` is reported as it is.
    """
    if not scored:
        return {}
    own = {name for model in models for name in model.names}
    measured: dict[str, dict[str, list[AnyScores]]] = {
        name: {condition: list(scores) for condition, scores in by.items()}
        for name, by in scored.items() if name not in own
    }  # fmt: skip
    for model in models:
        if all(name in scored for name in model.names):
            trainings = [scored[name] for name in model.names]
            pairs = {name: zip(*(t[name] for t in trainings), strict=True) for name in trainings[0]}
            measured[model.name] = {
                name: [stack_trainings(group) for group in groups] for name, groups in pairs.items()
            }
    clusters = [example.cluster for fold in folds for example in fold.test]
    bootstrap = Bootstrap(clusters, settings.replicates, settings.seed)
    metrics = {s.metric.name: s.metric for by in measured.values() for scores in by.values() for s in scores}
    reference = reference if reference in measured else next(iter(measured))
    found: list[Figure] = []
    for metric in metrics.values():
        of_metric = {name: {c: s for c, scores in by.items() for s in scores if s.metric.name == metric.name}
                     for name, by in measured.items()}  # fmt: skip
        found += figures(folds[0].report_name, metric, of_metric, conditions, bootstrap, reference)
    curves = [
        {"model": name, "condition": condition, **curve}
        for name, by in measured.items() for condition, scores in by.items()
        for curve in detection_curves(scores[0], bootstrap)
    ]  # fmt: skip
    told = [figure.to_dict() for figure in found]
    return {"metrics": [asdict(metric) for metric in metrics.values()], "figures": told, "detection": curves}


def benchmark_result(
    settings: Settings,
    reference: str,
    models: Sequence[ReportedModel],
    stage: ConditionRenderer,
    tasks: Sequence[dict[str, Any]],
    notes: Sequence[str],
) -> dict[str, Any]:
    """The whole result as plain JSON values."""
    return {
        "format": 1,
        "version": __version__,
        "conditions_name": stage.config.name,
        "settings": {**asdict(settings), "reference": reference},
        "models": [model.to_dict() for model in models],
        "conditions": [condition.to_dict() for condition in stage.conditions],
        "averages": {name: {"title": AVERAGES[name], "members": members}
                     for name, members in averaged(stage.conditions).items()},
        "tasks": list(tasks),
        "notes": list(notes),
    }  # fmt: skip


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
    measured: ScoresByTask,
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
    heads: dict[tuple[str, str], Array] = {}
    trainings = {model: max(s.trainings for s in by.values()) for model, by in measured.items()}
    for model, by_condition in measured.items():
        for condition, scores in by_condition.items():
            key = (model, condition)
            values[key] = scores.value()
            replicates[key] = bootstrap.replicate(scores, model)
            heads[key] = by_head(scores)
        for name, members in groups.items():
            inside = [(model, member) for member in members if member in by_condition]
            if inside:
                key = (model, f"mean:{name}")
                values[key] = float(np.mean([values[k] for k in inside]))
                replicates[key] = np.mean([replicates[k] for k in inside], axis=0)
                heads[key] = np.mean([heads[k] for k in inside], axis=0)
    count = {(m, c): _utterances(s) for m, by_condition in measured.items() for c, s in by_condition.items()}
    differences = _differences(values, replicates, reference)
    found = []
    for key, value in values.items():
        model, condition = key
        compared = differences.get(key)
        found.append(
            Figure(
                task, metric.name, model, condition,
                interval(value, replicates[key], heads[key].tolist(), trainings[model]),
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


def _utterances(scores: AnyScores) -> int:
    if isinstance(scores, DetectionScores):
        return len(scores.seconds)
    if isinstance(scores, TrialScores):
        return len(np.union1d(scores.left, scores.right))
    return int((scores.count > 0).sum()) if scores.metric.unit != "%" else len(scores.count)
