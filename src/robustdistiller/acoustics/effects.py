"""What a device does to sound, beyond the paper: band limit, gain, clipping, mu-law codec. None of it moves time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..audio.io import SAMPLE_RATE
from ..config import EffectsConfig
from .convolution import Array, device_of, fft_size, irfft, on_device, rfft

ORDER = 8  # of the band limit: 48 dB an octave, like a telephone channel
GUARD = SAMPLE_RATE // 20  # silent samples that keep the ringing at one end out of the other
MU = 255.0


@dataclass(frozen=True)
class Effects:
    """What was drawn; None: not applied. Applied in this order."""

    band_hz: tuple[float, float] | None = None  # lower and upper -3 dB point
    gain_db: float | None = None
    clipping_percent: float | None = None  # of samples at the limit
    codec: str | None = None  # "mu-law": G.711, 8 bits

    def __bool__(self) -> bool:
        return self != Effects()


def draw_effects(config: EffectsConfig, rng: np.random.Generator) -> Effects:
    """Draw each effect with its own probability."""
    happens, value = rng.random(4), rng.random(5)

    def between(limits: tuple[float, float], uniform: float) -> float:
        return limits[0] + (limits[1] - limits[0]) * float(uniform)

    low, high = between(config.low_hz, value[0]), between(config.high_hz, value[1])
    return Effects(
        band_hz=(low, high) if happens[0] < config.band_limit else None,
        gain_db=between(config.gain_db, value[2]) if happens[1] < config.gain else None,
        clipping_percent=between(config.clipping_percent, value[3]) if happens[2] < config.clipping else None,
        codec="mu-law" if happens[3] < config.codec else None,
    )


def apply_effects(effects: Effects, row: Array) -> Array:
    """Apply `effects` to one utterance (T,), valid samples only."""
    if effects.band_hz:
        row = band_limit(row, *effects.band_hz)
    if effects.gain_db is not None:
        row = row * 10 ** (effects.gain_db / 20)
    if effects.clipping_percent is not None:
        row = clip(row, effects.clipping_percent)
    if effects.codec:
        row = mu_law(row)
    return row


def band_limit(row: Array, low_hz: float, high_hz: float) -> Array:
    """Band pass with the magnitude of a Butterworth filter and no phase: (T,) -> (T,)."""
    size = fft_size(len(row) + GUARD)
    hertz = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 1e-3)
    gain = ((1 + (low_hz / hertz) ** (2 * ORDER)) * (1 + (hertz / high_hz) ** (2 * ORDER))) ** -0.5
    return irfft(rfft(row, size) * on_device(gain.astype(np.float32), device_of(row)), size)[: len(row)]


def clip(row: Array, percent: float) -> Array:
    """Limit the amplitude so that `percent` of the samples reach the limit: (T,) -> (T,)."""
    pushed = math.ceil(len(row) * percent / 100)
    if isinstance(row, np.ndarray):
        limit = np.partition(np.abs(row), len(row) - pushed)[len(row) - pushed]
        return np.clip(row, -limit, limit)
    limit = row.abs().kthvalue(len(row) - pushed + 1).values
    return row.clamp(-limit, limit)


def mu_law(row: Array) -> Array:
    """8-bit mu-law coding and decoding (ITU-T G.711's curve); amplitudes above 1 clip: (T,) -> (T,)."""
    xp: Any = np if isinstance(row, np.ndarray) else torch
    size = xp.clip(xp.abs(row), 0.0, 1.0)
    code = xp.round(xp.log1p(MU * size) * (127.0 / math.log1p(MU)))
    return xp.sign(row) * xp.expm1(code * (math.log1p(MU) / 127.0)) / MU
