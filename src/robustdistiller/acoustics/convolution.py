"""Convolution and power of utterances (..., T) of one length: NumPy arrays on a processor, PyTorch tensors on another device.

They hold valid samples only. A processor takes them one at a time, so that each has the same bits whatever it is batched with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import scipy.fft
import torch

from ..audio.io import SAMPLE_RATE

Array: TypeAlias = Any  # np.ndarray or torch.Tensor
Power: TypeAlias = Any  # (...) in float64: a float or an array; on another device a tensor, which takes a wait to read
BLOCK = 4096  # samples that are summed in float32
LOWEST_HZ = 20.0  # below is infrasound: no part of a level or an SNR
ORDER = 8  # of the high pass: 48 dB an octave
EDGE = SAMPLE_RATE // 2  # samples that the high pass looks beyond either end: its ringing has died by then
COARSE = 16  # samples of a step of what the high pass takes away


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


def mean_power(rows: Array) -> Power:
    """The mean squares of (..., T): blocks in float32, their sum in float64."""
    if not isinstance(rows, np.ndarray):
        return rows.double().square().sum(-1) / max(rows.shape[-1], 1)
    if rows.ndim > 1:
        return np.array([mean_power(row) for row in rows])
    return _energy(rows) / len(rows) if len(rows) else 0.0


def audible_power(rows: Array) -> Power:
    """The mean squares of (..., T) without mean and infrasound: what levels and SNRs refer to."""
    return mean_power(high_pass(rows))


def gain(wanted: Power, found: Power) -> Power:
    """The factors (R,) that bring rows of the powers `found` (R,) to `wanted`; 0 where they are silent."""
    if isinstance(found, torch.Tensor):
        return torch.where(found > 0, (wanted / found).sqrt(), 0.0)
    return np.sqrt(np.divide(wanted, found, out=np.zeros_like(found), where=found > 0))


def scaled(rows: Array, factors: Array) -> Array:
    """(R, T) times (R,), in float32."""
    factors = factors[:, None]
    return rows * (factors.astype(np.float32) if isinstance(rows, np.ndarray) else factors.float())


def choose(condition: Array, yes: Array, no: Array) -> Array:
    """(R, T): the rows of `yes` where a condition (R,) holds, else those of `no`."""
    if not isinstance(yes, np.ndarray):
        return torch.where(condition[:, None], yes, no)
    return yes if condition.all() else np.where(condition[:, None], yes, no)


def high_pass(rows: Array) -> Array:
    """(..., T) without the mean and what lies below 20 Hz, in phase.

    Beyond its ends a row is continued by odd reflection, so that a rumble is not cut off there with a click. What is taken away
    is so slow that it is found at a sixteenth of the rate, and has straight lines between: a fifth of the time.
    """
    count = rows.shape[-1]
    edge = min(EDGE, count - 1)
    if edge < 1:
        return rows * 0
    start = -(-edge // COARSE) * COARSE
    blocks = -(-(start + count + edge) // COARSE) + 1  # the last one stays silent
    padded = zeros_like(rows, (*rows.shape[:-1], blocks * COARSE))
    flip: Any = np.flip if isinstance(rows, np.ndarray) else torch.flip
    padded[..., start - edge : start] = 2 * rows[..., :1] - flip(rows[..., 1 : edge + 1], (-1,))
    padded[..., start : start + count] = rows
    padded[..., start + count : start + count + edge] = 2 * rows[..., -1:] - flip(rows[..., -edge - 1 : -1], (-1,))
    valid = padded[..., start - edge : start + count + edge]
    valid -= valid.mean(-1)[..., None]
    size, device = fft_size(blocks), device_of(rows)
    hats, below = _hats(device), _below_lowest(size, device)
    parts = padded.reshape(*rows.shape[:-1], blocks, COARSE) @ hats  # (..., blocks, 2): of the steps at both ends
    steps = parts[..., 0] * 1
    steps[..., 1:] += parts[..., :-1, 1]
    parts[..., 0] = irfft(rfft(steps, size) * below, size)[..., :blocks]
    parts[..., :-1, 1] = parts[..., 1:, 0]
    lines = (parts @ hats.T).reshape(padded.shape)
    return padded[..., start : start + count] - lines[..., start : start + count]


@lru_cache(64)
def _below_lowest(size: int, device: torch.device | None) -> Array:
    """What of the frequencies (size // 2 + 1,) of steps the high pass takes away, for hats before and after."""
    hertz = np.maximum(np.fft.rfftfreq(size, COARSE / SAMPLE_RATE), 1e-3)
    phase = np.pi * hertz / SAMPLE_RATE
    hat = (np.sin(COARSE * phase) / np.sin(phase)) ** 2 / COARSE  # the spectrum of a hat, whose sum is COARSE
    taken = 1 - (1 + (LOWEST_HZ / hertz) ** (2 * ORDER)) ** -0.5
    return on_device((COARSE * taken / hat**2).astype(np.float32), device)


@lru_cache(8)
def _hats(device: torch.device | None) -> Array:
    """The falling and the rising side of the hat over a step of the high pass, (COARSE, 2)."""
    rising = np.arange(COARSE, dtype=np.float32) / COARSE
    return on_device(np.stack([1 - rising, rising], 1), device)


def device_of(rows: Array) -> torch.device | None:
    """Where a tensor is; None for an array."""
    return None if isinstance(rows, np.ndarray) else rows.device


def on_device(values: np.ndarray, device: torch.device | None) -> Array:
    """A tensor on `device`, for which the host does not wait; the values as they are where there is none."""
    if device is None:
        return values
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _energy(row: np.ndarray) -> float:
    whole = len(row) - len(row) % BLOCK
    blocks, rest = row[:whole].reshape(-1, BLOCK), row[whole:]
    return float(np.einsum("ij,ij->i", blocks, blocks).sum(dtype=np.float64) + np.einsum("i,i->", rest, rest))


def convolve(rows: Array, length: int, delay: int, spectrum: Callable[[int], Array], circular: bool = False) -> Array:
    """Convolve (..., T) with responses of `length` samples, keeping T samples from `delay` on.

    `spectrum(size)` gives the transforms of the responses, (..., size // 2 + 1). `circular` wraps what lasts beyond the end to
    the beginning, as if the row had been playing before: right for a noise, wrong for speech.
    A row is cut into pieces a few times as long as its response (overlap-save), whose transforms stay in the processor's
    cache: a fifth of the time of a transform of the whole row.
    """
    count = rows.shape[-1]
    total = count + length - 1
    size = fft_size(min(total, 3 * length))
    spectra = rfft(_overlapping(rows, size, length - 1), size)  # (..., pieces, size // 2 + 1)
    spectra *= spectrum(size)[..., None, :]
    full = irfft(spectra, size)[..., length - 1 :]  # the rest of a piece wraps around
    full = full.reshape(*rows.shape[:-1], -1)
    return _wrap(full[..., :total], count) if circular else full[..., delay : delay + count]


def _overlapping(rows: Array, size: int, overlap: int) -> Array:
    """Pieces of `size` samples, each beginning with the last `overlap` of the one before it: (..., pieces, size)."""
    hop, count = size - overlap, rows.shape[-1]
    pieces = -(-(count + overlap) // hop)
    padded = zeros_like(rows, (*rows.shape[:-1], pieces * hop + overlap))
    padded[..., overlap : overlap + count] = rows
    if isinstance(padded, np.ndarray):
        return np.lib.stride_tricks.sliding_window_view(padded, size, -1)[..., ::hop, :]
    return padded.unfold(-1, size, hop)


def _wrap(rows: Array, period: int) -> Array:
    out = rows[..., :period] * 1
    for start in range(period, rows.shape[-1], period):
        tail = rows[..., start : start + period]
        out[..., : tail.shape[-1]] += tail
    return out


def zeros_like(rows: Array, shape: tuple[int, ...]) -> Array:
    """Zeros of `shape`, float32, of the kind and on the device of `rows`."""
    if isinstance(rows, np.ndarray):
        return np.zeros(shape, np.float32)
    return torch.zeros(shape, dtype=torch.float32, device=rows.device)


def _workers(rows: np.ndarray) -> int:
    return min(torch.get_num_threads(), math.prod(rows.shape[:-1]))
