"""Reconstructing the clean spectrogram: the mean distance of magnitudes, one value per utterance over its valid part.

Both are compared at the reference level: scaled by what brings the clean signal to -24 dBFS RMS, the level of typical read
speech, so that a quiet corpus weighs as much as a loud one and λ means the same everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.frames import beside, mask_from_lengths
from ..models.heads import Enhancement, stft

REFERENCE_RMS = 10 ** (-24 / 20)


def enhancement_loss(estimate: Enhancement, clean: Tensor) -> Tensor:
    """Mean absolute difference of magnitudes over valid frames and bins; clean (B, T) → (B,)."""
    target = stft(clean, estimate.lengths)[0].abs()  # (B, K, N)
    gain = reference_gain(clean, estimate.lengths)[:, :, None]
    distance = ((estimate.magnitude - target) * gain).abs().mean(1)  # (B, N)
    frames = beside(estimate.frames, distance)
    return (distance * mask_from_lengths(frames, distance.shape[-1])).sum(-1) / frames


def reference_gain(clean: Tensor, lengths: Tensor) -> Tensor:
    """What brings each utterance (B, T) to the reference level, (B, 1); 1 for silence."""
    lengths = beside(lengths, clean)
    valid = mask_from_lengths(lengths, clean.shape[1])
    power = (clean.square() * valid).sum(1, keepdim=True) / lengths.clamp_min(1)[:, None]
    return torch.where(power > 1e-10, REFERENCE_RMS * torch.rsqrt(power.clamp_min(1e-10)), torch.ones_like(power))
