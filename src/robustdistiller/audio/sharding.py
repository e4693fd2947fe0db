"""Writing shards: any source of speech as tar files of equal form, several at a time, each whole or absent.

Recordings of one speaker (else of one group, else of one folder) stay together, in as few shards as possible; speakers come in
the order of a hash of their names, so that a shard holds a mixture of whatever the sources are. Splits that manifests name are
kept apart. What is longer than a minute is cut into equal pieces, so that nobody who reads needs more than that in memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile

from ..errors import AudioError, UserError
from ..files import StrPath, digest, exclusive, read_json, replacing, write_json
from ..process import usable_cores
from ..progress import PartProgress
from ..randomness import fraction
from .checking import Skipped, worker_pool, write_skipped
from .io import SAMPLE_RATE
from .manifest import Recording
from .prepare import prepare_all
from .shards import DAMAGE, FORMAT, INDEX, entry, histogram, is_sharded

log = logging.getLogger(__name__)

Format = Literal["flac", "wav"]
BYTES_PER_SECOND = {"flac": 20_000, "wav": 32_000}  # by which shards are planned: speech in FLAC takes 12 to 20 kB
PIECE = 60.0  # seconds: longer recordings are cut
_INDEXED = ("name", "bytes", "digest", "recordings", "seconds", "lengths", "split", "speakers", "histogram")
_ROW = (*_INDEXED, "source", "skipped", "samples")
_FORMATS = {"flac": "FLAC", "wav": "WAV"}


@dataclass(frozen=True)
class Sharded:
    """What was written: the index as JSON values, how many shards were there already, and what was left out."""

    folder: Path
    index: dict[str, Any]
    kept: int
    skipped: list[Skipped] = field(default_factory=list)

    def total(self, name: str) -> float:
        """The sum of ``bytes``, ``seconds`` or ``recordings`` over the shards."""
        return math.fsum(row[name] for row in self.index["shards"])


def write_shards(
    sources: Sequence[str],
    out: StrPath,
    shard_mb: float = 512.0,
    audio: Format = "flac",
    workers: int | None = None,
    progress: PartProgress | None = None,
) -> Sharded:
    """Write the speech of `sources` to `out` in shards of about `shard_mb` megabytes, at 16 kHz, mono, 16 bits.

    A call that was killed goes on where it was; one that had ended writes what is missing since. Each of `workers` processes
    holds a minute of speech. Raises `UserError` when `out` holds shards of something else.
    """
    if audio not in _FORMATS or not shard_mb > 0:
        raise UserError("Shards are flac or wav, and of more than 0 MB: correct --format or --shard-mb.")
    out = Path(out)
    if any(is_sharded(source) for source in sources):
        raise UserError("A source is a folder of shards already: give what it was made from.")
    with exclusive(out):
        return _write_all(sources, out, shard_mb, audio, workers, progress)


def _write_all(
    sources: Sequence[str],
    out: Path,
    shard_mb: float,
    audio: Format,
    workers: int | None,
    progress: PartProgress | None,
) -> Sharded:
    for leftover in out.glob(".shard-*.tar"):  # of a call that was killed
        leftover.unlink(missing_ok=True)
    report = None if progress is None else partial(progress, "scanning speech")
    prepared = prepare_all(sources, "speech", out / "scan", workers, report)
    plan = _planned(prepared.recordings, shard_mb * 1e6 / BYTES_PER_SECOND[audio])
    identity = digest([_identity(part, audio) for part in plan])
    known = read_json(out / INDEX, "index of shards") if (out / INDEX).is_file() else {"plan": identity}
    if not isinstance(known, dict) or known.get("plan") != identity:
        raise UserError(f"{out} holds shards of other sources, sizes or formats: choose another --out.")
    rows: list[dict[str, Any]] = [{} for _ in plan]
    todo = []
    for number, part in enumerate(plan):
        rows[number] = _finished(out, number, _identity(part, audio)) or {}
        todo += [] if rows[number] else [number]
    done = kept = len(plan) - len(todo)
    for number, row in _written(out, plan, todo, audio, min(workers or usable_cores(), 32)):
        rows[number] = row
        done += 1
        if progress:
            progress("writing shards", done, len(plan))
    skipped = [*prepared.skipped, *(Skipped(**lost) for row in rows for lost in row.get("skipped", ()))]
    index = {
        "format": FORMAT,
        "sampling_rate": SAMPLE_RATE,
        "audio": audio,
        "plan": identity,
        "shards": [{name: row[name] for name in _INDEXED} for row in rows if row["recordings"]],
    }  # fmt: skip
    if not index["shards"]:
        raise UserError("None of the recordings can be read any more: check the sources.")
    if skipped:
        write_skipped(out / "skipped.jsonl", skipped)
        log.warning("%d recordings are left out; they are listed in %s", len(skipped), out / "skipped.jsonl")
    write_json(out / INDEX, index)
    return Sharded(out, index, kept, skipped)


def _planned(recordings: Sequence[Recording], limit: float) -> list[list[Recording]]:
    """The pieces of every shard, none above `limit` seconds (but for a single piece)."""
    units: dict[tuple[str, float, str], list[Recording]] = {}
    for recording in recordings:
        unit = recording.speaker or recording.group or os.path.dirname(recording.path)
        units.setdefault((recording.split or "", fraction("shard", unit), unit), []).append(recording)
    plan: list[list[Recording]] = []
    filled, split = math.inf, ""
    for key in sorted(units):
        pieces = [piece for recording in units[key] for piece in _pieces(recording)]
        whole = math.fsum(piece.seconds for piece in pieces)
        if (filled + whole > limit and (whole <= limit or filled > limit / 2)) or key[0] != split:
            filled, split = math.inf, key[0]  # the speaker begins a new shard
        for piece in pieces:
            if filled + piece.seconds > limit:
                plan.append([])
                filled = 0.0
            plan[-1].append(piece)
            filled += piece.seconds
    return plan


def _pieces(recording: Recording) -> Iterator[Recording]:
    count = math.ceil(recording.seconds / PIECE)
    if count <= 1:
        yield recording
        return
    edges = [round(k * recording.seconds / count * SAMPLE_RATE) / SAMPLE_RATE for k in range(count + 1)]
    for k, (start, end) in enumerate(pairwise(edges)):
        yield replace(recording, id=f"{recording.id}@{k}", start=recording.start + start, seconds=end - start)


def _identity(part: Sequence[Recording], audio: str) -> str:
    return digest([audio, [[r.id, r.path, r.start, r.seconds, r.speaker, r.split] for r in part]])


def _finished(out: Path, number: int, identity: str) -> dict[str, Any] | None:
    """The row of a shard that is there already, for exactly these recordings."""
    sidecar = _sidecar(out, number)
    tar = sidecar.with_suffix(".tar")
    try:
        row = read_json(sidecar)
        if row["source"] != identity or (row["recordings"] and tar.stat().st_size != entry(out, row).bytes):
            return None
        [Skipped(**lost) for lost in row["skipped"]]
        return {name: row[name] for name in _ROW}
    except (UserError, OSError, *DAMAGE):
        return None


def _sidecar(out: Path, number: int) -> Path:
    return out / f"shard-{number:06d}.json"


def _written(
    out: Path, plan: Sequence[Sequence[Recording]], todo: Sequence[int], audio: Format, workers: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Write the shards `todo`, in order, and yield their rows."""
    jobs = [(out, number, plan[number], audio) for number in todo]
    if workers == 1 or len(jobs) <= 1:
        yield from zip(todo, map(_write, jobs), strict=True)
        return
    with worker_pool(workers) as pool:
        try:
            yield from zip(todo, pool.map(_write, jobs), strict=True)
        except BrokenProcessPool as error:
            raise UserError(
                "A process that wrote shards died: look at the free memory, and run the same command again; the shards that "
                "are finished stay."
            ) from error


def _write(job: tuple[Path, int, Sequence[Recording], Format]) -> dict[str, Any]:
    """Write one shard and then what the index says of it."""
    out, number, part, audio = job
    sidecar = _sidecar(out, number)
    name = sidecar.with_suffix(".tar").name
    written: list[tuple[Recording, int]] = []
    skipped: list[Skipped] = []
    sidecar.unlink(missing_ok=True)
    with replacing(out / name) as temporary, temporary.open("wb") as stream:
        counted = _Counted(stream)
        with tarfile.open(fileobj=counted, mode="w|", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
            for recording in part:
                try:
                    wave = recording.load()
                except AudioError as error:
                    skipped.append(Skipped(recording.path, error.reason, str(error)))
                    continue
                key = f"{len(written):06d}"
                _add(tar, f"{key}.{audio}", _encoded(wave, audio))
                _add(tar, f"{key}.json", _about(recording, len(wave)))
                written.append((recording, len(wave)))
    row = {
        "name": name, "bytes": counted.size, "digest": counted.total.hexdigest(), "recordings": len(written),
        "seconds": round(sum(samples for _, samples in written) / SAMPLE_RATE, 3),
        "lengths": digest([samples for _, samples in written]), "split": part[0].split,
        "speakers": sorted({recording.speaker for recording, _ in written if recording.speaker}),
        "histogram": histogram([samples / SAMPLE_RATE for _, samples in written]), "source": _identity(part, audio),
        "skipped": [vars(lost) for lost in skipped], "samples": [samples for _, samples in written],
    }  # fmt: skip
    write_json(sidecar, row)
    return row


class _Counted:
    """A stream that is measured while it is written."""

    def __init__(self, stream: Any):
        self.stream, self.size, self.total = stream, 0, hashlib.blake2b(digest_size=16)

    def write(self, block: bytes) -> int:
        self.size += len(block)
        self.total.update(block)
        return self.stream.write(block)  # type: ignore[no-any-return]


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # no time and no owner: the same recordings give the same bytes
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _encoded(wave: np.ndarray, audio: Format) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, wave.clip(-1, 1), SAMPLE_RATE, "PCM_16", format=_FORMATS[audio])
    return stream.getvalue()


def _about(recording: Recording, samples: int) -> bytes:
    row = {name: value for name, value in recording.to_row().items() if name not in ("path", "start", "use_channel")}
    row |= {"samples": samples, "duration": samples / SAMPLE_RATE, "source": os.path.basename(recording.path)}
    return json.dumps(row, ensure_ascii=False).encode()
