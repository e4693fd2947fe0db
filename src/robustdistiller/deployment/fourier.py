"""The enhancement task's spectrogram and its inverse as convolutions: exact, real-valued, and known to every engine.

Shapes: B utterances, T samples, N spectrogram frames (hop 160), K bins (257).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..models.heads import BINS, HOP, N_FFT, WINDOW

# A frame of 512 points holds the 400-point window in its middle; the zeros around it are not computed.
_MARGIN = WINDOW // 2


def _basis() -> tuple[Tensor, Tensor, Tensor]:
    """Cosines and sines (K, WINDOW) at the window's place inside the frame, and the window (WINDOW,), in float64."""
    window = torch.hann_window(WINDOW, dtype=torch.float64)
    time = torch.arange(WINDOW, dtype=torch.float64) + (N_FFT - WINDOW) // 2
    phase = 2 * math.pi / N_FFT * torch.outer(torch.arange(BINS, dtype=torch.float64), time)
    return phase.cos(), phase.sin(), window


class Analysis(nn.Module):
    """`models.heads.stft` of whole utterances: (B, T) → real and imaginary parts (B, K, N) each."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        cosine, sine, window = _basis()
        self.register_buffer("kernel", torch.cat([cosine, -sine]).mul(window)[:, None].float())  # (2K, 1, WINDOW)

    def forward(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        padded = functional.pad(wave, (_MARGIN, _MARGIN))[:, None]
        real, imaginary = functional.conv1d(padded, self.kernel, stride=HOP).split(BINS, 1)
        return real, imaginary


class Synthesis(nn.Module):
    """`models.heads.istft`: real and imaginary parts (B, K, N) → (B, T), overlap-added and divided by the windows' sum."""

    kernel: Tensor
    envelope: Tensor

    def __init__(self) -> None:
        super().__init__()
        cosine, sine, window = _basis()
        # Every bin but the first and last stands for itself and its conjugate.
        weight = torch.full((BINS, 1), 2.0, dtype=torch.float64)
        weight[0] = weight[-1] = 1.0
        kernel = torch.cat([weight * cosine, -weight * sine]) * window / N_FFT
        self.register_buffer("kernel", kernel[:, None].float())  # (2K, 1, WINDOW)
        self.register_buffer("envelope", window.square()[None, None].float())  # (1, 1, WINDOW)

    def forward(self, real: Tensor, imaginary: Tensor, valid: Tensor, samples: int) -> Tensor:
        """valid: (B, 1, N) ones at the frames of an utterance, zeros beyond, where the spectrum must be zero as well."""
        wave = functional.conv_transpose1d(torch.cat([real, imaginary], 1), self.kernel, stride=HOP)
        total = functional.conv_transpose1d(valid, self.envelope, stride=HOP)
        return (wave / total.clamp_min(1e-11))[:, 0, _MARGIN : _MARGIN + samples]
