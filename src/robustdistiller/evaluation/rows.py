"""Rows on disk, each file with the key of what it was made from: how finished work is known from outdated work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import read_json, read_jsonl, write_json, write_jsonl

Row = dict[str, Any]


def write_rows(file: Path, rows: Sequence[Row], key: str) -> None:
    """Write rows, then their key beside them; a file without its key counts as absent."""
    seal = file.with_suffix(".key")
    seal.unlink(missing_ok=True)
    write_jsonl(file, rows)
    write_json(seal, key)


def read_rows(file: Path, key: str) -> list[Row] | None:
    """The rows that were made for exactly this `key`, or None."""
    seal = file.with_suffix(".key")
    if not (file.is_file() and seal.is_file()) or read_json(seal) != key:
        return None
    return [row for _, row in read_jsonl(file, "rows")]


def file_name(text: str) -> str:
    """`text` as a part of a path."""
    return "".join(c if c.isalnum() or c in "._-=" else "_" for c in text)
