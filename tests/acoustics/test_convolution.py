"""Convolution of rows equals the textbook sum, and its bits do not depend on the company a row keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustdistiller.acoustics.cache import ByteCache
from robustdistiller.acoustics.convolution import LOWEST_HZ, convolve, fft_size, high_pass, mean_power, rfft

sizes = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 900)), min_size=1, max_size=7)


def _case(shape: list[tuple[int, int]], seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    rows = [rng.standard_normal(n).astype(np.float32) for n, _ in shape]
    return rows, [rng.standard_normal(n).astype(np.float32) for _, n in shape]


def _convolve(rows: list, kernels: list, delays: list[int], circular: bool = False) -> list:
    return [
        convolve(row, len(k), delay, lambda size, k=k: rfft(k, size), circular)
        for row, k, delay in zip(rows, kernels, delays, strict=True)
    ]


@settings(deadline=None, max_examples=25)
@given(sizes, st.integers(0, 99))
def test_convolution_equals_the_textbook_sum(shape: list[tuple[int, int]], seed: int) -> None:
    rows, kernels = _case(shape, seed)
    delays = [len(k) // 3 for k in kernels]
    for row, kernel, delay, out in zip(rows, kernels, delays, _convolve(rows, kernels, delays), strict=True):
        expected = np.convolve(row.astype(np.float64), kernel.astype(np.float64))[delay : delay + len(row)]
        np.testing.assert_allclose(out, expected, atol=2e-6 * np.sqrt(len(kernel)) * 10)
        assert out.dtype == np.float32


@settings(deadline=None, max_examples=25)
@given(sizes, st.integers(0, 99))
def test_circular_convolution_is_periodic_in_the_row(shape: list[tuple[int, int]], seed: int) -> None:
    rows, kernels = _case(shape, seed)
    for row, kernel, out in zip(rows, kernels, _convolve(rows, kernels, [0] * len(rows), True), strict=True):
        period = len(row)
        expected = np.zeros(period)
        for k, value in enumerate(kernel.astype(np.float64)):
            expected += value * np.roll(row, k % period)
        np.testing.assert_allclose(out, expected, atol=2e-5 * np.sqrt(len(kernel)))


@settings(deadline=None, max_examples=25)
@given(sizes, st.integers(0, 99), st.randoms(use_true_random=False))
def test_a_row_has_the_same_bits_in_any_company(shape: list[tuple[int, int]], seed: int, random) -> None:
    # Rows of equal length share an FFT, so give every row a few twins in length.
    rows, kernels = _case([s for s in shape for _ in range(3)], seed)
    delays = [0] * len(rows)
    alone = [_convolve([r], [k], [0])[0] for r, k in zip(rows, kernels, strict=True)]
    order = list(range(len(rows)))
    random.shuffle(order)
    together = _convolve([rows[i] for i in order], [kernels[i] for i in order], delays)
    for i, out in zip(order, together, strict=True):
        assert np.array_equal(out, alone[i])


@pytest.mark.parametrize("count", [16_000, 131_072, 250_000])
def test_long_rows_have_the_same_bits_in_any_company(count: int) -> None:
    rows, kernels = _case([(count, 8000)] * 5, count)
    together = _convolve(rows, kernels, [40] * 5)
    for i in range(5):
        assert np.array_equal(_convolve([rows[i]], [kernels[i]], [40])[0], together[i])


@settings(deadline=None, max_examples=10)
@given(sizes, st.integers(0, 99), st.booleans())
def test_other_devices_give_the_same_as_the_processor(shape: list[tuple[int, int]], seed: int, circular: bool) -> None:
    rows, kernels = _case(shape, seed)
    delays = [len(k) // 2 for k in kernels]
    tensors = [torch.from_numpy(r) for r in rows]
    torch_out = _convolve(tensors, [torch.from_numpy(k) for k in kernels], delays, circular)
    for a, b in zip(_convolve(rows, kernels, delays, circular), torch_out, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=2e-4)
    assert [float(mean_power(t)) for t in tensors] == pytest.approx([mean_power(row) for row in rows])


@settings(deadline=None, max_examples=30)
@given(st.integers(8001, 40_000), st.floats(1, 8000), st.floats(-40, 40), st.integers(0, 99))
def test_the_high_pass_is_that_of_the_whole_band(count: int, hertz: float, tone_db: float, seed: int) -> None:
    """An eighth-order Butterworth magnitude without phase, in float64, at the full rate: a tone in noise with an offset."""
    rng = np.random.default_rng(seed)
    tone = 10 ** (tone_db / 20) * np.sin(2 * np.pi * hertz * np.arange(count) / 16_000 + seed)
    wave = (0.01 * (rng.standard_normal(count) + tone + seed / 10)).astype(np.float32)
    edge, x = min(8000, count - 1), wave.astype(np.float64)
    padded = np.concatenate([2 * x[0] - x[edge:0:-1], x, 2 * x[-1] - x[-2 : -edge - 2 : -1]])
    spectrum = np.fft.rfft(padded - padded.mean(), 1 << 17)
    frequencies = np.maximum(np.fft.rfftfreq(1 << 17, 1 / 16_000), 1e-9)
    expected = np.fft.irfft(spectrum / np.sqrt(1 + (LOWEST_HZ / frequencies) ** 16))[edge : edge + count]
    np.testing.assert_allclose(high_pass(wave), expected, atol=1e-3 * np.abs(padded - padded.mean()).max())
    np.testing.assert_allclose(high_pass(torch.from_numpy(wave)), high_pass(wave), atol=1e-5 * np.abs(padded).max())
    if tone_db < 20:
        assert mean_power(high_pass(wave)) == pytest.approx(np.mean(expected**2), rel=2e-3)  # 0.01 dB


@given(st.integers(1, 10**7))
def test_fft_sizes_fit_and_waste_little(count: int) -> None:
    assert count <= fft_size(count) <= max(4, 1.26 * count)


def test_power_does_not_depend_on_where_a_row_lies_in_memory() -> None:
    rng = np.random.default_rng(0)
    wave = rng.standard_normal(10_007).astype(np.float32)
    for shift in range(9):
        buffer = np.zeros(20_000, np.float32)
        buffer[shift : shift + len(wave)] = wave
        assert mean_power(buffer[shift : shift + len(wave)]) == mean_power(wave)


def test_the_cache_never_holds_more_than_its_limit() -> None:
    cache: ByteCache[np.ndarray] = ByteCache(1000)
    for key in [*range(30), 29, 28, 5]:
        value = cache.get(key, lambda key=key: np.full(40, key % 10, np.uint8))
        assert value[0] == key % 10 and cache.nbytes <= 1000
    made = []
    cache.get(28, lambda: made.append(1) or np.zeros(1))
    assert not made  # recently used: still there
    cache.get("huge", lambda: np.zeros(10_000, np.uint8))
    assert cache.nbytes <= 1000
