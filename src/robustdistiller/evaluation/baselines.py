"""Hand-made features as models like any other: log-mel and MFCC on the encoders' frame grid.

Frame f covers samples 320 f … 320 f + 400 (20 ms steps, 25 ms Hann windows), exactly the field of a convolutional encoder,
so no frame ever looks past the end of its utterance. As in SUPERB, first and second differences are appended.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..audio.io import SAMPLE_RATE
from ..models.frames import GRID

HOP, WINDOW, N_FFT = GRID.stride, GRID.field, 512


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
        self.register_buffer("cosines", cosine_transform(bands)[:, :coefficients])  # (bands, coefficients)

    def static(self, wave: Tensor) -> Tensor:
        """Waveforms (B, T) → cepstra (B, F, coefficients)."""
        return super().static(wave) @ self.cosines


def mel_filters(bands: int, n_fft: int = N_FFT, sampling_rate: int = SAMPLE_RATE) -> Tensor:
    """Triangles of unit height, equally spaced on the mel scale 2595 log10(1 + f / 700) from 0 to half the sampling rate.

    Shape (n_fft // 2 + 1, bands).
    """
    top = 2595.0 * math.log10(1 + sampling_rate / 2 / 700.0)
    corners = 700.0 * (10 ** (torch.linspace(0, top, bands + 2, dtype=torch.float64) / 2595.0) - 1)
    hertz = torch.linspace(0, sampling_rate / 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    rising = (hertz - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - hertz) / (corners[2:] - corners[1:-1])
    return torch.minimum(rising, falling).clamp_min(0).float()


def cosine_transform(size: int) -> Tensor:
    """The orthonormal DCT-II as a (size, size) matrix; column k is the k-th cosine."""
    n, k = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)[None]
    matrix = torch.cos(math.pi / size * (n + 0.5) * k) * math.sqrt(2.0 / size)
    matrix[:, 0] /= math.sqrt(2.0)
    return matrix.float()


def differences(features: Tensor, lengths: Tensor, reach: int = 2) -> Tensor:
    """Regression slopes over ±`reach` frames of (B, F, D); beyond an utterance its first or last valid frame is repeated."""
    index = torch.arange(features.shape[1], device=features.device)
    last = (lengths - 1).clamp_min(0)[:, None]
    slope = torch.zeros_like(features)
    for step in range(1, reach + 1):
        ahead = torch.minimum(index[None] + step, last)[..., None].expand_as(features)
        behind = (torch.minimum(index[None], last) - step).clamp_min(0)[..., None].expand_as(features)
        slope = slope + step * (features.gather(1, ahead) - features.gather(1, behind))
    return slope / (2 * sum(step * step for step in range(1, reach + 1)))
