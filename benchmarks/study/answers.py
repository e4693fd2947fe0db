"""The report of answers that another machine gave, where neither its features nor its heads came along.

    python benchmarks/study/answers.py ARGUMENTS OF `robustdistiller evaluate`

The folder named by --out holds predictions/ as `evaluate` left them there. Nothing is computed: the answers are scored, joined
over folds and compared as `evaluate` does, and the report says nothing of heads and label-free scores.
"""

from __future__ import annotations

from robustdistiller.process import prepare_process

prepare_process()  # before torch is imported

import sys
from collections.abc import Sequence
from typing import Any

from robustdistiller.cli import main
from robustdistiller.errors import UserError
from robustdistiller.evaluation import benchmark
from robustdistiller.evaluation.conditions import Condition
from robustdistiller.evaluation.evaluated import EvaluatedModel
from robustdistiller.evaluation.store import Row
from robustdistiller.evaluation.task_heads import Trained
from robustdistiller.evaluation.tasks import Task
from robustdistiller.files import read_jsonl

NONE = Trained(state={}, learning_rate=0.0, weight_decay=0.0, validation=0.0)


class Answers(benchmark._Benchmark):
    """A benchmark whose answers are all there."""

    def _heads(self, task: Task, models: Sequence[EvaluatedModel]) -> dict[str, list[Trained]]:
        return {model.name: [NONE] for model in models}

    def _predictions(self, task: Task, heads: Any, condition: Condition) -> dict[str, list[Row]]:
        files = {model.name: self.store.rows_file(task, model.name, condition) for model in self.models}
        if missing := [str(file) for file in files.values() if not file.is_file()]:
            raise UserError(f"There are no answers in {missing[0]}: bring them along, or leave this model out.")
        return {name: [row for _, row in read_jsonl(file, "rows")] for name, file in files.items()}

    def _similarity(self, task: Task, models: Sequence[EvaluatedModel]) -> dict[str, Any]:
        return {}


if __name__ == "__main__":
    benchmark._Benchmark = Answers  # type: ignore[misc]
    benchmark._head_summary = lambda model, trained: {"model": model.name, "states": [], "weights": []}
    sys.argv[0] = "robustdistiller"
    main()
