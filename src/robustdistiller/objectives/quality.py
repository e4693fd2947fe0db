"""How good enhanced speech is, one utterance at a time: SI-SDR, STOI, PESQ, DNSMOS, as far as their packages are installed."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..audio.io import SAMPLE_RATE
from ..models.frames import at_least_single, beside, mask_from_lengths

Wave = NDArray[np.float64]

_PACKAGES = {"stoi": "pystoi", "pesq": "pesq", "dnsmos": "speechmos"}


def available_quality() -> list[str]:
    """The measures whose packages are installed; SI-SDR always is."""
    return ["si_sdr", *(name for name, package in _PACKAGES.items() if importlib.util.find_spec(package))]


def speech_quality(estimate: Wave, reference: Wave, wanted: Sequence[str]) -> dict[str, float]:
    """Judge one utterance.

    Args:
        estimate: The enhanced or contaminated speech (T,) at 16 kHz.
        reference: The clean speech (T,).
        wanted: Measures, of `available_quality`.

    Returns:
        Each measure by its name; nan where it is not defined, such as STOI where there is too little speech.
    """
    return {name: _MEASURES[name](estimate, reference) for name in wanted}


def si_sdr(estimate: Tensor, reference: Tensor, lengths: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB (arXiv 1811.02508) over valid samples; (B, T) twice → (B,)."""
    lengths = beside(lengths, reference)
    valid = mask_from_lengths(lengths, reference.shape[1])
    count = lengths.clamp_min(1)[:, None]

    def centre(x: Tensor) -> Tensor:
        return (x - (x * valid).sum(1, keepdim=True) / count) * valid

    estimate, reference = centre(at_least_single(estimate)), centre(at_least_single(reference))
    eps = 1e-8
    scale = (estimate * reference).sum(1, keepdim=True) / (reference.square().sum(1, keepdim=True) + eps)
    target = scale * reference
    noise = estimate - target
    return 10 * torch.log10((target.square().sum(1) + eps) / (noise.square().sum(1) + eps))


def _si_sdr(estimate: Wave, reference: Wave) -> float:
    first, second = (torch.from_numpy(np.asarray(wave, dtype=np.float64))[None] for wave in (estimate, reference))
    return float(si_sdr(first, second, torch.tensor([len(reference)])))


def _stoi(estimate: Wave, reference: Wave) -> float:
    from pystoi import stoi

    with warnings.catch_warnings():
        # pystoi warns, and answers 1e-5, when there is too little speech
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(stoi(reference, estimate, SAMPLE_RATE))
        except (RuntimeWarning, ValueError):
            return float("nan")


def _pesq(estimate: Wave, reference: Wave) -> float:
    from pesq import PesqError, pesq

    try:
        return float(pesq(SAMPLE_RATE, reference, estimate, "wb"))
    except (PesqError, ValueError, ZeroDivisionError):
        return float("nan")


def _dnsmos(estimate: Wave, reference: Wave) -> float:
    from speechmos import dnsmos

    return float(dnsmos.run(np.clip(estimate, -1, 1), sr=SAMPLE_RATE)["ovrl_mos"])


_MEASURES: dict[str, Callable[[Wave, Wave], float]] = {
    "si_sdr": _si_sdr, "stoi": _stoi, "pesq": _pesq, "dnsmos": _dnsmos
}  # fmt: skip
