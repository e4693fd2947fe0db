"""Audio in: files of 16 kHz, and the checks that every waveform passes before it reaches a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..channels import downmix
from ..errors import AudioError, optional

SAMPLE_RATE = 16_000

Wave = NDArray[np.float32]


def read_wave(path: str | os.PathLike[str], sampling_rate: int = SAMPLE_RATE) -> Wave:
    """Read an audio file as mono floats (T,); nothing is resampled on the device.

    Channels are averaged; where they cancel each other (antiphase stereo), one is taken.

    Raises `AudioError` for a file that is missing, no audio, cut short, empty, at another rate, or holds samples that are
    not numbers.
    """
    soundfile = optional("soundfile", "", "Reading audio files")
    path = Path(path)
    if not os.path.isfile(path):
        raise AudioError(f"{path} is a folder: give one of its files." if os.path.isdir(path) else
                         f"There is no audio file {path}: check the path.", "missing")  # fmt: skip
    try:
        with soundfile.SoundFile(path) as file:
            if file.samplerate != sampling_rate:
                raise AudioError(
                    f"{path} has {file.samplerate} samples a second and the model needs {sampling_rate}: convert it first "
                    f"(for example: sox {path.name} -r {sampling_rate} converted.wav).",
                    "rate",
                )
            announced = file.frames
            wave = downmix(file.read(dtype="float32", always_2d=True))
    except AudioError:
        raise
    except (soundfile.SoundFileError, RuntimeError, OSError, ValueError, MemoryError, TypeError) as error:
        raise AudioError(f"{path} cannot be read as audio ({str(error).strip()[:100]}): convert it.") from error
    if len(wave) < announced < 1 << 62:
        raise AudioError(f"{path} is cut short ({len(wave)} of {announced} samples): copy it again.", "too-short")
    return check_wave(wave, what=str(path))


def check_wave(wave: Any, shortest: int = 1, what: str = "The audio") -> Wave:
    """A waveform as a model wants it: one axis, floats, finite, at least `shortest` samples. Raises `AudioError`."""
    try:
        wave = np.asarray(wave)
    except ValueError as error:
        raise AudioError(f"{what} has no shape: give one channel as a flat array of samples.", "shape") from error
    if wave.ndim != 1:
        raise AudioError(f"{what} has the shape {wave.shape}: give one channel as a flat array of samples.", "shape")
    if not np.issubdtype(wave.dtype, np.floating):
        raise AudioError(f"{what} holds {wave.dtype}: give floats in ±1 (16-bit samples divided by 32768).", "type")
    wave = np.ascontiguousarray(wave, dtype=np.float32)
    if len(wave) < shortest:
        raise AudioError(
            f"{what} has {len(wave)} samples, and the model needs at least {shortest}: give more audio.", "too-short"
        )
    if not np.isfinite(wave).all():
        raise AudioError(f"{what} holds samples that are not numbers: repair it or leave it out.", "nan")
    return wave
