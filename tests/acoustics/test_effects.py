"""Device effects: each does what it says, none moves sound in time, all are off unless asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from acoustics_material import RATE, decibels, power, speechlike
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import fftconvolve

from robustdistiller.acoustics.contamination import contaminate
from robustdistiller.acoustics.effects import Effects, apply_effects, band_limit, clip, draw_effects, mu_law
from robustdistiller.acoustics.environment import Environment
from robustdistiller.config import EffectsConfig, EnvironmentConfig
from robustdistiller.randomness import generator

every = st.builds(
    Effects,
    band_hz=st.none() | st.tuples(st.floats(50, 400), st.floats(3000, 7000)),
    gain_db=st.none() | st.floats(-12, 6),
    clipping_percent=st.none() | st.floats(0.1, 2),
    codec=st.none() | st.just("mu-law"),
)


@settings(deadline=None, max_examples=30)
@given(every, st.integers(2000, 30_000), st.integers(0, 999))
def test_no_effect_moves_sound_in_time(effects: Effects, count: int, seed: int) -> None:
    wave = speechlike(np.random.default_rng(seed), count)
    out = apply_effects(effects, wave)
    assert out.shape == wave.shape and out.dtype == np.float32
    correlation = fftconvolve(out.astype(np.float64), wave.astype(np.float64)[::-1])
    assert np.argmax(correlation) == count - 1


@settings(deadline=None, max_examples=15)
@given(every, st.integers(1, 5000), st.integers(0, 999))
def test_effects_are_the_same_on_another_device(effects: Effects, count: int, seed: int) -> None:
    wave = speechlike(np.random.default_rng(seed), count)
    there = apply_effects(effects, torch.from_numpy(wave)).numpy()
    # A code that lies on the edge of two may fall either way.
    np.testing.assert_allclose(apply_effects(effects, wave), there, atol=0.05 if effects.codec else 1e-5)


@pytest.mark.parametrize(("hertz", "loss"), [(60, 30), (200, 3.01), (1000, 0.02), (4000, 3.01), (7000, 30)])
def test_the_band_limit_passes_the_band(hertz: float, loss: float) -> None:
    tone = np.sin(2 * np.pi * hertz * np.arange(2 * RATE) / RATE).astype(np.float32)
    lost = decibels(power(tone[8000:-8000]) / power(band_limit(tone, 200, 4000)[8000:-8000]))
    assert lost == pytest.approx(loss, abs=0.1) if loss < 10 else lost > loss


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 20_000), st.floats(0.1, 2.0))
def test_the_share_of_clipped_samples_is_the_share_asked(count: int, percent: float) -> None:
    wave = np.random.default_rng(count).standard_normal(count).astype(np.float32)
    out = clip(wave, percent)
    at_limit = np.count_nonzero(np.abs(out) == np.abs(out).max())
    assert at_limit == max(1, int(np.ceil(count * percent / 100)))
    assert np.array_equal(out[np.abs(out) < np.abs(out).max()], wave[np.abs(out) < np.abs(out).max()])


def test_mu_law_has_the_signal_to_noise_ratio_of_eight_bits() -> None:
    for level in (1e-2, 0.1, 0.3):
        wave = np.clip(level * np.random.default_rng(0).standard_normal(RATE), -1, 1).astype(np.float32)
        assert 34 < decibels(power(wave) / power(mu_law(wave) - wave)) < 42
    assert np.array_equal(mu_law(np.array([0, 1, -1, 3], np.float32)), np.array([0, 1, -1, 1], np.float32))
    assert len(np.unique(mu_law(np.linspace(-1, 1, 10_001).astype(np.float32)))) == 255


def test_gain_is_exact() -> None:
    wave = speechlike(np.random.default_rng(0), 9000)
    assert decibels(power(apply_effects(Effects(gain_db=-7.5), wave)) / power(wave)) == pytest.approx(-7.5, abs=1e-4)


def test_effects_are_off_by_default_and_drawn_with_their_probability() -> None:
    assert not draw_effects(EffectsConfig(), generator(0))
    some = EffectsConfig(gain=0.8, clipping=0.5, band_limit=0.3, codec=0.1)
    drawn = [draw_effects(some, generator(i)) for i in range(1000)]
    for name, share in (("gain_db", 0.8), ("clipping_percent", 0.5), ("band_hz", 0.3), ("codec", 0.1)):
        assert sum(getattr(d, name) is not None for d in drawn) / 1000 == pytest.approx(share, abs=0.06)
    for effects in drawn:
        assert effects.gain_db is None or -12 <= effects.gain_db <= 6
        assert effects.band_hz is None or (50 <= effects.band_hz[0] <= 400 and 3000 <= effects.band_hz[1] <= 7000)
        assert effects.clipping_percent is None or 0.1 <= effects.clipping_percent <= 2


def test_a_scene_applies_its_effects_last() -> None:
    config = EnvironmentConfig(
        clean=0, reverb=0, both=0, noise=1, noise_kinds={"recorded": 0, "white": 1},
        effects={"gain": 1, "codec": 1, "band_limit": 1},
    )  # fmt: skip
    plain = config.model_copy(update={"effects": EffectsConfig()})
    wave = speechlike(np.random.default_rng(0), 9000)
    heard, scene = contaminate(wave, Environment.build(config, seed=1), "u")
    before, _ = contaminate(wave, Environment.build(plain, seed=1), "u")
    assert scene.effects and np.array_equal(heard, apply_effects(scene.effects, before))
