"""Manifests: lists of recordings as JSON lines, and the `Recording` that the rest of the project passes around.

A line is an object with `path` and `duration` (seconds), optionally `id`, `start` (seconds into the file), `speaker`,
`label`, `split` (train, valid or test) and `group` (the noise recording or room that splits never share). All other
fields are kept as they are. A relative path counts from a root given, else from the manifest's folder, else from the
nearest folder above it under which the first entry exists.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AudioError, UserError, closest
from ..files import StrPath, read_jsonl, write_jsonl
from .io import read_audio

SPLITS = ("train", "valid", "test")
SPLIT_NAMES = {
    **{name: "train" for name in ("train", "training")},
    **{name: "valid" for name in ("valid", "validation", "dev", "val")},
    **{name: "test" for name in ("test", "testing", "eval")},
}
# Other names that corpora give to our fields, used where ours is absent.
_ALIASES = {"speaker": ("speaker_cluster",), "group": ("recording", "room")}
LONGEST = 1e9  # seconds, 32 years: beyond, sample numbers are no longer exact
_OWN = ("id", "path", "duration", "start", "speaker", "label", "split", "group")


@dataclass(frozen=True, slots=True)
class Recording:
    """An audio file, or the part of one that starts at `start` and lasts `seconds`.

    Attributes:
        id: Unique among the recordings of a source.
        path: The file.
        seconds: How long it is.
        start: Seconds into the file.
        speaker: Who speaks.
        label: What a task is to tell.
        split: train, valid, test, or None.
        group: The noise recording or room, which splits never share.
        extra: All other fields of the manifest.

    Example:
        >>> from robustdistiller import Recording
        >>> Recording("a", "speech/a.wav", seconds=2.5, speaker="anna").to_row()["speaker"]
        'anna'
    """

    id: str
    path: str
    seconds: float
    start: float = 0.0
    speaker: str | None = None
    label: str | None = None
    split: str | None = None  # train, valid, test or not assigned
    group: str | None = None  # the noise recording or room: what splits never share
    # What else the manifest says: text, phones, slots, rt60... Its entry `use_channel` (from 0) picks one channel of
    # the file; without it they are averaged, which suits speech but would smear a multi-channel room response.
    extra: dict[str, Any] = field(default_factory=dict, hash=False)

    def load(self, offset: float = 0.0, seconds: float | None = None) -> np.ndarray:
        """Read it.

        Args:
            offset: Seconds after the recording's start.
            seconds: At most so many, and never beyond its end.

        Returns:
            (T,) float32 at 16 kHz.

        Raises:
            AudioError: The file cannot be read, or nothing of it is left.
        """
        left = self.seconds - offset
        if left <= 0:
            raise AudioError(f"{self.id} lasts {self.seconds:g} s: no part of it starts at {offset:g} s.", "too-short")
        return self._read(offset, left if seconds is None else min(seconds, left))

    def _read(self, offset: float, seconds: float) -> np.ndarray:
        return read_audio(self.path, self.start + offset, seconds, channel=self.extra.get("use_channel"))

    def to_row(self) -> dict[str, Any]:
        """The manifest line of this recording, with its absolute path; `recording_from_row` is the inverse."""
        row: dict[str, Any] = {"id": self.id, "path": os.path.abspath(self.path), "duration": self.seconds}
        if self.start:
            row["start"] = self.start
        for name in ("speaker", "label", "split", "group"):
            value = getattr(self, name)
            # An explicit null keeps an alias among the extra fields from being taken for ours.
            if value is not None or any(alias in self.extra for alias in _ALIASES.get(name, ())):
                row[name] = value
        return row | {name: value for name, value in self.extra.items() if name not in _OWN}


def recording_from_row(row: dict[str, Any], path: str) -> Recording:
    """Validate one manifest line whose file is `path`. Raises `ValueError` with the fault in a few words."""
    rest = dict(row)
    name = rest.pop("path")
    seconds = _number(rest.pop("duration", None), "duration")
    if seconds <= 0:
        raise ValueError(f"its duration must be above 0, not {seconds:g}")
    start = _number(rest.pop("start", 0.0), "start")
    if start < 0:
        raise ValueError(f"its start must not be negative, not {start:g}")
    named = {key: _text(rest.pop(key, None), key) for key in ("id", "speaker", "label", "split", "group")}
    for key, aliases in _ALIASES.items():
        alias = next((a for a in aliases if type(rest.get(a)) in (str, int)), None)
        if key not in row and alias is not None:
            named[key] = _text(rest.pop(alias), alias)
    split = named["split"]
    if split is not None:
        named["split"] = SPLIT_NAMES.get(split.lower())
        if named["split"] is None:
            raise ValueError(f"its split '{split}' is not one of {', '.join(SPLITS)}.{closest(split, SPLITS)}")
    channel = rest.get("use_channel")
    if channel is not None and not (type(channel) is int and 0 <= channel < 1024):
        raise ValueError(f"its use_channel is not the number of a channel: {channel!r:.40}")
    named["id"] = named["id"] or os.path.splitext(name)[0]
    return Recording(path=path, seconds=seconds, start=start, extra=rest, **named)  # type: ignore[arg-type]


def read_manifest(path: StrPath, root: StrPath | None = None, check_files: bool = False) -> list[Recording]:
    """Read and validate a manifest.

    Args:
        path: A JSON-lines file, which may be gzipped.
        root: The folder that its relative paths count from; by default it is found, see this module's description.
        check_files: Whether every file must exist.

    Raises:
        UserError: With the line of the first fault.
    """
    path = Path(path)
    recordings: list[Recording] = []
    lines: dict[str, int] = {}
    base = None if root is None else Path(os.path.abspath(root))
    if base is not None and not base.is_dir():
        raise UserError(f"The root {root} of the manifest {path} is not a folder: check the path.")
    for number, row in read_jsonl(path, "manifest"):
        name = row.get("path")
        if not isinstance(name, str) or not name or "\0" in name:
            raise UserError(f"Line {number} of the manifest {path} has no 'path': give each line one as text.")
        if base is None and not os.path.isabs(name):
            folder = Path(os.path.abspath(path)).parent
            base = next((b for b in (folder, *folder.parents) if os.path.isfile(b / name)), folder)
        file = os.path.normpath(os.path.join(base or "", name))
        if root is not None and not os.path.isabs(name) and not Path(file).is_relative_to(base or ""):
            raise UserError(f"Line {number} of the manifest {path} leaves its root ({name}): give an absolute path.")
        try:
            recording = recording_from_row(row, file)
        except ValueError as error:
            raise UserError(f"Line {number} of the manifest {path} is wrong: {str(error).rstrip('.')}.") from error
        if recording.id in lines:
            first = lines[recording.id]
            raise UserError(f"Line {number} of the manifest {path} repeats the id '{recording.id}' of line {first}.")
        lines[recording.id] = number
        recordings.append(recording)
    if not recordings:
        raise UserError(f'The manifest {path} is empty: write one {{"path": ..., "duration": ...}} a line.')
    if check_files:
        check_exist(recordings, f"the manifest {path}")
    return recordings


def write_manifest(path: StrPath, recordings: Iterable[Recording]) -> None:
    """Write a manifest, atomically; files below its folder by relative path, so that both can be moved together."""
    folder = os.path.dirname(os.path.abspath(path)) + os.sep

    def rows() -> Iterable[dict[str, Any]]:
        for recording in recordings:
            row = recording.to_row()
            row["path"] = row["path"].removeprefix(folder)
            yield row

    write_jsonl(path, rows())


def check_exist(recordings: Sequence[Recording], where: str) -> None:
    """Raise `UserError` that names the first missing file of `where` and counts the others."""
    missing = [recording.path for recording in recordings if not os.path.isfile(recording.path)]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(recordings)} files in {where} do not exist (first: {missing[0]}): "
            "fix the paths, or say which folder they count from with manifest.jsonl::folder."
        )


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LONGEST:
        fault = f"its {name} is not a number of seconds: {value!r:.40}"
        raise ValueError(f"it has no '{name}'" if value is None else fault)
    return float(value)


def _text(value: Any, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"its {name} must be text, not {value!r:.40}")
