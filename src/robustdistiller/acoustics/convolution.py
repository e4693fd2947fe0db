"""Convolution and power of utterances of any length, with the same bits whatever they are batched with.

Rows are one-dimensional and hold valid samples only: NumPy arrays on a processor (SciPy's FFT gives every row the same
bits whatever its neighbours, PyTorch's does not), PyTorch tensors on any other device.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import scipy.fft
import torch

Array: TypeAlias = Any  # np.ndarray or torch.Tensor


def fft_size(num_samples: int) -> int:
    """The smallest of 4, 5, 6 and 7 times a power of two that holds `num_samples`: few sizes, all of them fast."""
    base = 1
    while 7 * base < num_samples:
        base *= 2
    return next(factor * base for factor in (4, 5, 6, 7) if factor * base >= num_samples)


def rfft(rows: Array, size: int) -> Array:
    """(..., T) -> (..., size // 2 + 1), zero-padded to `size`."""
    if isinstance(rows, np.ndarray):
        return scipy.fft.rfft(rows, size, axis=-1, workers=_workers(rows))
    return torch.fft.rfft(rows, size)


def irfft(spectra: Array, size: int) -> Array:
    """The inverse of `rfft`: (..., size // 2 + 1) -> (..., size)."""
    if isinstance(spectra, np.ndarray):
        return scipy.fft.irfft(spectra, size, axis=-1, workers=_workers(spectra))
    return torch.fft.irfft(spectra, size)


def powers(rows: Sequence[Array]) -> list[float]:
    """The mean square of each row, summed in float64 over its own samples."""
    if not rows:
        return []
    if isinstance(rows[0], np.ndarray):
        return [float(np.square(row, dtype=np.float64).mean()) if len(row) else 0.0 for row in rows]
    return torch.stack([row.double().square().sum() / max(len(row), 1) for row in rows]).tolist()


def convolve(
    rows: Sequence[Array],
    lengths: Sequence[int],
    delays: Sequence[int],
    spectrum: Callable[[int, int], Array],
    circular: bool = False,
) -> list[Array]:
    """Convolve each row (T,) with a response of `lengths[i]` samples, keeping T samples from `delays[i]` on.

    `spectrum(i, size)` gives the transform of the response of row `i`. `circular` wraps what lasts beyond the end to
    the beginning, as if the row had been playing before: right for a noise, wrong for speech.
    Rows of equal FFT size are transformed together; the size depends on the row and its response alone.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups[fft_size(len(row) + lengths[i] - 1)].append(i)
    out: list[Array] = list(rows)
    for size, members in groups.items():
        buffer = zeros_like(rows[0], (len(members), size))
        for j, i in enumerate(members):
            buffer[j, : len(rows[i])] = rows[i]
        spectra = rfft(buffer, size)
        for j, i in enumerate(members):
            spectra[j] *= spectrum(i, size)
        full = irfft(spectra, size)
        for j, i in enumerate(members):
            total = len(rows[i])
            if circular:
                out[i] = _wrap(full[j, : total + lengths[i] - 1], total)
            else:
                out[i] = full[j, delays[i] : delays[i] + total]
    return out


def _wrap(row: Array, period: int) -> Array:
    out = row[:period] * 1
    for start in range(period, len(row), period):
        tail = row[start : start + period]
        out[: len(tail)] += tail
    return out


def zeros_like(row: Array, shape: tuple[int, ...]) -> Array:
    """Zeros of `shape`, float32, of the kind and on the device of `row`."""
    if isinstance(row, np.ndarray):
        return np.zeros(shape, np.float32)
    return torch.zeros(shape, dtype=torch.float32, device=row.device)


def _workers(rows: np.ndarray) -> int:
    return min(torch.get_num_threads(), len(rows)) if rows.ndim > 1 else 1
