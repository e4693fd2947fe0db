"""Targets on disk: what the teacher makes of a clean crop is computed once, for all epochs and every student.

An entry is found by the teacher's input (a digest of the samples themselves, so a file that was changed, moved or cut
elsewhere is never mistaken) in a folder named after the teacher (weights, configuration, layers, normalisation, precision,
and the format of what is computed). Targets are kept in half precision, and used in half precision also when they have just
been computed, so that a run on a warm cache is the run that filled it.

Every process appends to a segment of its own: a file of targets, and an index whose rows are written after what they point
to. So writers never wait for each other, and of a killed one nothing but its last microbatch is lost.
Shapes: B utterances, L layers, F frames, D hidden.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..files import digest, disk_error, read_json, write_json
from ..models.frames import GRID
from ..models.precision import pick_precision
from ..models.teacher import Teacher, TeacherOutput

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of what a teacher makes of a wave: raised by hand when our code computes other targets, which a test then notices."""

_ROW = struct.Struct("<16sQII")  # key, offset of the targets in the segment, their bytes, and the CRC-32 of those
_PREFIX, _IDENTITY = "targets-", "identity.json"


def audio_key(wave: np.ndarray) -> bytes:
    """The key of a clean crop (T,) float32: a digest of its samples."""
    return hashlib.blake2b(np.ascontiguousarray(wave, np.float32).data, digest_size=16).digest()


class TargetCache:
    """A `teacher` with a memory in `folder`: called like it, with the audio's keys; raises `UserError` for a bad folder.

    gigabytes: of disk at most, over all that caches in `folder` hold; when it is full, the rest is computed every time
    """

    def __init__(self, folder: str | os.PathLike[str], gigabytes: float, teacher: Teacher, device: torch.device):
        self.teacher, self.device = teacher, device
        self.root, self.limit = Path(folder), int(gigabytes * 1e9)
        self.shape = (len(teacher.layers), teacher.hidden_size)
        identity = teacher_identity(teacher, device)
        self.folder = self.root / f"{_PREFIX}{digest(identity)}"
        self._prepare(identity)
        # segment, offset, bytes, CRC until checked
        self._index: dict[bytes, tuple[_Segment, int, int, int | None]] = {}
        self._segments: dict[str, _Segment] = {}
        self._own: _Segment | None = None
        self._closed = ""  # why nothing is stored any more
        self.read = self.computed = self.damaged = 0  # microbatch rows
        self.seconds = {"read": 0.0, "computed": 0.0}
        self.audio = {"read": 0.0, "computed": 0.0}  # seconds of speech
        self._used = 0
        self._refresh()

    def __call__(self, wave: Tensor, lengths: Tensor, keys: Sequence[bytes]) -> TeacherOutput:
        """Targets of clean waves (B, T) with `lengths` (B,) samples, whose `audio_key`s are known."""
        begin = time.monotonic()
        counts = GRID.count(lengths).tolist()
        found = self._find(keys, counts)
        hidden = torch.zeros(len(keys), self.shape[0], max(counts), self.shape[1], dtype=torch.float16)
        for row, values in found.items():
            hidden[row, :, : counts[row]].numpy()[:] = values
        missing = [row for row in range(len(keys)) if row not in found]
        middle = time.monotonic()
        samples = lengths.tolist()
        self._count("read", found, samples, middle - begin)
        if not missing:
            return TeacherOutput(hidden.to(self.device, non_blocking=True).float(), GRID.count(lengths))
        whole = len(missing) == len(keys)
        longest = max(samples[row] for row in missing)
        audio = wave if whole else wave[missing, :longest]
        fresh = self.teacher(audio, lengths if whole else lengths[missing]).hidden  # (B', L, F', D)
        halves = fresh.half().cpu()
        for place, row in enumerate(missing):
            hidden[row, :, : counts[row]] = halves[place, :, : counts[row]]
        self._store([(keys[row], hidden[row, :, : counts[row]].numpy()) for row in missing])
        out = hidden.to(self.device).float()
        if not bool(torch.isfinite(halves).all()):  # too large for half precision, or the teacher's own fault: as it is
            for place, row in enumerate(missing):
                out[row, :, : counts[row]] = fresh[place, :, : counts[row]]
        self._count("computed", missing, samples, time.monotonic() - middle)
        return TeacherOutput(out, GRID.count(lengths))

    def report(self) -> dict[str, Any]:
        """What the cache did in this process and what it holds: counts, seconds, bytes."""
        rates = {name: self.seconds[name] / self.audio[name] for name in self.seconds if self.audio[name]}
        held = sum(entry[2] for entry in self._index.values())
        hourly = self.shape[0] * self.shape[1] * 2 * 50 * 3600
        return {
            "folder": str(self.folder),
            "read": self.read,
            "computed": self.computed,
            "damaged": self.damaged,
            "hours_held": held / hourly,
            "bytes_held": held,
            "bytes_on_disk": self._used,  # with those of other teachers
            "bytes_per_hour": hourly,
            "seconds_per_audio_second": rates,
            "seconds_saved": (rates["computed"] - rates["read"]) * self.audio["read"] if len(rates) == 2 else None,
        }

    def close(self) -> None:
        """Close every file."""
        for segment in self._segments.values():
            segment.close()

    def _prepare(self, identity: dict[str, Any]) -> None:
        try:
            known = self.folder.is_dir()
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"The target cache {self.root} cannot be used ({error.strerror or error}): name a folder that can be written "
                "as teacher.cache."
            ) from error
        record = self.folder / _IDENTITY
        if record.is_file():
            if read_json(record, "target cache") != identity:
                raise UserError(f"{self.folder} is not the target cache that its name says: delete that folder.")
        else:
            write_json(record, identity)
        others = [path.name for path in self.root.glob(f"{_PREFIX}*") if path != self.folder]
        if others and not known:
            logger.warning(
                "%s holds targets of another teacher, layers, precision or version (%s); those of this run are kept beside "
                "them in %s", self.root, ", ".join(sorted(others)[:3]), self.folder.name,
            )  # fmt: skip

    def _find(self, keys: Sequence[bytes], counts: Sequence[int]) -> dict[int, np.ndarray]:
        if any(key not in self._index for key in keys):
            self._refresh()
        found = {}
        for row, (key, count) in enumerate(zip(keys, counts, strict=True)):
            values = self._read(key, count)
            if values is not None:
                found[row] = values
        return found

    def _read(self, key: bytes, count: int) -> np.ndarray | None:
        """An entry (L, F, D) float16; None when there is none that is whole."""
        if key not in self._index:
            return None
        segment, offset, size, check = self._index[key]
        data = segment.read(offset, size) if size == 2 * self.shape[0] * count * self.shape[1] else b""
        if len(data) != size or (check is not None and zlib.crc32(data) != check):
            del self._index[key]
            if not self.damaged:
                logger.warning("the target cache %s has damaged entries: they are computed again", segment.path)
            self.damaged += 1
            return None
        self._index[key] = (segment, offset, size, None)
        return np.frombuffer(data, np.float16).reshape(self.shape[0], count, self.shape[1])

    def _store(self, entries: Sequence[tuple[bytes, np.ndarray]]) -> None:
        """Keep entries (L, F, D) float16; all of them appear at once."""
        fresh = {key: values for key, values in entries if np.isfinite(values).all()}
        blobs = {key: np.ascontiguousarray(values).tobytes() for key, values in fresh.items() if key not in self._index}
        size = sum(map(len, blobs.values()))
        if self._closed or not size:
            return
        if self._used + size > self.limit:
            self._close_for_writing(
                f"is full (teacher.cache_gb={self.limit / 1e9:g}): the teacher goes on computing what is not in it; raise "
                "teacher.cache_gb or delete folders of other teachers in it"
            )
            return
        try:
            if self._own is None:
                self._own = _Segment(self.folder / f"{time.time_ns():016x}-{os.getpid()}.bin", own=True)
                self._segments[self._own.path.name] = self._own
            places = self._own.append(blobs)
        except OSError as error:
            self._close_for_writing(f"takes no more ({disk_error(self.folder, error)})")
            return
        for key, (offset, check) in places.items():
            self._index[key] = (self._own, offset, len(blobs[key]), check)
        self._used += size

    def _close_for_writing(self, why: str) -> None:
        self._closed = why
        logger.warning("the target cache %s %s", self.root, why)

    def _refresh(self) -> None:
        """Learn what other processes have stored since."""
        try:
            names = sorted(name[:-4] for name in os.listdir(self.folder) if name.endswith(".idx"))
            self._used = sum(file.stat().st_size for file in self.root.glob(f"{_PREFIX}*/*.bin"))
        except OSError:
            return  # what cannot be seen is computed
        for name in names:
            segment = self._segments.setdefault(f"{name}.bin", _Segment(self.folder / f"{name}.bin"))
            if segment is not self._own:
                for key, offset, size, check in segment.news():
                    self._index[key] = (segment, offset, size, check)

    def _count(self, how: str, rows: Any, samples: Sequence[int], seconds: float) -> None:
        setattr(self, how, getattr(self, how) + len(rows))
        self.seconds[how] += seconds
        self.audio[how] += sum(samples[row] for row in rows) / 16_000


class _Segment:
    """A file of targets and its index, written by one process and read by any."""

    def __init__(self, path: Path, own: bool = False):
        self.path, self.index = path, path.with_suffix(".idx")
        self._known = 0  # bytes of the index that were read
        self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666) if own else None
        self._rows: int | None = os.open(self.index, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666) if own else None
        self._end = 0

    def append(self, blobs: dict[bytes, bytes]) -> dict[bytes, tuple[int, int]]:
        """Write entries; their offsets and checks."""
        assert self._file is not None and self._rows is not None
        places, offset = {}, self._end
        rows = []
        for key, blob in blobs.items():
            _write(self._file, blob, offset)
            places[key] = (offset, zlib.crc32(blob))
            rows.append((key, offset, len(blob), places[key][1]))
            offset += len(blob)
        _write(self._rows, b"".join(_ROW.pack(*row) for row in rows), self._known)
        self._known += _ROW.size * len(rows)
        self._end = offset
        return places

    def news(self) -> Iterator[tuple[bytes, int, int, int]]:
        """Rows (key, offset, bytes, check) that were added since the last call; half a row is none."""
        try:
            if self.index.stat().st_size < self._known + _ROW.size:
                return
            with self.index.open("rb") as stream:
                stream.seek(self._known)
                data = stream.read()
        except OSError:
            return
        data = data[: len(data) // _ROW.size * _ROW.size]
        self._known += len(data)
        yield from _ROW.iter_unpack(data)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the segment, fewer or none where it is cut short or gone."""
        try:
            if self._file is None:
                self._file = os.open(self.path, os.O_RDONLY)
            return os.pread(self._file, size, offset)
        except OSError:
            return b""

    def close(self) -> None:
        for handle in (self._file, self._rows):
            if handle is not None:
                os.close(handle)
        self._file = self._rows = None


def _write(handle: int, data: bytes, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(handle, memoryview(data)[done:], offset + done)


def teacher_identity(model: Teacher, device: torch.device) -> dict[str, Any]:
    """Everything that targets depend on besides the audio, as plain JSON values."""
    import transformers

    weights = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted([*model.encoder.named_parameters(), *model.encoder.named_buffers()]):
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        weights.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    config = {k: v for k, v in model.encoder.model.config.to_dict().items() if k != "_name_or_path"}
    return {
        "teacher": weights.hexdigest(), "config": digest(json.loads(json.dumps(config, default=str))),
        "normalize": model.normalize, "layers": list(model.layers),
        "target_norm": model.target_norm, "precision": pick_precision(model.precision, device, model.encoder),
        "device": device.type, "versions": {"format": FORMAT, "transformers": transformers.__version__},
    }  # fmt: skip
