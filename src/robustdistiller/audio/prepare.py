"""Preparation: from what a user points at to recordings that are known to be sound, scanned once and in parallel.

A source is a folder (a standard corpus is recognised, see corpora.py), `name:folder` for a corpus by name, a manifest
(`file.jsonl`, or `file.jsonl::root`), lhotse cuts, or a single audio file. Every file is decoded to its end, in blocks:
what is corrupt, empty, too short, silent or not a number is skipped and reported, with the reason.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import UserError, closest
from ..files import StrPath, digest, neighbour, read_json, write_json
from ..progress import Progress
from .checking import Skipped, check_all
from .corpora import CORPORA, Role, scan_corpus
from .io import SUFFIXES, find_files, readable
from .lhotse_adapter import is_cuts, read_cuts
from .manifest import Recording, check_exist, read_manifest, recording_from_row, write_manifest
from .media import MEDIA
from .shards import is_sharded

log = logging.getLogger(__name__)


_FORMAT = 2  # of a scan: raised when the same files give other recordings, so that cached ones are made again
_TOUCHING = 0.01  # seconds by which segments may overlap for their times were rounded


@dataclass(frozen=True)
class Prepared:
    """What came of one or several sources."""

    recordings: list[Recording]
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return math.fsum(recording.seconds for recording in self.recordings)

    @property
    def clipped(self) -> int:
        """How many recordings are heavily clipped: they are kept, with the share of samples as extra["clipped"]."""
        return sum("clipped" in recording.extra for recording in self.recordings)


def prepare(source: StrPath, role: Role, workers: int | None = None, progress: Progress | None = None) -> Prepared:
    """Find and check every recording of one source.

    Args:
        source: A folder, a known corpus, a manifest, lhotse cuts or a file (see this module's description).
        role: What it is to serve as: speech, noise or rooms.
        workers: Processes that decode; one per core by default.
        progress: Called with the numbers of recordings checked and in all.

    Raises:
        UserError: The source does not exist, holds no audio, or nothing in it can be used.

    Example:
        >>> prepared = prepare("librispeech:LibriSpeech/dev-clean", "speech")  # doctest: +SKIP
        >>> len(prepared.recordings), [row.reason for row in prepared.skipped]  # doctest: +SKIP
        (2703, [])
    """
    announced, skipped = _announced(_parsed(str(source)), role)
    kept: list[Recording] = []
    for done, result in enumerate(check_all(announced, role, workers), 1):
        if isinstance(result, Recording):
            kept.append(result)
        else:
            skipped.append(result)
        if progress:
            progress(done, len(announced))
    if not kept:
        raise UserError(f"No recording of {source} can be used ({_summary(skipped)}): check the files or the role.")
    if skipped:
        log.warning("%s: %d of %d recordings skipped (%s)", source, len(skipped), len(announced), _summary(skipped))
    return Prepared(kept, skipped)


def prepare_all(
    sources: Sequence[StrPath],
    role: Role,
    cache: StrPath | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Join the recordings of several sources under unique ids.

    Args:
        sources: As for `prepare`.
        role: What they are to serve as: speech, noise or rooms.
        cache: A folder that keeps each scan until its files change.
        workers: Processes that decode; one per core by default.
        progress: Called with the numbers of recordings checked and in all, for each source.

    Raises:
        UserError: As from `prepare`; or two sources hold the same part of a recording.
    """
    if not sources:
        raise UserError(f"There is no source of {role}: name at least one folder or manifest.")
    parsed = [_parsed(str(source)) for source in sources]  # all of them, before the first long scan
    scans = [_cached(source, role, cache, workers, progress) for source in parsed]
    _refuse_overlap(scans, sources)
    counts = Counter(recording.id for scan in scans for recording in scan.recordings)
    recordings: list[Recording] = []
    taken = {name for name, count in counts.items() if count == 1}
    for source, scan in zip(parsed, scans, strict=True):
        for recording in scan.recordings:
            if counts[recording.id] > 1:
                name, number = f"{source.word}/{recording.id}", 2
                unique = name
                while unique in taken:
                    unique, number = f"{name}~{number}", number + 1
                recording = replace(recording, id=unique)
                taken.add(recording.id)
            recordings.append(recording)
    return Prepared(recordings, [row for scan in scans for row in scan.skipped])


def _refuse_overlap(scans: Sequence[Prepared], sources: Sequence[StrPath]) -> None:
    """Raise `UserError` where two sources hold the same part of a recording."""
    parts: dict[str, list[tuple[float, float, int]]] = {}
    real_folder = lru_cache(None)(os.path.realpath)  # of many files in few folders
    for number, scan in enumerate(scans):
        for r in scan.recordings:
            folder, name = os.path.split(r.path)
            place = os.path.join(real_folder(folder), name)
            parts.setdefault(place, []).append((r.start, r.start + r.seconds, number))
    for path, spans in parts.items():
        end, owner = -math.inf, -1
        for start, stop, number in sorted(spans):
            if number != owner and start < end - _TOUCHING:
                raise UserError(f"{path} is part of both {sources[owner]} and {sources[number]}: name it once.")
            if stop > end:
                end, owner = stop, number


@dataclass(frozen=True)
class _Source:
    """What a source string means; `path` exists."""

    text: str
    path: str
    corpus: str | None = None
    root: str | None = None

    @property
    def word(self) -> str:
        """One word for it, for ids and file names."""
        place = Path(self.path)
        stem = place.name.split(".")[0]
        return (place.parent.name if stem == "manifest" else stem) or "source"


def _parsed(text: str) -> _Source:
    """Read a source string. Raises `UserError` when nothing is there."""
    if not text.strip():
        raise UserError("A source is empty: name a folder, an audio file or a manifest.")
    if "://" in text:
        raise UserError(f"{text} is an address: download it and give the folder.")
    whole = os.path.abspath(os.path.expanduser(text))
    if os.path.exists(whole):
        return _Source(text, whole)
    file, double, root = (os.path.expanduser(part) for part in text.partition("::"))
    if double and os.path.isfile(file):
        return _Source(text, os.path.abspath(file), root=os.path.abspath(root))
    name, colon, folder = (os.path.expanduser(part) for part in text.partition(":"))
    if colon and os.path.isdir(folder):
        if name not in CORPORA:
            raise UserError(f"There is no corpus '{name}'.{closest(name, CORPORA)} Known: {', '.join(CORPORA)}.")
        return _Source(text, os.path.abspath(folder), corpus=name)
    raise UserError(f"The source {text} does not exist: check the path.{neighbour(whole)}")


def _announced(source: _Source, role: Role) -> tuple[list[Recording], list[Skipped]]:
    """The recordings of a source before their content is known (unknown durations are infinite), and unreadable folders."""
    path = source.path
    if os.path.isdir(path):
        if is_sharded(path):
            raise UserError(f"{path} holds shards, which only distill --speech reads: give what they were made from.")
        manifest = os.path.join(path, "manifest.jsonl")
        if source.corpus is None and os.path.isfile(manifest):
            log.info("%s: its manifest.jsonl is followed (folder:%s takes all its files)", path, path)
            return listed(manifest), []
        if any(name.startswith("cuts.") and ".jsonl" in name for name in os.listdir(path)):
            raise UserError(
                f"{path} is a lhotse Shar folder, which cannot be read at random: unpack it with "
                "robustdistiller.audio.lhotse_adapter.shar_to_manifest and give the manifest."
            )
        failed: list[OSError] = []
        rows = scan_corpus(path, role, source.corpus, failed)[1]
        return _rows(rows), [Skipped(str(e.filename), "folder", f"it cannot be read: {e.strerror}") for e in failed]
    if path.endswith((".jsonl", ".jsonl.gz")):
        return listed(path, source.root), []
    if os.path.splitext(path)[1].lower() in SUFFIXES | MEDIA:
        return _rows([{"path": path, "id": Path(path).stem}]), []
    raise UserError(f"{path} is no folder, audio file or .jsonl manifest: give one of these.")


def _rows(rows: Sequence[dict[str, Any]]) -> list[Recording]:
    return [replace(recording_from_row({**row, "duration": 1.0}, row["path"]), seconds=math.inf) for row in rows]


def listed(file: str, root: str | None = None) -> list[Recording]:
    """The recordings of a manifest or of a file of lhotse cuts, all of which exist; `root`: where relative paths start."""
    if os.path.isfile(file) and is_cuts(file):
        recordings = read_cuts(file)
    else:
        recordings = read_manifest(file, root)
    check_exist(recordings, file)
    return recordings


def _cached(
    source: _Source, role: Role, cache: StrPath | None, workers: int | None, progress: Progress | None
) -> Prepared:
    if cache is None:
        return prepare(source.text, role, workers, progress)
    key = digest([_FORMAT, source.path, source.corpus, source.root])
    stem = Path(cache) / f"{source.word}-{role}-{key}"
    manifest, sidecar = stem.with_name(stem.name + ".jsonl"), stem.with_name(stem.name + ".json")
    state = _state(source)
    if sidecar.is_file() and manifest.is_file():
        try:
            kept = read_json(sidecar, "cached scan")
            if kept["state"] == state:
                log.info("%s: scanned before, read from %s", source.text, manifest)
                recordings = read_manifest(manifest, check_files=True)
                return Prepared(recordings, [Skipped(**row) for row in kept["skipped"]])
        except (UserError, KeyError, TypeError):
            log.warning("%s: the cached scan %s is not usable and made again", source.text, manifest)
    sidecar.unlink(missing_ok=True)  # so that it never vouches for another manifest than its own
    prepared = prepare(source.text, role, workers, progress)
    write_manifest(manifest, prepared.recordings)
    write_json(sidecar, {"source": source.text, "state": state, "skipped": [vars(row) for row in prepared.skipped]})
    return prepared


def _state(source: _Source) -> list[float]:
    """What changes when the files of a source do: how many there are, their bytes, and the newest time of change."""
    one = os.path.isfile(source.path)
    files = [source.path] if one else find_files(source.path, readable() | {".txt", ".csv", ".tsv", ".jsonl"})
    count, size, newest = 0, 0, 0.0
    for file in files:
        try:
            stat = os.stat(file)
        except OSError:
            continue
        count, size, newest = count + 1, size + stat.st_size, max(newest, stat.st_mtime, stat.st_ctime)
    return [count, size, newest]


def _summary(skipped: Sequence[Skipped]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in Counter(row.reason for row in skipped).most_common())
