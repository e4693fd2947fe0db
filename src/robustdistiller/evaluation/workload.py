"""How much a benchmark has to do, and how far it is: units of a shard of features, a head, or a model's similarity."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..progress import Progress
from .conditions import Condition
from .features import Plan
from .settings import Settings
from .tasks import Example, Task


class Workload:
    """The work of a benchmark, told to a progress callback; `plan` batches examples."""

    def __init__(
        self, tasks: Sequence[Sequence[Task]], models: int, conditions: Sequence[Condition], settings: Settings,
        plan: Callable[[Sequence[Example]], Plan], progress: Progress | None,
    ):  # fmt: skip
        self.models, self.settings, self.plan, self.progress = models, settings, plan, progress
        self.done = self.begun = 0
        self.total = max(1, self._all(tasks, conditions))

    def tick(self, units: int = 1) -> None:
        """Some more is done."""
        self.done = min(self.done + units, self.total)
        if self.progress:
            self.progress(self.done, self.total)

    def phase(self, units: int) -> None:
        """The end of a phase that was announced as `units`, however much of it was there already."""
        self.begun += units
        self.tick(max(0, self.begun - self.done))

    def restart(self) -> None:
        """The phases come once more, most of them done."""
        self.begun = 0

    def heads(self, task: Task) -> int:
        """The features that heads learn from, and the heads of all models."""
        tried = len(self.settings.heads.learning_rates) * len(self.settings.heads.weight_decays)
        shards = sum(len(self.plan(task.part(part)).shards) for part in ("train", "valid"))
        return shards + self.models * (tried + self.settings.seeds - 1)

    def _all(self, tasks: Sequence[Sequence[Task]], conditions: Sequence[Condition]) -> int:
        total = 0
        for task in (task for folds in tasks for task in folds):
            if task.config.kind != "unlabelled":
                total += len(self.plan(task.test).shards) * len(conditions)
            if task.config.has_heads:
                total += self.heads(task)
        if self.settings.similarity:
            total += len(tasks) * self.models * sum(c.kind != "clean" for c in conditions)
        return total
