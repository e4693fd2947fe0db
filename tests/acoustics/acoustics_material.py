"""What the acoustics tests are made of: speech-like noise, room responses, decibels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from robustdistiller.acoustics.convolution import audible_power
from robustdistiller.audio.manifest import Recording

RATE = 16_000
Make = Callable[..., Recording]


def speechlike(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """White noise with a syllable rhythm: speech to a power meter, and with a sharp autocorrelation."""
    rhythm = 0.55 + 0.45 * np.sin(np.arange(num_samples) * 2 * np.pi * 4 / RATE + rng.uniform(0, 6))
    return (0.1 * rhythm * rng.standard_normal(num_samples)).astype(np.float32)


def synthetic_response(rng: np.random.Generator, delay: int, t60: float, sign: float = 1.0) -> np.ndarray:
    """A unit impulse after `delay` samples and an exponentially decaying tail."""
    time = np.arange(int(1.1 * t60 * RATE)) / RATE
    tail = 0.08 * rng.standard_normal(len(time)) * 10 ** (-3 * time / t60)
    tail[0] = 1.0
    return sign * np.concatenate([np.zeros(delay), tail])


def decibels(ratio: float) -> float:
    return float(10 * np.log10(ratio))


def power(wave: np.ndarray) -> float:
    return float(np.mean(np.square(wave, dtype=np.float64)))


def audible(wave: np.ndarray) -> float:
    """The power that levels and SNRs refer to (`test_levels_are_those_of_the_audible_band` measures it independently)."""
    return audible_power(np.asarray(wave, np.float32))
