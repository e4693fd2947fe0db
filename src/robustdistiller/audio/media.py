"""Files that libsndfile does not read (AAC, WMA, sound of films), decoded by PyAV where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import optional

MEDIA = frozenset({".m4a", ".mp4", ".aac", ".webm", ".mka", ".wma", ".amr", ".3gp"})  # read with PyAV where it is there
UNKNOWN = (1 << 63) - 1  # the frame count of a file that was written as a stream and does not tell its length
BLOCK = 1 << 20  # frames skipped at a time


class MediaFile:
    """A file that PyAV decodes, with as much of the interface of `soundfile.SoundFile` as is needed: read in one go."""

    frames = UNKNOWN  # headers are wrong by the padding of the codec

    def __init__(self, path: Path) -> None:
        av = optional("av", "media", f"Reading {path.suffix} files")
        try:
            self._container = av.open(str(path), metadata_errors="replace")
        except av.FFmpegError as error:
            raise ValueError(str(error)) from error
        stream = next(iter(self._container.streams.audio), None)
        # A stream whose codec is unknown has neither attribute.
        self.samplerate, self.channels = getattr(stream, "rate", 0), getattr(stream, "channels", 0)
        if not self.samplerate or not self.channels:
            raise ValueError("it holds no sound")
        self._frames = self._decoded(stream)
        self._rest = np.zeros((0, self.channels), np.float32)

    def _decoded(self, stream: Any) -> Iterator[np.ndarray]:
        import av

        resampler = av.AudioResampler(format="flt")
        try:
            for frame in self._container.decode(stream):
                for part in resampler.resample(frame):
                    yield part.to_ndarray().reshape(-1, self.channels)
        except av.FFmpegError as error:
            raise ValueError(str(error)) from error

    def read(self, frames: int, dtype: str = "float32", always_2d: bool = True) -> np.ndarray:
        parts, count = [self._rest], len(self._rest)
        while count < frames and (frame := next(self._frames, None)) is not None:
            parts.append(frame)
            count += len(frame)
        block = np.concatenate(parts)
        self._rest = block[frames:]
        return block[:frames]

    def seek(self, frame: int) -> None:
        while frame > 0 and len(block := self.read(min(frame, BLOCK))):
            frame -= len(block)

    def __enter__(self) -> MediaFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._container.close()
