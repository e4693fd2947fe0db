"""Whether a recording is sound: decoded to its end in blocks, many files in parallel."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ..errors import AudioError, UserError
from ..files import write_jsonl
from .corpora import Role
from .io import UNKNOWN, mono_blocks, opened
from .manifest import Recording

MIN_SECONDS: dict[Role, float] = {"speech": 0.1, "noise": 0.1, "rooms": 0.01}

_SILENCE = 2.0**-16  # half a step of 16 bits, between the lowest and the highest sample
_FULL_SCALE, _FLAT, _CLIPPED = 0.99, 1e-4, 0.005  # clipping: flat samples at full scale, and how many are too many
_TOLERANCE = 0.1  # seconds by which a file may be shorter than announced
_IN_PROCESS = 64  # so few files are scanned without a pool


@dataclass(frozen=True)
class Skipped:
    """A recording that is left out; reason: missing, corrupt, empty, too-short, nan, silent or name."""

    path: str
    reason: str
    detail: str


def check_all(
    recordings: Sequence[Recording], role: Role, min_seconds: float | None = None, workers: int | None = None
) -> Iterator[Recording | Skipped]:
    """Decode every recording in `workers` processes (by default, one per core) and say, in order, what it is.

    A sound one comes back with its true duration, which may be infinite before; a heavily clipped one with the share of
    clipped samples as extra["clipped"].
    """
    check = partial(_check, role=role, min_seconds=MIN_SECONDS[role] if min_seconds is None else min_seconds)
    workers = min(workers or cores(), 32)
    if workers == 1 or len(recordings) <= _IN_PROCESS:
        yield from map(check, recordings)
        return
    # Forked where possible: the workers only decode, and a script that calls us needs no __main__ guard.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with ProcessPoolExecutor(workers, multiprocessing.get_context(method)) as pool:
        done = 0
        try:
            for result in pool.map(check, recordings, chunksize=min(64, 1 + len(recordings) // (4 * workers))):
                if isinstance(result, Recording):  # what came from the worker repeats every name: not to be kept
                    told = recordings[done]
                    extra = told.extra if result.extra == told.extra else result.extra
                    result = replace(told, seconds=result.seconds, extra=extra)
                done += 1
                yield result
        except BrokenProcessPool as error:
            raise UserError(
                f"A process that checked the audio died (all is well up to number {done}, next comes "
                f"{recordings[done].path}): look at the free memory, and run again with one worker to see which file it is."
            ) from error


def write_skipped(path: str | os.PathLike[str], skipped: Sequence[Skipped]) -> None:
    """List what was left out as JSON lines {"path", "reason", "detail"}, atomically."""
    write_jsonl(path, (vars(row) for row in skipped))


def _check(recording: Recording, role: Role, min_seconds: float) -> Recording | Skipped:
    """Decode a recording to its end and say what it is."""
    try:
        recording.path.encode()
        return _decoded(recording, role, min_seconds)
    except UnicodeEncodeError:
        detail = "its name is not UTF-8 text: rename it"
        return Skipped(recording.path.encode(errors="backslashreplace").decode(), "name", detail)
    except AudioError as error:
        return Skipped(recording.path, error.reason, str(error))


def _decoded(recording: Recording, role: Role, min_seconds: float) -> Recording:
    path, extra = recording.path, dict(recording.extra)
    with opened(path) as file:
        rate = file.samplerate
        if file.frames <= 0:
            raise AudioError(f"{path} holds no samples.", "empty")
        if role == "rooms" and file.channels > 1:
            extra.setdefault("use_channel", 0)  # the mean of several microphones is the response of no room
        start = round(recording.start * rate)
        told = file.frames - start if file.frames != UNKNOWN else 0  # by the header
        wanted = told if math.isinf(recording.seconds) else round(recording.seconds * rate)
        if start >= file.frames:
            raise AudioError(f"{path} ends before {recording.start:g} s.", "too-short")
        frames = clipped = 0
        low, high = math.inf, -math.inf
        for block in mono_blocks(file, path, start, wanted or None, extra.get("use_channel")):
            if not np.isfinite(block).all():
                raise AudioError(f"{path} holds samples that are not numbers.", "nan")
            frames += len(block)
            low, high = min(low, float(block.min())), max(high, float(block.max()))
            if max(-low, high) >= _FULL_SCALE:
                flat = np.abs(np.diff(block)) < _FLAT
                clipped += int(np.count_nonzero(flat & (np.abs(block[1:]) >= _FULL_SCALE)))
    if not frames:
        raise AudioError(f"{path} holds no samples.", "empty")
    if frames < wanted - _TOLERANCE * rate:
        who, reason = ("its header", "corrupt") if math.isinf(recording.seconds) else ("its entry", "too-short")
        raise AudioError(f"{path} ends after {frames / rate:.2f} s; {who} says {wanted / rate:.2f} s.", reason)
    if frames < min_seconds * rate:
        raise AudioError(f"{path} lasts {frames} samples at {rate} Hz, less than {min_seconds:g} s.", "too-short")
    if high - low < _SILENCE:
        raise AudioError(f"{path} is silent.", "silent")
    if clipped > _CLIPPED * frames:
        extra["clipped"] = round(clipped / frames, 4)
    return replace(recording, seconds=frames / rate, extra=extra)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
