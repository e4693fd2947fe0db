"""Convolution and power of utterances of any length, with the same bits whatever they are batched with.

Rows are one-dimensional and hold valid samples only: NumPy arrays on a processor (SciPy's FFT gives every row the same
bits whatever its neighbours, PyTorch's does not), PyTorch tensors on any other device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import scipy.fft
import torch

from ..audio.io import SAMPLE_RATE

Array: TypeAlias = Any  # np.ndarray or torch.Tensor
Power: TypeAlias = Any  # float, or a tensor without axes on the device of the row, where reading it would wait
BLOCK = 4096  # samples that are summed in float32
LOWEST_HZ = 20.0  # below is infrasound: no part of a level or an SNR
ORDER = 8  # of the high pass: 48 dB an octave
EDGE = SAMPLE_RATE // 2  # samples that the high pass looks beyond either end: its ringing has died by then


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


def mean_power(row: Array) -> Power:
    """The mean square of a row: blocks in float32, their sum in float64."""
    if isinstance(row, np.ndarray):
        return _energy(row) / len(row) if len(row) else 0.0
    return row.double().square().sum() / max(len(row), 1)


def audible_power(row: Array) -> Power:
    """The mean square of a row without its mean and infrasound: what levels and SNRs refer to."""
    return mean_power(high_pass(row))


def gain(wanted: Power, found: Power) -> Power:
    """The factor that brings a row of the power `found` to `wanted`; 0 where it is silent."""
    if isinstance(found, torch.Tensor):
        return torch.where(found > 0, (wanted / found).sqrt(), 0.0)
    return (wanted / found) ** 0.5 if found > 0 else 0.0


def choose(condition: Any, yes: Array, no: Array) -> Array:
    """`yes` where the condition on a `Power` holds, else `no`."""
    if isinstance(condition, torch.Tensor):
        return torch.where(condition, yes, no)
    return yes if condition else no


def high_pass(row: Array) -> Array:
    """A row (T,) without its mean and what lies below 20 Hz, in phase.

    Beyond its ends the row is continued by odd reflection, so that a rumble is not cut off there with a click.
    """
    edge = min(EDGE, len(row) - 1)
    if edge < 1:
        return row * 0
    joined, flip = (np.concatenate, np.flip) if isinstance(row, np.ndarray) else (torch.cat, lambda part: part.flip(0))
    padded = joined([2 * row[0] - flip(row[1 : edge + 1]), row, 2 * row[-1] - flip(row[-edge - 1 : -1])])
    padded = padded - padded.mean()
    size = fft_size(len(padded))
    spectrum = rfft(padded, size)
    spectrum *= _above_lowest(size, None if isinstance(row, np.ndarray) else row.device)
    return irfft(spectrum, size)[edge : edge + len(row)]


@lru_cache(64)
def _above_lowest(size: int, device: torch.device | None) -> Array:
    """The magnitude of the high pass for transforms of `size`, (size // 2 + 1,)."""
    hertz = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 1e-3)
    magnitude = ((1 + (LOWEST_HZ / hertz) ** (2 * ORDER)) ** -0.5).astype(np.float32)
    return magnitude if device is None else on_device(magnitude, device)


def on_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy on `device`, for which the host does not wait."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _energy(row: np.ndarray) -> float:
    whole = len(row) - len(row) % BLOCK
    blocks, rest = row[:whole].reshape(-1, BLOCK), row[whole:]
    return float(np.einsum("ij,ij->i", blocks, blocks).sum(dtype=np.float64) + np.einsum("i,i->", rest, rest))


def convolve(row: Array, length: int, delay: int, spectrum: Callable[[int], Array], circular: bool = False) -> Array:
    """Convolve a row (T,) with a response of `length` samples, keeping T samples from `delay` on.

    `spectrum(size)` gives the transform of the response. `circular` wraps what lasts beyond the end to the beginning, as
    if the row had been playing before: right for a noise, wrong for speech.
    The row is cut into pieces a few times as long as its response (overlap-save), whose transforms stay in the processor's
    cache: a fifth of the time of a transform of the whole row.
    """
    total = len(row) + length - 1
    size = fft_size(min(total, 3 * length))
    spectra = rfft(_overlapping(row, size, length - 1), size)  # (pieces, size // 2 + 1)
    spectra *= spectrum(size)
    full = irfft(spectra, size)[:, length - 1 :].reshape(-1)  # the rest of a piece wraps around
    return _wrap(full[:total], len(row)) if circular else full[delay : delay + len(row)]


def _overlapping(row: Array, size: int, overlap: int) -> Array:
    """Pieces of `size` samples, each beginning with the last `overlap` of the one before it: (pieces, size)."""
    hop = size - overlap
    count = -(-(len(row) + overlap) // hop)
    padded = zeros_like(row, (count * hop + overlap,))
    padded[overlap : overlap + len(row)] = row
    if isinstance(padded, np.ndarray):
        return np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    return padded.unfold(0, size, hop)


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
