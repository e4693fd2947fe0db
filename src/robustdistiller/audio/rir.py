"""Room impulse responses: where the direct path lies, how long they reverberate, and how a recorded one is made usable."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import AudioError
from .io import SAMPLE_RATE

LEAD = SAMPLE_RATE // 400  # samples kept before the direct path (2.5 ms): the foot of its wave front
NEAR = 0.5  # the direct path has at least this share (-6 dB) of the largest amplitude
READ = 30.0  # seconds of a file in which its direct path must come
LONGEST = 2.0  # seconds kept after the direct path
INAUDIBLE = 1e-7  # -70 dB of the energy: what is left of a response after this is cut off
FADE = SAMPLE_RATE // 100  # samples over which a response that had to be cut fades out
FRONT = SAMPLE_RATE // 1000  # samples (1 ms) within which the largest amplitude still belongs to the direct sound


@dataclass(frozen=True)
class RIR:
    """A room impulse response: `samples` (L,) float32, unit energy; `direct` is the index that becomes lag 0."""

    samples: np.ndarray
    direct: int
    t60: float | None  # measured, seconds; None where the response is too short or too noisy to tell

    @property
    def nbytes(self) -> int:
        return self.samples.nbytes


def prepare_rir(wave: np.ndarray) -> RIR:
    """Make a recorded impulse response usable: trimmed around its direct path, positive there, of unit energy.

    `wave` is (L,) at 16 kHz. Raises `AudioError` when it is empty, all zero, or holds samples that are not numbers.
    """
    wave = np.asarray(wave, np.float64)
    if not np.all(np.isfinite(wave)):
        raise AudioError("The room response holds samples that are not numbers: leave it out.", "nan")
    if not np.any(wave):
        raise AudioError("The room response is empty or silent: leave it out.", "empty")
    wave = wave / np.abs(wave).max()
    peak = direct_path(wave)
    t60 = measure_t60(wave, peak)
    first, last = max(0, peak - LEAD), peak + round(LONGEST * SAMPLE_RATE)
    kept = wave[first:last].copy()
    if len(wave) > last:
        kept[-FADE:] *= np.linspace(1, 0, FADE)
    left = np.cumsum(kept[::-1] ** 2)[::-1]
    kept = kept[: max(peak - first + 1, int(np.count_nonzero(left > INAUDIBLE * left[0])))]
    kept *= np.sign(kept[peak - first]) / np.sqrt(np.sum(kept**2))
    return RIR(kept.astype(np.float32), peak - first, t60)


def direct_path(response: np.ndarray) -> int:
    """Index of the direct sound: the peak of the first wave front, which need not be the largest or positive.

    The first wave front begins where the amplitude first comes within 6 dB of the largest; a reflection may be stronger
    than the direct sound, noise before it is not.
    """
    size = np.abs(response)
    onset = int(np.argmax(size >= NEAR * size.max()))
    return onset + int(np.argmax(size[onset : onset + FRONT]))


def measure_t60(response: np.ndarray, direct: int | None = None) -> float | None:
    """Reverberation time in seconds, from the first 20 dB (-5 to -25) of the Schroeder curve after the direct path.

    Where noise hides that, from 10 dB; None where even that is hidden.
    """
    direct = direct_path(response) if direct is None else direct
    power = np.square(response[direct:], dtype=np.float64)
    if len(power) < SAMPLE_RATE // 50 or not power.sum() > 0:
        return None
    noise_floor = _noise_floor(power)
    decay = np.cumsum((power - noise_floor)[::-1])[::-1]
    level = 10 * np.log10(np.maximum(decay, 1e-30 * power.sum()) / max(decay[0], 1e-300))
    for depth in (20.0, 10.0):
        below_5, below = int(np.argmax(level <= -5.0)), int(np.argmax(level <= -5.0 - depth))
        if below <= below_5 + 8:
            continue
        # The noise floor must lie well below the stretch that is fitted.
        around = power[max(0, below - SAMPLE_RATE // 100) : below + SAMPLE_RATE // 100]
        if noise_floor > 0 and around.mean() < 4 * noise_floor:
            continue
        time = np.arange(below_5, below) / SAMPLE_RATE
        slope = np.polyfit(time, level[below_5:below], 1)[0]
        if slope < 0:
            return float(-60.0 / slope)
    return None


def _noise_floor(power: np.ndarray) -> float:
    """Mean power of a stationary end of the response; 0 when it decays to the very end."""
    tenth = len(power) // 10
    last, before = power[-tenth:].mean(), power[-2 * tenth : -tenth].mean()
    return float(last) if before < 2 * last else 0.0
