"""The one progress display: a bar for each part of the work, and lines above the bars."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ..errors import printable


def is_main_process() -> bool:
    """Whether this process is the one that prints, among those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


class Bars:
    """Bars on standard error, one after another; a context manager.

    Example:
        with Bars() as bars:
            work(progress=bars.of("scanning"))  # called with (done, total)
            bars.show("measuring", 1, 3)
    """

    def __init__(self) -> None:
        self._display: Any = None
        self._tasks: dict[str, Any] = {}
        self._current = ""

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._display is not None:
            if kind is None:
                self._complete()
            self._display.stop()

    def of(self, what: str) -> Callable[[int, int], None]:
        """The bar of one part as a callback (done, total)."""
        return lambda done, total: self.show(what, done, total)

    def show(self, what: str, done: int, total: int, label: str = "") -> None:
        """Move the bar of the part `what`; its predecessor is complete. `label` is shown instead of the name."""
        if not is_main_process():
            return
        display = self._started()
        if what != self._current:
            self._complete()
            self._current = what
        if what not in self._tasks:
            self._tasks[what] = display.add_task(printable(what), total=total)
        display.update(self._tasks[what], completed=done, total=total, description=printable(label or what))

    def line(self, text: str) -> None:
        """Print a line above the bars."""
        if is_main_process():
            self._started().console.print(printable(text), soft_wrap=True)

    def _complete(self) -> None:
        """A part that has ended was all there was to do, also where less was left of it than announced."""
        if self._current in self._tasks:
            number = self._tasks[self._current]
            total = next(task.total for task in self._display.tasks if task.id == number)
            self._display.update(number, completed=total)

    def _started(self) -> Any:
        if self._display is None:
            from rich import progress
            from rich.console import Console

            name, left = progress.TextColumn("{task.description}", markup=False), progress.TextColumn("left")
            bar = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeElapsedColumn())
            screen = Console(stderr=True, highlight=False, markup=False, emoji=False)
            self._display = progress.Progress(name, *bar, left, progress.TimeRemainingColumn(), console=screen)
            self._display.start()
        return self._display
