"""What the command line prints: results on standard output, as lines or as JSON; all else on standard error.

Every text may come from a stranger's file: nothing in it is read as markup, and control characters are shown as escapes.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import printable
from .bars import is_main_process

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for scripts.")]


def say(*lines: str) -> None:
    """Print lines of a result."""
    for line in lines:
        print(printable(line))


def say_json(value: Any) -> None:
    """Print a result for a script. What JSON has no value for becomes text."""
    print(json.dumps(value, indent=2, ensure_ascii=True, default=str))


def answer(as_json: bool, value: Any, *lines: str) -> None:
    """Print a result for a script or for people."""
    if as_json:
        say_json(value)
    else:
        say(*lines)


def show_table(columns: list[str], rows: list[list[str]], title: str = "") -> None:
    """Print a table whose cells are never cut: the first column is a name, the others are figures."""
    from rich.table import Table
    from rich.text import Text

    heading = Text(printable(title), "italic") if title else None
    table = Table(title=heading, title_justify="left", box=None, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(Text(printable(name)), justify="right" if number else "left", no_wrap=True)
    for first, *cells in rows:
        table.add_row(Text(printable(first), "bold"), *(Text(printable(cell)) for cell in cells))
    needed = max(_console(False, width=1 << 16).measure(table).maximum, len(title))
    _console(False, width=needed).print(table)


def complain(sentence: str) -> None:
    """Print why the command ends, on standard error."""
    from rich.text import Text

    text = Text.assemble(("robustdistiller: ", "bold red"), printable(sentence))
    _console().print(text, soft_wrap=True)


class Notes(logging.Handler):
    """Log records as plain lines on standard error, above any progress bar; what was just said is not said again."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        sentence = printable(record.getMessage())
        if is_main_process() and sentence != self.last:
            from rich.text import Text

            self.last = sentence
            _console().print(Text.assemble(("note: ", "yellow"), sentence), soft_wrap=True)


def _console(stderr: bool = True, width: int | None = None) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)
