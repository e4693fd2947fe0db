"""Noises that need no files: machine hum, engine, rain, wind, clicks, alarm and music, each a function of its generator.

They have the temporal and spectral habits of what they are named after (lines, pulses, stationary hiss, gusts, sparse
transients, beeps, chords), not its every detail. All have unit power and any length asked, float32 at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.fft

from ..audio.io import SAMPLE_RATE

Noise = Callable[[np.random.Generator, int], np.ndarray]

_TABLE = 4096  # samples in one period of a wavetable


def hum(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """A motor, fan or transformer: lines at multiples of one frequency (45 to 130 Hz) over air noise. (T,)"""
    base = 50.0 if rng.random() < 0.3 else float(rng.uniform(45, 130))
    harmonics = np.arange(1, 33)
    amplitudes = harmonics ** -rng.uniform(0.6, 1.4) * rng.lognormal(0, 0.6, len(harmonics))
    if rng.random() < 0.5:
        amplitudes[1::2] *= 0.3  # magnetic hums are mostly odd
    phase = _phase(base * (1 + 0.003 * _slow(rng, num_samples, 0.5)))
    tone = _period(amplitudes, rng)[(phase * _TABLE).astype(np.int64) % _TABLE]
    pulse = 1 + rng.uniform(0, 0.4) * np.sin(2 * np.pi * (phase * rng.choice([0.25, 0.5]) + rng.random()))
    air = _shaped(rng, num_samples, [(60, 0), (300, 0), (1500, -6), (8000, -20)])
    return _unit(_unit(tone * pulse) + 10 ** (rng.uniform(-16, -8) / 20) * air)


def engine(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """An engine turning over: uneven bursts of low noise, 12 to 45 a second, that speed up and slow down. (T,)"""
    rate = rng.uniform(12, 45) * (1 + 0.15 * _slow(rng, num_samples, 0.3))
    phase = _phase(rate)
    stroke = phase.astype(np.int64)
    strengths = rng.lognormal(0, 0.25, int(stroke[-1]) + 1)
    burst = strengths[stroke] * np.exp(-rng.uniform(3, 7) * (phase - stroke))
    cylinder = _period(np.arange(1, 13) ** -0.8, rng)[(phase * _TABLE).astype(np.int64) % _TABLE]
    rumble = _shaped(rng, num_samples, [(40, -6), (90, 0), (400, -4), (2000, -18), (8000, -36)])
    return _unit(burst * (rumble + 0.5 * _unit(cylinder)) + 0.1 * rumble)


def rain(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """Steady rain: a broad, stationary hiss, and the patter of 100 to 600 drops a second. (T,)"""
    hiss = _shaped(rng, num_samples, [(100, -18), (800, -6), (2500, 0), (5000, 0), (8000, -6)])
    drops = _impulses(rng, num_samples, rng.uniform(100, 600), spread=0.7)
    patter = _ringing(drops, _grain(rng, rng.uniform(1500, 5000), rng.uniform(0.001, 0.003)))
    return _unit(hiss + rng.uniform(0.3, 0.8) * patter)


def wind(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """Wind: low noise in gusts of a few seconds, with a whistle that follows them. (T,)"""
    gust = np.exp(0.7 * _slow(rng, num_samples, 0.6))
    low = _shaped(rng, num_samples, [(20, 0), (150, 0), (600, -12), (3000, -36), (8000, -60)])
    centre = rng.uniform(400, 1200)
    whistle = _shaped(rng, num_samples, [(centre / 2, -40), (centre * 0.9, 0), (centre * 1.1, 0), (centre * 2, -40)])
    return _unit(gust * low + rng.uniform(0.1, 0.4) * gust**2 * whistle)


def clicks(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """Keys, latches, crackles: short resonant transients, 1 to 8 a second and never none, and next to nothing between. (T,)"""
    hits = _impulses(rng, num_samples, rng.uniform(1, 8), spread=0.5)
    doubles = np.zeros(num_samples, np.float32)  # a key also comes up
    gap = int(rng.uniform(0.03, 0.12) * SAMPLE_RATE)
    doubles[gap:] = rng.uniform(0, 0.6) * hits[: max(num_samples - gap, 0)]
    body = _ringing(hits, _grain(rng, rng.uniform(300, 1500), rng.uniform(0.004, 0.012)))
    edge = _ringing(hits + doubles, _grain(rng, rng.uniform(2000, 6000), rng.uniform(0.001, 0.003)))
    room = _shaped(rng, num_samples, [(100, 0), (1000, -6), (8000, -18)])
    return _unit(_unit(rng.uniform(0.3, 1) * body + edge) + 0.01 * room)


def alarm(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """An alarm or a telephone: beeps of one or two pitches (500 to 2000 Hz), or a gliding siren. (T,)"""
    time = np.arange(num_samples) / SAMPLE_RATE + rng.uniform(0, 2)
    pitch = float(rng.uniform(500, 1300))
    cycle = time * rng.uniform(1, 4)
    if rng.random() < 0.3:
        frequency, gate = pitch * 1.5 ** np.sin(2 * np.pi * cycle / 4), 1.0
    else:
        frequency = np.where(np.floor(cycle) % 2 < 1, pitch, pitch * rng.choice([1.0, 1.25, 1.5]))
        position, open_for = cycle % 1, rng.uniform(0.4, 0.9)
        gate = np.clip(np.minimum(position, open_for - position) * 40, 0, 1)
    table = _period(np.array([1.0, *rng.uniform(0, 0.4, 3)]), rng)
    wave = table[(_phase(frequency) * _TABLE).astype(np.int64) % _TABLE]
    hiss = _shaped(rng, num_samples, [(100, 0), (8000, -12)])
    return _unit(_unit(wave * gate) + 0.05 * hiss)


def music(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """A band that plays chords, a bass line, a melody and often drums, in one key and tempo. (T,)"""
    beat = 60 / rng.uniform(70, 150)  # seconds
    key = int(rng.integers(12))
    scale = np.array([0, 2, 4, 5, 7, 9, 11] if rng.random() < 0.6 else [0, 2, 3, 5, 7, 8, 10])
    progression = [int(degree) for degree in rng.choice([0, 3, 4, 5, 1], size=4)]
    pad, bass, lead = (_period(np.arange(1, n + 1) ** -rng.uniform(0.8, 2), rng) for n in (8, 6, 5))
    bars_offset = int(rng.integers(16))
    wave = np.zeros(num_samples, np.float32)

    def note(degree: int, octave: int) -> float:
        step, position = divmod(degree, 7)
        return float(440 * 2 ** ((key + scale[position] + 12 * (step + octave) - 9) / 12))

    def play(table: np.ndarray, start: float, seconds: float, frequency: float, level: float, decay: float) -> None:
        first = round(start * SAMPLE_RATE)
        length = min(round(seconds * SAMPLE_RATE), num_samples - first)
        if length > 0:
            time = np.arange(length) / SAMPLE_RATE
            envelope = np.minimum(time / 0.01, 1) * np.exp(-decay * time) * np.clip((seconds - time) / 0.03, 0, 1)
            tone = table[(frequency * time * _TABLE).astype(np.int64) % _TABLE]
            wave[first : first + length] += (level * envelope * tone).astype(np.float32)

    total = num_samples / SAMPLE_RATE
    for bar in range(int(total / (4 * beat)) + 1):
        root = progression[(bar + bars_offset) % 4]
        start = bar * 4 * beat
        for third in (0, 2, 4):
            play(pad, start, 4 * beat, note(root + third, -1), 0.25, 0.3)
        for half in range(4):
            play(bass, start + half * beat, beat, note(root, -2), 0.6, 2.0)
        time = 0.0
        while time < 4:
            length = float(rng.choice([0.5, 0.5, 1.0, 1.5]))
            if rng.random() < 0.85:
                play(lead, start + time * beat, length * beat, note(root + int(rng.integers(-3, 7)), 0), 0.5, 1.5)
            time += length
    if rng.random() < 0.6:
        hits = np.zeros(num_samples, np.float32)
        hits[np.round(np.arange(0, total, beat / 2) * SAMPLE_RATE).astype(int).clip(max=num_samples - 1)] = 1
        hits[:: max(round(2 * beat * SAMPLE_RATE), 1)] = 3
        wave += rng.uniform(0.05, 0.2) * _ringing(hits, _grain(rng, 6000.0, 0.02))
    return _unit(wave)


SYNTHETIC_NOISES: dict[str, Noise] = {
    "hum": hum, "engine": engine, "rain": rain, "wind": wind, "clicks": clicks, "alarm": alarm, "music": music,
}  # fmt: skip


def _unit(wave: np.ndarray) -> np.ndarray:
    power = float(np.mean(np.square(wave, dtype=np.float64)))
    return (wave / np.sqrt(power)).astype(np.float32) if power > 0 else np.ones(len(wave), np.float32)


def _phase(frequency: np.ndarray | float) -> np.ndarray:
    """Cycles run through until each sample, from 0, for a frequency (T,) in Hz."""
    cycles = np.cumsum(frequency) / SAMPLE_RATE
    return cycles - cycles[0]


def _period(amplitudes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One period of a sum of harmonics with random phases, peak about 1: (`_TABLE`,) float32."""
    spectrum = np.zeros(_TABLE // 2 + 1, complex)
    spectrum[1 : len(amplitudes) + 1] = amplitudes * np.exp(2j * np.pi * rng.random(len(amplitudes)))
    table = np.fft.irfft(spectrum, _TABLE)
    return (table / np.abs(table).max()).astype(np.float32)


def _slow(rng: np.random.Generator, num_samples: int, seconds: float) -> np.ndarray:
    """A smooth random curve (T,) of about unit variance that changes over some `seconds`."""
    knots = rng.normal(size=int(num_samples / (seconds * SAMPLE_RATE)) + 3)
    return np.interp(np.arange(num_samples) / (seconds * SAMPLE_RATE) + rng.random(), np.arange(len(knots)), knots)


def _shaped(rng: np.random.Generator, num_samples: int, curve: list[tuple[float, float]]) -> np.ndarray:
    """Gaussian noise (T,) of unit power whose spectrum follows `curve`, points of (Hz, dB) joined on a log axis."""
    length = scipy.fft.next_fast_len(max(num_samples, 512), real=True)
    spectrum = scipy.fft.rfft(rng.standard_normal(length, dtype=np.float32))
    hertz, decibels = np.array(curve).T
    frequency = np.maximum(scipy.fft.rfftfreq(length, 1 / SAMPLE_RATE), 1)
    gain = 10 ** (np.interp(np.log(frequency), np.log(hertz), decibels) / 20)
    gain[frequency < 20] = 0
    wave = scipy.fft.irfft(spectrum * gain.astype(np.float32), length)[:num_samples]
    # Scaled by what is expected, not by what came out, or short clips would be as loud as long ones by their noise.
    return wave / np.float32(np.sqrt(np.mean(gain**2)))


def _impulses(rng: np.random.Generator, num_samples: int, per_second: float, spread: float) -> np.ndarray:
    """Impulses (T,) at random times with log-normal strengths and random signs; at least one."""
    count = max(int(rng.poisson(per_second * num_samples / SAMPLE_RATE)), 1)
    train = np.zeros(num_samples, np.float32)
    strengths = rng.lognormal(0, spread, count) * rng.choice([-1.0, 1.0], count)
    np.add.at(train, rng.integers(num_samples, size=count), strengths.astype(np.float32))
    return train


def _grain(rng: np.random.Generator, frequency: float, decay: float) -> np.ndarray:
    """A decaying burst at about `frequency` Hz that falls by 1/e in `decay` s, cut at 6 `decay`, with unit energy."""
    time = np.arange(max(int(6 * decay * SAMPLE_RATE), 8)) / SAMPLE_RATE
    tone = np.cos(2 * np.pi * (frequency * time + rng.random())) + 0.5 * rng.standard_normal(len(time))
    burst = tone * np.exp(-time / decay)
    return (burst / np.sqrt(np.sum(burst**2))).astype(np.float32)


def _ringing(impulses: np.ndarray, grain: np.ndarray) -> np.ndarray:
    """`impulses` (T,) each followed by `grain`, cut at T."""
    length = scipy.fft.next_fast_len(len(impulses) + len(grain) - 1, real=True)
    wave = scipy.fft.irfft(scipy.fft.rfft(impulses, length) * scipy.fft.rfft(grain, length), length)
    return wave[: len(impulses)].astype(np.float32)
