"""Numbers → tables, pictures and one self-contained page."""

from __future__ import annotations

from pathlib import Path

from .markdown import write_summary
from .page import write_page

__all__ = ["write_page", "write_report", "write_summary"]


def write_report(folder: str | Path) -> Path:
    """Write `summary.md` and `report.html` of the benchmark in `folder`; returns the page."""
    write_summary(folder)
    return write_page(folder)
