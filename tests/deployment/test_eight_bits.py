"""Laws of 8-bit weights: no processor's 16-bit sums of two products overflow, and no output loses more than that costs."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustdistiller.deployment.eight_bits import steps
from robustdistiller.deployment.parity import voice_like
from robustdistiller.deployment.quantise import quantise

LARGEST = 2**15 - 1


def neighbours(codes, axis):
    """The largest sum of products of 255 and two codes side by side along an axis."""
    size = 255 * np.abs(codes.astype(int))
    return int(
        (np.take(size, range(1, size.shape[axis]), axis) + np.take(size, range(size.shape[axis] - 1), axis)).max()
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), taps=st.integers(1, 5), channels=st.integers(2, 9), heavy=st.booleans())
def test_two_neighbours_never_overflow_16_bits_and_single_weights_keep_their_step(seed, taps, channels, heavy):
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(2, (4, channels, taps)) if heavy else rng.standard_normal((4, channels, taps))
    step = steps(weight.astype(np.float32))
    codes = np.rint(weight / step[:, None, None])
    assert np.abs(codes).max() <= 127
    assert all(neighbours(codes, axis) <= LARGEST for axis in (1, 2) if codes.shape[axis] > 1)
    coarsest = 2 * np.abs(weight).max((1, 2)) / 127  # two equal neighbours
    assert (step <= coarsest * (1 + 1e-6)).all()


def test_an_output_of_zeros_has_a_step():
    assert (steps(np.zeros((2, 3, 4), np.float32)) > 0).all()


@pytest.fixture(scope="module")
def int8(exported):
    return quantise(onnx.load(exported[0] / "encoder.onnx"), [voice_like(16_000, k) for k in range(3)])


def test_in_an_exported_file_no_sum_of_two_products_leaves_16_bits(int8):
    """Where it does, processors without VNNI clip it, and the file loses its accuracy there and only there."""
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in int8.graph.initializer]
    weights = [weight for weight in weights if weight.dtype == np.int8 and weight.ndim > 1]
    assert len(weights) > 10
    for weight in weights:
        if weight.ndim == 3:  # (N, C, K) of a convolution: engines run along C or K
            assert max(neighbours(weight, 1), neighbours(weight, 2)) <= LARGEST
        else:  # (K, N) of a product: along K, in pairs that start at even places
            assert max(neighbours(weight[k : k + 2], 0) for k in range(0, len(weight) - 1, 2)) <= LARGEST
    assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) > 80  # and no bit is given away
