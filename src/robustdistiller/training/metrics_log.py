"""Metrics as JSON lines, one object a row with its step, and optionally TensorBoard from the same calls."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ..errors import UserError, optional
from ..files import read_jsonl, write_jsonl, write_text, writing

FILE = "metrics.jsonl"


class MetricsLog:
    """Appends to ``metrics.jsonl`` of a run; on resume, rows after the step that it goes on from are dropped first."""

    def __init__(self, run: Path, start: int, tensorboard: bool = False):
        self.run = run
        path = run / FILE
        rows = _whole_rows(path)
        if any(row["step"] > start for row in rows):
            write_jsonl(path, [row for row in rows if row["step"] <= start])
        self._stream = path.open("a", encoding="utf-8")
        self._board: Any = None
        if tensorboard:
            board = optional("torch.utils.tensorboard", "track", "--tensorboard")
            self._board = board.SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Add one row and flush it."""
        row = {"step": step, "time": round(time.time(), 1), **{k: float(f"{v:.6g}") for k, v in metrics.items()}}
        with writing(self.run / FILE):
            self._stream.write(json.dumps(row) + "\n")
            self._stream.flush()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush everything."""
        self._stream.close()
        if self._board is not None:
            self._board.close()


def replaced_noises(run: Path) -> int:
    """How many noises of a run had to be replaced by white noise, as its ``skipped.jsonl`` lists them."""
    path = run / "skipped.jsonl"
    rows = read_jsonl(path, "list of what was skipped") if path.is_file() else ()
    return sum(str(row.get("reason")).startswith("noise: ") for _, row in rows)


def append_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a list of JSON lines, which several processes may do."""
    if rows:
        with file.open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(row) + "\n" for row in rows))


def validation_at(run: Path, step: int | None) -> dict[str, float]:
    """The validation metrics that a run wrote at `step`, without their prefix; empty where there are none."""
    found: dict[str, float] = {}
    for row in _whole_rows(run / FILE):
        if row["step"] == step and any(name.startswith("valid/") for name in row):
            found = {name.removeprefix("valid/"): v for name, v in row.items() if name.startswith("valid/")}
    return found


def _whole_rows(path: Path) -> list[dict[str, Any]]:
    """All rows but one that a kill cut in the middle."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        write_text(path, "".join(lines[:-1]))
    try:
        return [row for _, row in read_jsonl(path, "metrics") if isinstance(row.get("step"), int)]
    except UserError as error:
        raise UserError(f"{error} Or move the file away; the run goes on without its earlier curve.") from error
