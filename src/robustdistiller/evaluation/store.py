"""What a benchmark stores, and how finished work is known from outdated work.

Every file goes with the key of what it was made from: models, audio, conditions, settings, and the `FORMAT` of each producer,
which is raised by hand when the same inputs would give other numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import digest, read_json, read_jsonl, unique_name, write_json, write_jsonl
from . import enhancement_scores, similarity, task_heads
from .conditions import CLEAN, Condition
from .evaluated import EvaluatedModel
from .features import FeatureStream
from .rendering import TRAINING, ConditionRenderer
from .settings import Settings
from .task_file import Example, Task

Row = dict[str, Any]


def write_rows(file: Path, rows: Sequence[Row], key: str) -> None:
    """Write rows, then beside them the key of what they were made from, with a checksum of the file."""
    write_jsonl(file, rows)
    write_json(file.with_suffix(".key"), {"key": key, "checksum": _checksum(file)})


def read_rows(file: Path, key: str) -> list[Row] | None:
    """The rows that were made for exactly this `key`; None where there are none, or where the file is not as it was written."""
    try:
        if read_json(file.with_suffix(".key")) == {"key": key, "checksum": _checksum(file)}:
            return [row for _, row in read_jsonl(file, "rows")]
    except (OSError, UserError):
        pass
    return None


def _checksum(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()


class Store:
    """The files of a benchmark in the folder `out`, and their keys."""

    def __init__(self, out: Path, stage: ConditionRenderer, settings: Settings):
        self.out, self.stage, self.settings = out, stage, settings

    # Files

    def heads_file(self, task: Task, model: EvaluatedModel) -> Path:
        return self.out / "heads" / unique_name(task.name) / f"{unique_name(model.name)}.safetensors"

    def rows_file(self, task: Task, model: str, condition: Condition) -> Path:
        """Predictions, or measures of enhancement."""
        return self.out / "predictions" / unique_name(task.name) / unique_name(model) / f"{condition.name}.jsonl"

    def similarity_file(self, task: Task, model: EvaluatedModel, condition: Condition) -> Path:
        return self.out / "similarity" / unique_name(task.name) / unique_name(model.name) / f"{condition.name}.jsonl"

    def audio_file(self, task: Task, example: Example, condition: Condition) -> Path:
        """Relative to `out`."""
        return Path("audio") / unique_name(task.name) / unique_name(example.id) / f"{condition.name}.wav"

    def stream(self, model: EvaluatedModel, task: Task, part: str, condition: Condition, pooled: bool) -> FeatureStream:
        """The features of a part of a task under a condition."""
        key = {
            "model": model.digest, "audio": task.fingerprints[part],
            "condition": self.stage.digest(condition, task, part), "pooled": pooled,
            "batch_seconds": self.settings.batch_seconds,
        }  # fmt: skip
        return FeatureStream(self.out / "features", key, f"{model.name}, {task.name} {part}, {condition.title}")

    # Keys

    def head_key(self, model: EvaluatedModel, task: Task, pooled: bool) -> str:
        condition = CLEAN if self.settings.train_on == "clean" else TRAINING
        streams = [self.stream(model, task, part, condition, pooled).key for part in ("train", "valid")]
        answers = [[list(e.target) for e in task.part(part)] for part in ("train", "valid")]
        config = {**asdict(self.settings.heads), "seeds": self.settings.seeds}
        kind, units = task.config.kind, task.config.units
        return digest([task_heads.FORMAT, streams, answers, config, self.settings.seed, kind, units])

    def predictions_key(
        self, model: EvaluatedModel, task: Task, condition: Condition, pooled: bool, pooled_test: bool
    ) -> str:
        answers = [list(e.target) for e in task.test]
        stream = self.stream(model, task, "test", condition, pooled_test).key
        told = [task.config.detection.model_dump()] if task.config.kind == "detection" else []
        return digest([self.head_key(model, task, pooled), stream, answers, task.config.trials, *told])

    def enhancement_key(
        self, model: EvaluatedModel | None, task: Task, condition: Condition, wanted: Sequence[str]
    ) -> str:
        """`model`: None for the input itself."""
        audio = [task.fingerprints["test"], self.stage.digest(condition, task, "test")]
        return digest([enhancement_scores.FORMAT, audio, list(wanted), model.digest if model else None])

    def similarity_key(
        self, model: EvaluatedModel, task: Task, examples: Sequence[Example], condition: Condition
    ) -> str:
        audio = [task.fingerprints["test"], self.stage.digest(condition, task, "test")]
        return digest([similarity.FORMAT, audio, [e.id for e in examples], self.settings.batch_seconds, model.digest])
