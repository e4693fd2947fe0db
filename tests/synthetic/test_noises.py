"""Noises without files: reproducible, finite, of unit power, and alike what they are named after."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustdistiller.randomness import generator
from robustdistiller.synthetic.noises import SYNTHETIC_NOISES

RATE = 16_000


def make(name, seed, seconds=4.0):
    return SYNTHETIC_NOISES[name](generator(seed, name), int(seconds * RATE)).astype(np.float64)


def envelope(wave, window=800):
    """Root mean square of consecutive windows of 50 ms."""
    return np.sqrt(np.mean(wave[: len(wave) // window * window].reshape(-1, window) ** 2, axis=1))


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(SYNTHETIC_NOISES)), st.integers(0, 2**32), st.integers(1, 30_000))
def test_any_length_is_finite_at_unit_power_and_a_function_of_its_generator(name, seed, length):
    noise = SYNTHETIC_NOISES[name]
    wave = noise(generator(seed), length)
    assert wave.shape == (length,) and wave.dtype == np.float32
    assert np.isfinite(wave).all()
    assert np.mean(wave.astype(np.float64) ** 2) == pytest.approx(1, abs=1e-4)
    np.testing.assert_array_equal(wave, noise(generator(seed), length))


@pytest.mark.parametrize("name", sorted(SYNTHETIC_NOISES))
def test_another_seed_is_another_noise(name):
    a, b = make(name, 1), make(name, 2)
    assert abs(np.mean(a * b)) < 0.3


@pytest.mark.parametrize("seed", range(4))
def test_hum_has_lines_at_multiples_of_one_frequency(seed):
    spectrum = np.abs(np.fft.rfft(make("hum", seed) * np.hanning(4 * RATE))) ** 2
    hertz = np.fft.rfftfreq(4 * RATE, 1 / RATE)
    inside = {}
    for base in np.arange(40, 140, 0.25):
        order = np.round(hertz / base)
        # The speed drifts by a few tenths of a percent, so the lines of higher order widen.
        comb = (order >= 1) & (order <= 8) & (np.abs(hertz - order * base) < 0.01 * order * base + 0.5)
        inside[base] = spectrum[comb].sum() / spectrum[(hertz > 30) & (hertz < 8.5 * base)].sum()
    base = max(inside, key=inside.get)
    comb_width = 2 * (0.01 * 4.5 + 0.5 / base)  # the share that a flat spectrum would put on the comb
    assert inside[base] > 0.7 > 3 * comb_width
    assert 40 < base < 140


@pytest.mark.parametrize("seed", range(4))
def test_rain_is_broad_and_steady(seed):
    wave = make("rain", seed)
    spectrum = np.abs(np.fft.rfft(wave)) ** 2
    thirds = [part.sum() / spectrum.sum() for part in np.array_split(spectrum[8000:], 3)]  # 2 to 8 kHz
    assert min(thirds) > 0.1
    levels = envelope(wave, 3200)
    assert levels.std() / levels.mean() < 0.1
    flatness = np.exp(np.mean(np.log(spectrum[4000:]))) / np.mean(spectrum[4000:])
    assert flatness > 0.3  # no lines (exponentially distributed bins alone give 0.56)


@pytest.mark.parametrize("seed", range(4))
def test_clicks_are_sparse(seed):
    wave = make("clicks", seed, 8.0)
    energy = np.sort(envelope(wave, 160) ** 2)[::-1]
    assert energy[: len(energy) // 5].sum() > 0.95 * energy.sum()  # a fifth of the time holds the sound
    assert np.abs(wave).max() > 8


def test_clicks_are_never_silent_however_short():
    assert all(np.any(make("clicks", seed, 0.05)) for seed in range(50))


@pytest.mark.parametrize("seed", range(4))
def test_music_has_notes_of_the_tempered_scale(seed):
    wave = make("music", seed, 6.0)
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) ** 2
    hertz = np.fft.rfftfreq(len(wave), 1 / RATE)
    band = (hertz > 100) & (hertz < 500)
    cents = 100 * 12 * np.log2(hertz[band] / 440)
    away = np.abs((cents + 50) % 100 - 50)  # from the nearest semitone, 0 to 50
    # Fundamentals and octaves are on the scale and most other harmonics within 14 cents.
    assert spectrum[band][away < 20].sum() > 0.75 * spectrum[band].sum()
    flatness = np.exp(np.mean(np.log(spectrum[band] + 1e-12))) / np.mean(spectrum[band])
    assert flatness < 0.1


@pytest.mark.parametrize("seed", range(4))
def test_wind_is_low_and_comes_in_gusts(seed):
    wave = make("wind", seed, 8.0)
    spectrum = np.abs(np.fft.rfft(wave)) ** 2
    assert spectrum[: 8 * 1500].sum() > 0.9 * spectrum.sum()
    levels = envelope(wave, 8000)
    assert levels.max() > 1.7 * levels.min()


@pytest.mark.parametrize("seed", range(4))
def test_an_engine_beats_at_its_strokes(seed):
    power = make("engine", seed) ** 2
    power = np.convolve(power, np.ones(80) / 80, "same")[::40]  # 400 Hz
    spectrum = np.abs(np.fft.rfft((power - power.mean()) * np.hanning(len(power)))) ** 2
    hertz = np.fft.rfftfreq(len(power), 40 / RATE)
    strokes = (hertz > 8) & (hertz < 70)
    assert spectrum[strokes].sum() > spectrum[(hertz > 70) & (hertz < 190)].sum()


@pytest.mark.parametrize("seed", range(6))
def test_an_alarm_is_a_few_pure_tones_at_a_time(seed):
    wave = make("alarm", seed)
    frames = wave[: len(wave) // 512 * 512].reshape(-1, 512) * np.hanning(512)
    spectrum = np.abs(np.fft.rfft(frames)) ** 2
    loud = spectrum[spectrum.sum(1) > 0.3 * spectrum.sum(1).mean()]
    top = np.sort(loud, axis=1)[:, ::-1][:, :16].sum(1) / loud.sum(1)
    assert np.median(top) > 0.9
