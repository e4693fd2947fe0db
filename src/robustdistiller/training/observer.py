"""Who watches a run, such as the progress bar of the command line."""

from __future__ import annotations

from collections.abc import Sequence


class Observer:
    """Told about a run as it goes; this one says nothing."""

    def work(self, what: str, done: int, total: int) -> None:
        """Long preparation, such as scanning a corpus."""

    def plan(self, lines: Sequence[str], start: int, steps: int) -> None:
        """What the run is about to do, in words, and its first and last step; called once."""

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Called after every step; `metrics` is empty except at every `log_every`-th."""

    def validated(self, step: int, metrics: dict[str, float], best: bool) -> None:
        """Called after every validation."""
