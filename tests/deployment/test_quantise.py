"""8-bit ranges cost the least error they can."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf

from robustdistiller.deployment.quantise import best_range


def rounded(values, low, high):
    step = (high - low) / 255
    zero = round(-low / step)
    return (np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step


def gelu(x):
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), heavy=st.booleans(), offset=st.floats(-2, 2))
def test_a_range_is_never_worse_than_the_extremes(seed, heavy, offset):
    rng = np.random.default_rng(seed)
    values = (rng.standard_t(2, 2000) if heavy else rng.standard_normal(2000)) + offset
    values = values.astype(np.float32).astype(np.float64)
    low, high = best_range(values)
    assert values.min() - 1e-6 <= low <= 0 <= high <= values.max() + 1e-6
    extremes = min(values.min(), 0), max(values.max(), 0)
    error = np.mean((rounded(values, low, high) - values) ** 2)
    assert error <= np.mean((rounded(values, *extremes) - values) ** 2) * (1 + 1e-6)


def test_in_front_of_a_gelu_the_negative_tail_costs_nothing():
    values = np.random.default_rng(0).normal(-6, 4, 5000).astype(np.float32)
    low, high = best_range(values, before_gelu=True)
    plain = best_range(values)
    assert low > -5 > plain[0]
    error = lambda ends: np.mean((gelu(rounded(values, *ends)) - gelu(values)) ** 2)  # noqa: E731
    assert error((low, high)) < error(plain) / 3


def test_a_silent_tensor_has_a_range():
    assert best_range(np.zeros(10, np.float32)) == (0.0, 0.0)
