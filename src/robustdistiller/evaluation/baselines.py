"""Hand-made features as models like any other: log-mel and MFCC on the encoders' frame grid.

Frame f covers samples 320 f … 320 f + 400 (20 ms steps, 25 ms Hann windows), exactly the field of a convolutional encoder,
so no frame ever looks past the end of its utterance. As in SUPERB, first and second differences are appended.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from ..audio.io import SAMPLE_RATE
from ..models.frames import GRID

HOP, WINDOW, N_FFT = GRID.stride, GRID.field, 512
REACH = 2  # frames on either side of a slope


class LogMel(nn.Module):
    """Wave → 80 log-mel bands with differences: one state of 240 dimensions."""

    window: Tensor
    filters: Tensor

    def __init__(self, bands: int = 80):
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW))
        self.register_buffer("filters", mel_filters(bands))  # (K, bands)

    def static(self, wave: Tensor) -> Tensor:
        """Waveforms (B, T) → log energies (B, F, bands)."""
        frames = wave.unfold(1, WINDOW, HOP) * self.window  # (B, F, 400)
        power = torch.fft.rfft(frames, N_FFT).abs().square()
        return (power @ self.filters).clamp_min(1e-10).log()

    def states(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, T) with valid `lengths` (B,) samples → (B, 1, F, D) and valid frames (B,)."""
        frames = torch.div(lengths - WINDOW, HOP, rounding_mode="floor") + 1
        static = self.static(wave)
        first = differences(static, frames)
        return torch.cat([static, first, differences(first, frames)], -1)[:, None], frames


class MFCC(LogMel):
    """Wave → 13 mel-frequency cepstral coefficients of 40 bands with differences: one state of 39 dimensions."""

    cosines: Tensor

    def __init__(self, coefficients: int = 13, bands: int = 40):
        super().__init__(bands)
        cosines = scipy.fft.dct(np.eye(bands), norm="ortho")[:, :coefficients]  # (bands, coefficients)
        self.register_buffer("cosines", torch.from_numpy(cosines).float())

    def static(self, wave: Tensor) -> Tensor:
        """Waveforms (B, T) → cepstra (B, F, coefficients)."""
        return super().static(wave) @ self.cosines


def mel_filters(bands: int, n_fft: int = N_FFT) -> Tensor:
    """Triangles of unit height, equally spaced on the mel scale 2595 log10(1 + f / 700): (n_fft // 2 + 1, bands)."""
    filters = mel_filter_bank(n_fft // 2 + 1, bands, 0, SAMPLE_RATE / 2, SAMPLE_RATE, mel_scale="htk")
    return torch.from_numpy(filters).float()


def differences(features: Tensor, lengths: Tensor) -> Tensor:
    """Regression slopes over ±`REACH` frames of (B, F, D); beyond an utterance its first or last valid frame is repeated."""
    index = torch.arange(features.shape[1], device=features.device)
    last = (lengths - 1).clamp_min(0)[:, None]
    slope = torch.zeros_like(features)
    for step in range(1, REACH + 1):
        ahead = torch.minimum(index[None] + step, last)[..., None].expand_as(features)
        behind = (torch.minimum(index[None], last) - step).clamp_min(0)[..., None].expand_as(features)
        slope = slope + step * (features.gather(1, ahead) - features.gather(1, behind))
    return slope / (2 * sum(step * step for step in range(1, REACH + 1)))
