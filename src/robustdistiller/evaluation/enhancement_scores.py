"""The enhancement task: the student's second head judged as a speech enhancer, against the contaminated input itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..objectives.quality import speech_quality
from .conditions import Condition
from .evaluated import EvaluatedModel
from .features import Plan
from .metrics import METRICS, AnyScores, Scores
from .rendering import ConditionRenderer
from .task_file import Task

FORMAT = 2  # raise it when the same inputs would give other measures
UNPROCESSED = "unprocessed"
"""The name under which the contaminated input takes part: what enhancement has to beat."""

Row = dict[str, Any]


def enhance_and_score(
    subjects: Sequence[EvaluatedModel],
    task: Task,
    stage: ConditionRenderer,
    condition: Condition,
    plan: Plan,
    wanted: Sequence[str],
    device: torch.device | str = "cpu",
    tick: Callable[[], None] | None = None,
) -> dict[str, list[Row]]:
    """The measures of every test utterance, for the input itself and for every subject: name → rows in task order.

    The reference is the clean utterance, whose direct path the contaminated one shares.
    """
    rows: dict[str, list[Row]] = {name: [{}] * len(task.test) for name in (UNPROCESSED, *(s.name for s in subjects))}
    for shard in plan.shards:
        for batch in shard:
            examples = [task.test[i] for i in batch]
            clean, lengths = stage.load(examples, task)
            noisy = stage.contaminate(clean, lengths, condition, task, "test", examples)
            estimates: dict[str, Tensor] = {UNPROCESSED: noisy}
            for subject in subjects:
                estimates[subject.name] = subject.enhance(noisy.to(device), lengths.to(device)).cpu()
            for name, estimate in estimates.items():
                for row, (index, length) in enumerate(zip(batch, lengths.tolist(), strict=True)):
                    estimated_wave, clean_wave = (x[row, :length].double().numpy() for x in (estimate, clean))
                    values = speech_quality(estimated_wave, clean_wave, wanted)
                    example = task.test[index]
                    judged = {name: round(v, 5) if np.isfinite(v) else None for name, v in values.items()}
                    rows[name][index] = {"id": example.id, "speaker": example.recording.speaker, **judged}
        if tick:
            tick()
    return rows


def score_enhancement(rows: Sequence[Row], wanted: Sequence[str]) -> list[AnyScores]:
    """Means over the utterances for which a measure is defined."""
    scores: list[AnyScores] = []
    for name in wanted:
        values = np.array([np.nan if row.get(name) is None else row[name] for row in rows], dtype=np.float64)
        defined = np.isfinite(values)
        if defined.any():
            scores.append(Scores(METRICS[name], np.where(defined, values, 0.0)[None], defined.astype(np.float64)))
    return scores
