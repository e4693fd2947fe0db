"""Numbers → tables, pictures and one self-contained page."""

from __future__ import annotations

from pathlib import Path

from ..files import unique_name
from .charts import write_means
from .markdown import write_summary
from .page import write_page
from .reading import read_result

__all__ = ["write_page", "write_report", "write_summary"]


def write_report(folder: str | Path) -> Path:
    """Write `summary.md`, `report.html` and a picture of every task for the benchmark in `folder`; returns the page."""
    write_summary(folder)
    result = read_result(folder)
    for task in result.tasks:
        for measure in result.measures(task)[:1]:
            write_means(result, measure, result.folder / f"{unique_name(task['name'])}.svg")
    return write_page(folder)
