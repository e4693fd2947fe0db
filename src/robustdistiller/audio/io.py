"""Reading and writing audio files: any rate, any channels, any libsndfile format in; 16 kHz mono float32 out.

Shapes: T samples. Times are in seconds from the start of the file.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import logging
import math
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from ..channels import Downmix
from ..errors import AudioError, UserError
from ..files import StrPath, replacing
from .media import MEDIA, UNKNOWN, MediaFile

log = logging.getLogger(__name__)

SAMPLE_RATE = 16_000

SUFFIXES = frozenset({".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au"})
SUFFIXES |= {".snd", ".sph", ".nist", ".w64", ".rf64", ".caf"}
UNREAD = frozenset(
    {".wv", ".ape", ".tta", ".mpc", ".ra", ".dsf", ".dff", ".mkv", ".mov", ".avi", ".shn", ".spx", ".voc"}
)

_BLOCK = 1 << 20  # values decoded at a time, over all channels: the memory that a lying header can cost
_CONTEXT = 1024  # samples (at the lower rate) read around a resampled segment: several times soxr's filter


@dataclass(frozen=True)
class AudioInfo:
    """What the header of a file says; `frames` counts samples per channel."""

    frames: int
    sampling_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.frames / self.sampling_rate


def probe(path: StrPath) -> AudioInfo:
    """Read the header of a file.

    Raises:
        AudioError: It is missing, corrupt, empty or may not be read.
    """
    with opened(path) as file:
        known = file.frames != UNKNOWN
        frames = file.frames if known else sum(len(block) for block in mono_blocks(file, path))
        info = AudioInfo(frames, file.samplerate, file.channels)
    if info.frames <= 0:
        raise AudioError(f"{path} holds no samples: remove it or record it again.", "empty")
    return info


def read_audio(
    path: StrPath,
    start: float = 0.0,
    seconds: float | None = None,
    sampling_rate: int = SAMPLE_RATE,
    channel: int | None = None,
    content: bytes | None = None,
) -> np.ndarray:
    """The part [start, start + seconds) of `path` as a float32 wave (T,) at `sampling_rate`.

    Only the part asked for is decoded. A segment equals the same slice of the whole file resampled.

    Args:
        path: The file.
        start: Where the segment begins, in seconds.
        seconds: How long it is; to the end of the file by default.
        sampling_rate: Of the result, in Hz.
        channel: One channel (from 0); by default they are averaged, or one is taken where they cancel each other.
        content: The bytes of the file where they are in memory already; `path` then only names them.

    Returns:
        (T,), T = round(seconds * sampling_rate) wherever the file holds that much, and what there is at its end.

    Raises:
        AudioError: The file is missing, corrupt, empty, too short, or holds samples that are not numbers; see its `reason`.

    Example:
        >>> wave = read_audio("speech.flac", start=1.5, seconds=2.0)  # doctest: +SKIP
        >>> wave.shape  # doctest: +SKIP
        (32000,)
    """
    if start < 0 or (seconds is not None and seconds < 0):
        raise ValueError(f"start and seconds must not be negative, not {start} and {seconds}")
    with opened(path, content) as file:
        rate, frames = file.samplerate, file.frames
        if frames <= 0:
            raise AudioError(f"{path} holds no samples: remove it or record it again.", "empty")
        first = round(start * sampling_rate)  # on the output's grid, like everything named so below
        last = math.inf if seconds is None else first + round(seconds * sampling_rate)
        # The source is entered at a frame where both grids meet, so that a segment falls on the whole file's samples.
        common = math.gcd(rate, sampling_rate)
        down, up = rate // common, sampling_rate // common
        context = 0 if down == up else math.ceil(_CONTEXT * max(1, up / down))
        cell = max(0, first - context) // up
        skip = first - cell * up
        if cell * down >= frames:
            raise _ends_before(path, start)
        stop = None if seconds is None else math.ceil((last + context) * down / up) - cell * down
        mix = Downmix()
        blocks = mono_blocks(file, path, cell * down, stop, channel, mix)
        if rate != sampling_rate:
            blocks = _resampled(blocks, rate, sampling_rate)
        wave = _joined(blocks, skip, last - first)
    if mix.instead is not None:
        return read_audio(path, start, seconds, sampling_rate, mix.instead, content)
    if not len(wave) and last > first:
        raise _ends_before(path, start)
    if not np.isfinite(wave).all():
        raise AudioError(f"{path} holds samples that are not numbers: remove it or convert it again.", "nan")
    return wave


def mono_blocks(
    file: soundfile.SoundFile | MediaFile,
    path: StrPath,
    start: int = 0,
    frames: int | None = None,
    channel: int | None = None,
    mix: Downmix | None = None,
) -> Iterator[np.ndarray]:
    """Decode an open file from frame `start` in float32 blocks (T,), of bounded size whatever the header claims.

    Without a `channel`, `mix` averages all and knows in the end whether that was right.
    """
    mix = mix or Downmix()
    size = max(1, _BLOCK // file.channels)
    if channel is not None and not 0 <= channel < file.channels:
        raise AudioError(f"{path} has {file.channels} channels, so there is no channel {channel}: check its entry.")
    left = file.frames - start if frames is None else min(frames, file.frames - start)
    try:
        if start:
            file.seek(start)
        if isinstance(file, soundfile.SoundFile):
            # After each read soundfile seeks to where it already is, which is slow in compressed files and fails at the
            # end of those that do not tell their length.
            file.seekable = lambda: False
        while left > 0:
            with _muted(path):
                block = file.read(min(size, left), dtype="float32", always_2d=True)  # (T, channels)
            if not len(block):
                return
            left -= len(block)
            if channel is not None:
                yield np.ascontiguousarray(block[:, channel])
            else:
                yield mix(block)
    except (soundfile.SoundFileError, RuntimeError, ValueError, OSError) as error:
        raise AudioError(f"{path} cannot be decoded ({_reason(error)}): remove it or convert it again.") from error


def write_audio(path: StrPath, wave: np.ndarray, sampling_rate: int = SAMPLE_RATE, comment: str | None = None) -> None:
    """Write a wave (T,) atomically as .wav (16 bits, or float where |x| > 1), .flac (16 bits) or .ogg (Vorbis).

    Args:
        path: The file; its folder is made.
        wave: Samples (T,).
        sampling_rate: In Hz.
        comment: Kept in the file, for example who wrote it.

    Raises:
        UserError: For another suffix, a wave that is not finite, or a disk that is full.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from robustdistiller import read_audio, write_audio
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_audio(f"{folder}/tone.wav", 0.1 * np.sin(np.arange(16000) / 5).astype(np.float32))
        ...     read_audio(f"{folder}/tone.wav", start=0.25, seconds=0.5).shape
        (8000,)
    """
    path = Path(path)
    wave = np.asarray(wave, dtype=np.float32)
    if wave.ndim != 1:
        raise ValueError(f"a wave has shape (T,), not {wave.shape}")
    if not np.isfinite(wave).all():
        raise AudioError(f"{path} would hold samples that are not numbers: check the input that it comes from.", "nan")
    loud = bool(len(wave)) and float(np.abs(wave).max()) > 1
    formats = {".wav": ("WAV", "FLOAT" if loud else "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
    if path.suffix.lower() not in formats:
        raise UserError(f"Cannot write {path}: choose a name that ends in .wav, .flac or .ogg.")
    container, coding = formats[path.suffix.lower()]
    if loud and container != "WAV":
        log.warning("%s is clipped at full scale: only .wav keeps samples beyond it", path)
        wave = wave.clip(-1, 1)
    with replacing(path) as temporary:
        try:
            with soundfile.SoundFile(temporary, "w", sampling_rate, 1, coding, format=container) as file:
                if comment:
                    file.comment = comment
                # In blocks: libsndfile's Vorbis encoder overflows the stack on very long writes.
                for begin in range(0, len(wave), _BLOCK):
                    file.write(wave[begin : begin + _BLOCK])
            whole = soundfile.info(temporary).frames == len(wave)
        except (soundfile.SoundFileError, RuntimeError, AssertionError) as error:
            raise _write_error(path, str(error)) from error
        if not whole:
            raise _write_error(path, "the file is incomplete")


def readable() -> frozenset[str]:
    """The suffixes of files that can be read: those of libsndfile, and `MEDIA` where PyAV is installed."""
    return SUFFIXES | MEDIA if importlib.util.find_spec("av") else SUFFIXES


def find_audio(folder: StrPath, failed: list[OSError] | None = None) -> list[Path]:
    """Every audio file under `folder`, by suffix, sorted; hidden files are passed over, links to folders followed.

    Folders that cannot be entered are told to `failed`, and files of kinds that cannot be read are counted in a warning.
    """
    kinds = readable()
    files = sorted(Path(name) for name in find_files(folder, kinds | MEDIA | UNREAD, failed))
    others = Counter(file.suffix.lower() for file in files if file.suffix.lower() not in kinds)
    if others:
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        advice = "pip install 'robustdistiller[media]', or convert" if others.keys() & MEDIA else "convert"
        log.warning("%s: files of these kinds are not read: %s. To use them, %s them to FLAC.", folder, told, advice)
    return [file for file in files if file.suffix.lower() in kinds]


def find_files(folder: StrPath, suffixes: Collection[str], failed: list[OSError] | None = None) -> Iterator[str]:
    """Paths under `folder` with one of the lower-case `suffixes`, in no order; hidden ones are passed over."""
    seen: set[str] = set()  # links may form a circle

    def fail(error: OSError) -> None:
        log.warning("The folder %s cannot be read (%s): what it holds is left out.", error.filename, error.strerror)
        if failed is not None:
            failed.append(error)

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes:
                yield os.path.join(parent, name)


@contextlib.contextmanager
def opened(path: StrPath, content: bytes | None = None) -> Iterator[soundfile.SoundFile | MediaFile]:
    """Open a file (or its `content`) for decoding, with every failure as an `AudioError` (missing, corrupt, empty)."""
    path = Path(path)
    if content is None and not os.path.isfile(path):
        what = "is a folder: give one of its files" if os.path.isdir(path) else "does not exist: check the path"
        raise AudioError(f"{path} {what}.", "missing")
    try:
        size = path.stat().st_size if content is None else len(content)
        with _muted(path):
            if path.suffix.lower() in MEDIA and content is None:
                file: Any = MediaFile(path)
            else:
                name = os.fsencode(path) if os.name == "posix" else path  # which need not be text
                file = soundfile.SoundFile(name if content is None else io.BytesIO(content))
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError, OSError) as error:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            if content is None and not _permitted(path):
                raise AudioError(f"{path} may not be read: change its permissions.", "permission") from error
        if not size:
            raise AudioError(f"{path} is an empty file: remove it or copy it again.", "empty") from error
        raise AudioError(f"{path} cannot be read as audio ({_reason(error)}): remove it or convert it.") from error
    with file:
        yield file


@contextlib.contextmanager
def _muted(path: StrPath) -> Iterator[None]:
    """Keep libmpg123 from writing to the terminal what `opened` reports anyway."""
    if not str(path).lower().endswith(".mp3"):
        yield
        return
    with open(os.devnull, "wb") as nothing:
        try:
            saved = os.dup(2)
        except OSError:  # there is no terminal
            yield
            return
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _permitted(path: Path) -> bool:
    try:
        path.open("rb").close()
    except PermissionError:
        return False
    return True


def _resampled(blocks: Iterator[np.ndarray], source: int, target: int) -> Iterator[np.ndarray]:
    stream = soxr.ResampleStream(source, target, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _joined(blocks: Iterator[np.ndarray], skip: int, length: float) -> np.ndarray:
    """Samples [skip, skip + length) of a stream; decoding stops as soon as they are there."""
    parts: list[np.ndarray] = []
    for block in blocks:
        dropped = min(skip, len(block))
        skip -= dropped
        block = block[dropped : None if length == math.inf else dropped + int(length)]
        length -= len(block)
        parts.append(block)
        if length <= 0:
            break
    return parts[0].copy() if len(parts) == 1 else np.concatenate(parts or [np.zeros(0, np.float32)])


def _ends_before(path: StrPath, start: float) -> AudioError:
    return AudioError(f"{path} ends before {start:g} s: check the start and duration of its entry.", "too-short")


def _reason(error: BaseException) -> str:
    return str(error).rsplit(": ", 1)[-1].strip().rstrip(".") or type(error).__name__


def _write_error(path: Path, reason: str) -> OSError:
    free = shutil.disk_usage(path.parent).free
    return OSError(errno.ENOSPC if free < 1 << 16 else errno.EIO, reason)
