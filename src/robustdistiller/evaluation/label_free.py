"""The label-free score in a benchmark: which figures are there, and what the others are told from.

Similarity is told from the states that the features are made of, so that no utterance is computed twice for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from .conditions import CLEAN, Condition
from .evaluated import EvaluatedModel
from .features import Plan
from .similarity import CleanStates, Similarity
from .store import Row, Store, read_rows, write_rows
from .tasks import Example, Task


class LabelFree:
    """The figures of similarity in a `Store`, of some test utterances of each task; `plan` batches them."""

    def __init__(self, store: Store, plan: Callable[[Sequence[Example]], Plan], device: torch.device):
        self.store, self.plan, self.device = store, plan, device
        self._clean: dict[tuple[str, str], CleanStates] = {}  # by task and model

    def utterances(self, task: Task) -> list[int]:
        """Every k-th test utterance, so that all speakers of a sorted list are among them."""
        count = min(self.store.settings.similarity, len(task.test))
        return [int(k * len(task.test) / count) for k in range(count)]

    def lacking(self, models: Sequence[EvaluatedModel], task: Task, condition: Condition) -> list[EvaluatedModel]:
        """The models whose figure under a condition is not there yet."""
        if not self.store.settings.similarity or condition.kind == "clean":
            return []
        return [model for model in models if self.rows(model, task, condition) is None]

    def rows(self, model: EvaluatedModel, task: Task, condition: Condition) -> list[Row] | None:
        """The figure of a model under a condition, where it is there for exactly these inputs."""
        return read_rows(*self._place(model, task, condition))

    def begun(self, models: Sequence[EvaluatedModel], task: Task) -> dict[str, Similarity]:
        """Sums by model, which want the contaminated states."""
        return {model.name: Similarity(self._clean_states(model, task)) for model in models}

    def write(
        self, models: Sequence[EvaluatedModel], task: Task, condition: Condition, sums: Mapping[str, Similarity]
    ) -> None:
        """Keep what the `sums` of some models have come to."""
        for model in models:
            file, key = self._place(model, task, condition)
            write_rows(file, [{"condition": condition.name, **sums[model.name].values()}], key)

    def _place(self, model: EvaluatedModel, task: Task, condition: Condition) -> tuple[Path, str]:
        key = self.store.similarity_key(model, task, [task.test[k] for k in self.utterances(task)], condition)
        return self.store.similarity_file(task, model, condition), key

    def _clean_states(self, model: EvaluatedModel, task: Task) -> CleanStates:
        self._clean = {key: states for key, states in self._clean.items() if key[0] == task.name}
        key = (task.name, model.name)
        if key not in self._clean:
            numbers = self.utterances(task)
            examples = [task.test[k] for k in numbers]
            render = self.store.stage.render(CLEAN, task, "test", examples)
            self._clean[key] = CleanStates(model, numbers, self.plan(examples), render, self.device)
        return self._clean[key]
