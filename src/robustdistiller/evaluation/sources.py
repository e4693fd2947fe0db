"""From what a task or conditions file points at to recordings, and the questions that both ask of them."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..audio.corpora import Role
from ..audio.manifest import SPLIT_NAMES, Recording, read_manifest
from ..errors import UserError, closest
from .scenes import Montage

logger = logging.getLogger(__name__)


def read_source(
    source: str, role: Role, folder: Path = Path(), root: str | None = None, cache: Path | None = None
) -> list[Recording]:
    """Recordings of a manifest, a folder, ``corpus:folder``, or ``synthetic:task`` of the built-in corpus, which is made here.

    Relative paths start at `folder` or the working folder.

    role: speech, noise or rooms; cache: a folder that keeps the scans of corpora, and synthetic speech. Raises `UserError` when
    there is nothing at that place, or a file that a manifest names is missing.
    """
    corpus, colon, rest = source.partition(":")
    if corpus == "synthetic" and colon:
        return _synthetic(rest, cache)
    named = bool(colon) and re.fullmatch(r"[a-z0-9_]+", corpus) is not None and not rest.startswith(":")
    place = rest if named else source
    place, _, inline_root = place.partition("::")
    path = next((p for p in (folder / place, Path(place)) if os.path.exists(p)), None)
    if path is None:
        raise UserError(f"There is no {role} at {place}: correct the source in the task or conditions file.")
    root = root or inline_root or None
    base = next((p for p in (folder / root, Path(root)) if os.path.isdir(p)), None) if root else None
    if root and base is None:
        raise UserError(f"There is no folder {root}, named as root of {place}: correct it.")
    from ..audio.prepare import listed, prepare_all

    if path.name.endswith((".jsonl", ".jsonl.gz")) and not named:
        return listed(str(path), None if base is None else str(base))
    return prepare_all([f"{corpus}:{path}" if named else str(path)], role, cache).recordings


def _synthetic(task: str, cache: Path | None) -> list[Recording]:
    """A task of the built-in spoken corpus, made once into `cache`; it is the same everywhere."""
    from ..synthetic.spoken import TASKS, build_corpus

    if task not in TASKS:
        raise UserError(f"There is no synthetic task '{task}': choose {', '.join(TASKS)}.{closest(task, TASKS)}")
    if cache is None:
        raise UserError(f"synthetic:{task} needs a folder to be made in: run it with `evaluate`, which has one.")
    logger.info("synthetic:%s is spoken into %s, which takes minutes once", task, cache)
    return read_manifest(build_corpus(cache, size="tasks", parts=[task]).tasks[task])


def value_of(recording: Recording, name: str) -> Any:
    """The field `name` of a recording: one of its own, or an extra one, with dots for nesting; None when absent."""
    head, *rest = name.split(".")
    value: Any = recording.extra.get(head)
    if value is None:
        value = getattr(recording, head, None)
    for part in rest:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def matches(recording: Recording, where: dict[str, Any]) -> bool:
    """Whether every field of `where` has the value, or one of the values, that is asked."""
    for name, wanted in where.items():
        values = [str(value) for value in (wanted if isinstance(wanted, list) else [wanted])]
        if name == "split":  # manifests are read under one name each for training, validation and test
            values = [SPLIT_NAMES.get(value.lower(), value) for value in values]
        if str(value_of(recording, name)) not in values:
            return False
    return True


def fingerprint(recordings: Iterable[Recording]) -> list[Any]:
    """What identifies audio on disk, wherever the folder lies: segments, contents, and who speaks, which babble avoids.

    A file of more than a megabyte goes by its size and time of change, because noise and rooms may be many gigabytes.
    """
    rows = []
    for recording in recordings:
        if isinstance(recording, Montage):
            what = [recording.id, recording.seconds, recording.offset]
            rows.append([*what, *fingerprint(recording.parts)])
            continue
        try:
            path = Path(recording.path)
            status = path.stat()
            content = str(status.st_mtime_ns)
            if status.st_size <= 1 << 20:
                content = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
        except OSError as error:
            raise UserError(f"The recording {recording.path} is missing: restore it or mend its manifest.") from error
        place = [recording.id, recording.start, recording.seconds, recording.speaker]
        rows.append([*place, status.st_size, content])
    return rows
