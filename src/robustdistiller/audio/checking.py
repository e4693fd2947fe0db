"""Whether a recording is sound: decoded to its end in blocks, many files in parallel."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ..channels import Downmix
from ..errors import AudioError, UserError
from ..files import StrPath, write_jsonl
from ..process import usable_cores
from .corpora import Role
from .io import SAMPLE_RATE, mono_blocks, opened
from .manifest import Recording
from .media import UNKNOWN
from .rir import READ, prepare_rir

MIN_SECONDS: dict[Role, float] = {"speech": 0.1, "noise": 0.1, "rooms": 0.01}

_SILENCE = 2.0**-16  # half a step of 16 bits, between the lowest and the highest sample
_FULL_SCALE, _FLAT, _CLIPPED = 0.99, 1e-4, 0.005  # clipping: flat samples at full scale, and how many are too many
_LOWEST_HZ = 20.0  # below is infrasound
_TOLERANCE = 0.1  # seconds by which a file may be shorter than announced
_IN_PROCESS = 64  # so few files are scanned without a pool


@dataclass(frozen=True)
class Skipped:
    """A recording that is left out; reason: missing, corrupt, empty, too-short, nan, silent or name."""

    path: str
    reason: str
    detail: str


def check_all(recordings: Sequence[Recording], role: Role, workers: int | None = None) -> Iterator[Recording | Skipped]:
    """Decode every recording in `workers` processes (by default, one per core) and say, in order, what it is.

    A sound one comes back with its true duration, which may be infinite before; a heavily clipped one with the share of
    clipped samples as extra["clipped"].
    """
    check = partial(_check, role=role)
    workers = min(workers or usable_cores(), 32)
    if workers == 1 or len(recordings) <= _IN_PROCESS:
        yield from map(check, recordings)
        return
    with worker_pool(workers) as pool:
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


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with their parent, however it ends, and leave Ctrl-C to it."""
    # Forked where possible: the workers only decode, and a script that calls us needs no __main__ guard.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(workers, multiprocessing.get_context(method), _work_for, (os.getpid(),)) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()
            raise


def _work_for(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=watch, daemon=True).start()


def write_skipped(path: StrPath, skipped: Sequence[Skipped]) -> None:
    """List what was left out as JSON lines {"path", "reason", "detail"}, atomically."""
    write_jsonl(path, (vars(row) for row in skipped))


def _check(recording: Recording, role: Role) -> Recording | Skipped:
    """Decode a recording to its end and say what it is."""
    try:
        recording.path.encode()
        return _decoded(recording, role)
    except UnicodeEncodeError:
        detail = "its name is not UTF-8 text: rename it"
        return Skipped(recording.path.encode(errors="backslashreplace").decode(), "name", detail)
    except AudioError as error:
        return Skipped(recording.path, error.reason, str(error))


def _decoded(recording: Recording, role: Role) -> Recording:
    path, extra, mix = recording.path, dict(recording.extra), Downmix()
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
        low, high, moved = math.inf, -math.inf, 0.0
        for block in mono_blocks(file, path, start, wanted or None, extra.get("use_channel"), mix):
            if not np.isfinite(block).all():
                raise AudioError(f"{path} holds samples that are not numbers.", "nan")
            frames += len(block)
            low, high = min(low, float(block.min())), max(high, float(block.max()))
            step = np.diff(block.astype(np.float64))  # float32 cannot square all that it holds
            moved += float(step @ step)
            if max(-low, high) >= _FULL_SCALE:
                flat = np.abs(step) < _FLAT
                clipped += int(np.count_nonzero(flat & (np.abs(block[1:]) >= _FULL_SCALE)))
    if mix.instead is not None:  # the channels cancel
        return _decoded(replace(recording, extra=extra | {"use_channel": mix.instead}), role)
    if not frames:
        raise AudioError(f"{path} holds no samples.", "empty")
    if frames < wanted - _TOLERANCE * rate:
        who, reason = ("its header", "corrupt") if math.isinf(recording.seconds) else ("its entry", "too-short")
        raise AudioError(f"{path} ends after {frames / rate:.2f} s; {who} says {wanted / rate:.2f} s.", reason)
    if frames < MIN_SECONDS[role] * rate:
        raise AudioError(f"{path} lasts {frames} samples at {rate} Hz, less than {MIN_SECONDS[role]:g} s.", "too-short")
    recording = replace(recording, seconds=frames / rate, extra=extra)
    # how much `moved` it can explain
    infrasound = frames * (2 * math.pi * _LOWEST_HZ / rate * (high - low) / 2) ** 2 / 2
    if high - low < _SILENCE or (moved < infrasound and not _audible(recording)):
        raise AudioError(f"{path} is silent.", "silent")
    if clipped > _CLIPPED * frames:
        extra["clipped"] = round(clipped / frames, 4)
    if role == "rooms":
        extra["t60"] = prepare_rir(recording.load(0.0, READ)).t60
    return recording


def _audible(recording: Recording) -> bool:
    """Whether some minute of it has more than infrasound in it: above -80 dB of the whole and half a step of 16 bits."""
    import scipy.signal  # takes a second

    high_pass = scipy.signal.butter(4, _LOWEST_HZ, "highpass", fs=SAMPLE_RATE, output="sos")
    for start in np.arange(0, recording.seconds, 60.0):
        wave = recording.load(float(start), 60.0).astype(np.float64)
        power = np.mean(scipy.signal.sosfiltfilt(high_pass, wave, padlen=min(SAMPLE_RATE, len(wave) - 1)) ** 2)
        if power > max((_SILENCE / 2) ** 2, 1e-8 * np.var(wave)):
            return True
    return False
