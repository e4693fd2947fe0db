"""The figures for machines: JSON lines and CSV, one row per task, metric, model and condition."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from ..files import write_jsonl, write_text


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """All figures of a benchmark with what their condition is; values are fractions (accuracy, rates), dB or MOS."""
    conditions = {c["name"]: c for c in result["conditions"]}
    states = {m["name"]: len(m["states"]) for m in result["models"]}
    found = []
    for task in result["tasks"]:
        for figure in task["figures"]:
            condition = conditions.get(figure["condition"], {})
            about = {name: condition.get(name) for name in ("kind", "noise", "snr_db", "rooms", "seen")}
            low, high = condition.get("t60") or (None, None)
            found.append({**figure, **about, "t60_low": low, "t60_high": high, "states": states.get(figure["model"])})
    return found


def _cell(value: Any) -> Any:
    """A value for a spreadsheet: six decimals, and no text that it would take for a formula."""
    if isinstance(value, str):
        return f"'{value}" if value[:1] in "=+-@\t\r" and value else value
    return round(value, 6) if isinstance(value, float) else value


def write_tables(out: Path, result: dict[str, Any]) -> None:
    """Write `results.jsonl` and `results.csv`, and the points of DET curves, if there are any, as `detection.csv`."""
    table = rows(result)
    write_jsonl(out / "results.jsonl", table)
    _write_csv(out / "results.csv", table)
    curves = [
        {"task": task["name"], "model": curve["model"], "condition": curve["condition"], **point}
        for task in result["tasks"] for curve in task.get("detection", ()) for point in curve["points"]
    ]  # fmt: skip
    if curves:
        _write_csv(out / "detection.csv", curves)


def _write_csv(path: Path, table: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in table for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in table)
    write_text(path, text.getvalue())
