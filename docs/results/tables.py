"""Draw the tables of README.md and of pages here from the CSV files of this folder: python docs/results/tables.py [--check]."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DRAWN = ("results", "scaling", "streaming", "teachers")
PAGES = (HERE.parents[1] / "README.md", *(HERE.parent / f"{page}.md" for page in DRAWN))
BLOCK = re.compile(r"(<!-- table: ([\w-]+\.csv) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def table(name: str) -> str:
    """A Markdown table of a CSV file; columns of figures are aligned right."""
    with (HERE / name).open(encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)
    figures = [all(re.fullmatch(r"[+−-]?[\d.]*", row[k]) for row in rows) for k in range(len(header))]
    rule = ["---:" if figure else "---" for figure in figures]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows)) + "\n"


def drawn(text: str) -> str:
    """`text` with every marked table drawn anew."""
    return BLOCK.sub(lambda found: found[1] + table(found[2]) + found[3], text)


def main() -> None:
    stale = [page for page in PAGES if drawn(page.read_text(encoding="utf-8")) != page.read_text(encoding="utf-8")]
    if "--check" in sys.argv:
        sys.exit(f"run python docs/results/tables.py: {', '.join(page.name for page in stale)}" if stale else 0)
    for page in stale:
        page.write_text(drawn(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
