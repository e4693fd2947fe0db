"""Every noise that needs no files can be drawn, fetched again from its plain values, and has unit power."""

import numpy as np
import pytest

from robustdistiller.acoustics.noise import MADE, NoiseBank, NoiseDraw
from robustdistiller.config import NoiseMix
from robustdistiller.randomness import generator


@pytest.mark.parametrize("kind", MADE)
def test_a_made_noise_is_its_plain_values(kind):
    bank = NoiseBank(kinds=NoiseMix(recorded=0, white=0, **{kind: 1.0}) if kind != "white" else NoiseMix(recorded=0))
    draw = bank.draw(generator("draw", 3), 1.0)
    wave = bank.fetch([draw], 16_000)
    assert draw.kind == kind and wave.dtype == np.float32
    np.testing.assert_array_equal(bank.fetch([NoiseDraw.from_dict(draw.to_dict())], 16_000), wave)
    assert np.mean(wave.astype(np.float64) ** 2) == pytest.approx(1.0, rel=1e-3)
