"""Shards: a corpus as a few large tar files, each read once from its beginning to its end, as object storage likes it.

    folder/
      shards.json        the index: of every shard its bytes, digest, seconds, speakers and a histogram of durations
      shard-000000.tar   WebDataset layout: 000000.flac, 000000.json, 000001.flac, …
      shard-000000.json  the exact lengths of its recordings, by which batches are planned; written when the tar is whole

The index is all that is ever in memory of the corpus as a whole: a few kilobytes for half a gigabyte of speech.
`sharding.py` writes shards, `streams.py` plans batches from them.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from ..errors import AudioError, UserError
from ..files import StrPath, digest, parse_json, read_json
from .io import SAMPLE_RATE, read_audio
from .manifest import Recording, recording_from_row

INDEX, FORMAT = "shards.json", 1
# Seconds: the lower bounds of the bins of a histogram. Round ones where `data.min_seconds` may lie.
EDGES = [*(k / 10 for k in range(40)), *(4 * 1.1**k for k in range(36))]
_BLOCK = 4 << 20  # bytes read at a time
_MOST = 1 << 53  # recordings, bytes, seconds: beyond, numbers are not exact
_DESCRIPTION = 1 << 20  # bytes of JSON about one recording
DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
"""What reading values of a stranger's making may raise."""


Digest = Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")]
Number = Annotated[int, Field(gt=0, lt=_MOST)]
Seconds = Annotated[float, Field(ge=0, lt=_MOST)]
Bins = dict[Annotated[int, Field(ge=0, lt=len(EDGES))], tuple[Number, Seconds]]


@dataclass(frozen=True)
class Shard:
    """What the index says of one shard. histogram: bin of `EDGES` → recordings and seconds in it."""

    path: str
    bytes: Number
    digest: Digest
    recordings: Number
    seconds: Annotated[Seconds, Field(gt=0)]
    lengths: Digest  # the digest of the recordings' lengths
    split: Literal["train", "valid", "test"] | None
    speakers: tuple[str, ...]
    histogram: Annotated[Bins, Field(min_length=1)]

    def usable_seconds(self, crop_seconds: float, min_seconds: float) -> float:
        """Seconds of one crop of each of its recordings, without those that are too short. Never too many."""
        return sum(
            count * min(seconds / count, crop_seconds)
            for number, (count, seconds) in self.histogram.items()
            if EDGES[number] >= min_seconds or (number + 1 == len(EDGES) and seconds / count >= min_seconds)
        )

    @property
    def longest(self) -> float:
        """A bound on the duration of its recordings, in seconds."""
        last = max(self.histogram)
        return EDGES[last + 1] if last + 1 < len(EDGES) else self.histogram[last][1]

    def samples(self) -> np.ndarray:
        """The lengths of its recordings (N,), in samples. Raises `UserError` when the file beside it is not theirs."""
        file = Path(self.path).with_suffix(".json")
        values = read_json(file, "list of lengths of a shard")
        lengths: Any = values.get("samples") if isinstance(values, dict) else None
        if not (
            isinstance(lengths, list)
            and all(type(length) is int and 0 < length < _MOST for length in lengths)
            and digest(lengths) == self.lengths
        ):
            raise UserError(f"{file} does not belong to the index of its folder: copy the whole folder again.")
        return np.array(lengths, dtype=np.int64)


_SHARD = TypeAdapter(Shard)


@dataclass(frozen=True, slots=True)
class Member(Recording):
    """A recording inside a shard: `size` bytes of audio at `offset` of the file `tar`; `path` names it alone."""

    tar: str = ""
    offset: int = 0
    size: int = 0

    def _read(self, offset: float, seconds: float) -> np.ndarray:
        """One seek in a file that lies on a local disk, and the decoding of the part asked for."""
        try:
            with open(self.tar, "rb", buffering=0) as stream:
                stream.seek(self.offset)
                content = stream.read(self.size)
        except OSError as error:
            raise AudioError(f"{self.tar} cannot be read ({error.strerror or error}).", "missing") from error
        return read_audio(self.path, offset, seconds, content=content)


def histogram(seconds: Sequence[float]) -> dict[str, list[float]]:
    """Recordings and seconds by bin of `EDGES`, as JSON values."""
    bins: dict[str, list[float]] = {}
    for value in seconds:
        row = bins.setdefault(str(bisect_right(EDGES, value) - 1), [0, 0.0])
        row[0] += 1
        row[1] += value
    return {number: [int(count), round(total, 3)] for number, (count, total) in bins.items()}


def is_sharded(source: StrPath) -> bool:
    """Whether `source` is a folder of shards."""
    return os.path.isfile(os.path.join(os.path.expanduser(source), INDEX))


def read_shards(folder: StrPath) -> list[Shard]:
    """The shards of a folder. Raises `UserError` for another version, and for one that is missing or cut short."""
    folder = Path(os.path.abspath(os.path.expanduser(folder)))
    values = read_json(folder / INDEX, "index of shards")
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        told = values.get("format") if isinstance(values, dict) else None
        raise UserError(f"The index {folder / INDEX} has format {told!r:.20}, this version reads {FORMAT}.")
    try:
        shards = [entry(folder, row) for row in values["shards"]]
    except DAMAGE as error:
        raise UserError(
            f"The index {folder / INDEX} is damaged ({type(error).__name__}: {error}): run robustdistiller shard again with "
            "the same sources and --out."
        ) from error
    if not shards:
        raise UserError(f"The index {folder / INDEX} lists no shards: write them again with robustdistiller shard.")
    for shard in shards:
        for path in (Path(shard.path), Path(shard.path).with_suffix(".json")):
            size = path.stat().st_size if path.is_file() else None
            if size is None or (path.suffix == ".tar" and size != shard.bytes):
                what = "is missing" if size is None else f"has {size} bytes where its index says {shard.bytes}"
                raise UserError(f"{path} {what}: copy it again, or run robustdistiller shard again, which mends it.")
    return shards


def entry(folder: Path, row: dict[str, Any]) -> Shard:
    """What an index says of one shard, of which every value is checked. Raises one of `DAMAGE`."""
    name = row["name"]
    if os.path.basename(name) != name or not name.endswith(".tar") or not name.isprintable():
        raise ValueError(f"{name!r:.40} is no name of a shard")
    try:
        return _SHARD.validate_python({**row, "path": str(folder / name)})
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{first['loc'][0]} of {name}: {first['msg']}") from error


def copy_shard(shard: Shard, target: Path) -> None:
    """Read a shard from beginning to end into `target`. Raises `AudioError` (missing, truncated, corrupt)."""
    total, size = hashlib.blake2b(digest_size=16), 0
    temporary = target.with_name(f".{target.name}")
    try:
        with open(shard.path, "rb", buffering=0) as source, open(temporary, "wb") as stream:
            while block := source.read(_BLOCK):
                total.update(block)
                size += len(block)
                _spooled(stream.write, block, target)
    except FileNotFoundError as error:
        raise AudioError(f"The shard {shard.path} is missing: copy it again.", "missing") from error
    except OSError as error:
        reason = error.strerror or error
        raise AudioError(f"The shard {shard.path} cannot be read ({reason}): is it still there?", "missing") from error
    if size != shard.bytes:
        raise AudioError(f"The shard {shard.path} has {size} bytes, by its index {shard.bytes}: copy it.", "truncated")
    if total.hexdigest() != shard.digest:
        raise AudioError(f"The shard {shard.path} is not what was written (another digest): copy it again.", "corrupt")
    os.replace(temporary, target)


def _spooled(write: Callable[[bytes], Any], block: bytes, target: Path) -> None:
    try:
        write(block)
    except OSError as error:
        raise UserError(
            f"The shards cannot be copied to {target.parent} ({error.strerror or error}): name a local disk with room for "
            "two windows as data.spool, or lower data.window_mb, and go on with --resume."
        ) from error


def members(file: Path, shard: Shard) -> list[Member]:
    """The recordings in a copy of `shard`, in order. Raises `AudioError` when it holds something else."""
    rows: list[Member] = []
    try:
        with tarfile.open(file, "r:") as tar, open(file, "rb") as stream:
            audio: tarfile.TarInfo | None = None
            for info in tar:
                if not info.name.endswith(".json"):
                    audio = info
                    continue
                if info.size > _DESCRIPTION or info.sparse is not None:
                    raise ValueError(f"{info.name} is no description of a recording")
                stream.seek(info.offset_data)
                row = parse_json(stream.read(info.size).decode())
                if (
                    audio is None
                    or audio.size > shard.bytes
                    or audio.name.partition(".")[0] != info.name.partition(".")[0]
                ):
                    raise ValueError(f"{info.name} has no audio beside it")
                name = f"{shard.path}::{audio.name}"
                told = recording_from_row({**row, "path": name, "duration": row["samples"] / SAMPLE_RATE}, name)
                rows.append(
                    Member(
                        told.id, name, told.seconds, speaker=told.speaker, split=told.split, group=told.group,
                        tar=str(file), offset=audio.offset_data, size=audio.size,
                    )
                )  # fmt: skip
    except (OSError, tarfile.TarError, EOFError, MemoryError, RecursionError, *DAMAGE) as error:
        raise AudioError(f"The shard {shard.path} cannot be read ({error}): write it again.", "corrupt") from error
    if not rows:
        raise AudioError(f"The shard {shard.path} holds no recordings: write it again.", "empty")
    return rows
