"""Reconstructing the clean spectrogram: L1, L2, multi-resolution STFT and SI-SDR, each with a weight of its own.

Every loss is one value per utterance over its valid part. The spectral losses compare at the reference level: both signals
are scaled by what brings the clean one to -24 dBFS RMS, the level of typical read speech, so that a quiet corpus weighs as
much as a loud one and λ means the same everywhere. One λ cannot serve losses whose scales differ by orders of magnitude, so
each loss has its default in `DEFAULT_WEIGHTS`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.frames import at_least_single, beside, mask_from_lengths
from ..models.heads import Enhancement, stft

REFERENCE_RMS = 10 ** (-24 / 20)

DEFAULT_WEIGHTS = {"l1": 2.0, "l2": 2.0, "mrstft": 0.2, "sisdr": 0.02}
"""λ of each loss. L1 has the paper's; see docs/method.md for how the others were set."""

RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
"""(FFT size, hop, window) of the multi-resolution STFT loss (arXiv 1910.11480)."""


def enhancement_loss(kind: str, estimate: Enhancement, clean: Tensor) -> Tensor:
    """The loss `kind` of an `estimate` against the `clean` waveforms (B, T) → (B,)."""
    if kind in ("l1", "l2"):
        return spectral_distance(estimate, clean, power=1 if kind == "l1" else 2)
    waveform = estimate.waveform(clean.shape[1])
    if kind == "mrstft":
        gain = reference_gain(clean, estimate.lengths)
        return multi_resolution_stft(waveform * gain, clean * gain, estimate.lengths)
    return -si_sdr(waveform, clean, estimate.lengths)


def spectral_distance(estimate: Enhancement, clean: Tensor, power: int) -> Tensor:
    """Mean |difference|^power of magnitudes over valid frames and bins; clean (B, T) → (B,)."""
    target = stft(clean, estimate.lengths)[0].abs()  # (B, K, N)
    gain = reference_gain(clean, estimate.lengths)[:, :, None]
    distance = ((estimate.magnitude - target) * gain).abs().pow(power).mean(1)  # (B, N)
    frames = beside(estimate.frames, distance)
    return (distance * mask_from_lengths(frames, distance.shape[-1])).sum(-1) / frames


def reference_gain(clean: Tensor, lengths: Tensor) -> Tensor:
    """What brings each utterance (B, T) to the reference level, (B, 1); 1 for silence."""
    lengths = beside(lengths, clean)
    valid = mask_from_lengths(lengths, clean.shape[1])
    power = (clean.square() * valid).sum(1, keepdim=True) / lengths.clamp_min(1)[:, None]
    return torch.where(power > 1e-10, REFERENCE_RMS * torch.rsqrt(power.clamp_min(1e-10)), torch.ones_like(power))


def multi_resolution_stft(estimate: Tensor, clean: Tensor, lengths: Tensor) -> Tensor:
    """Mean over resolutions of 0.5 spectral convergence + 0.5 log-magnitude distance; (B, T) twice → (B,)."""
    lengths = beside(lengths, clean)
    valid = mask_from_lengths(lengths, clean.shape[1])
    estimate, clean = estimate * valid, clean * valid
    total = torch.zeros(clean.shape[0], device=clean.device)
    for size, hop, window in RESOLUTIONS:
        mine, theirs = (_magnitude(x, size, hop, window) for x in (estimate, clean))  # (B, K, N)
        frames = torch.div(lengths, hop, rounding_mode="floor") + 1
        inside = mask_from_lengths(frames, mine.shape[-1])[:, None]
        difference = ((theirs - mine) * inside).square().sum((1, 2)).clamp_min(1e-12).sqrt()
        norm = (theirs * inside).square().sum((1, 2)).clamp_min(1e-12).sqrt()
        logs = ((theirs.log() - mine.log()).abs() * inside).sum((1, 2)) / (frames * mine.shape[1])
        total = total + 0.5 * difference / norm + 0.5 * logs
    return total / len(RESOLUTIONS)


def _magnitude(wave: Tensor, size: int, hop: int, window: int) -> Tensor:
    shape = torch.hann_window(window, device=wave.device)
    spectrum = torch.stft(wave, size, hop, window, shape, center=True, pad_mode="constant", return_complex=True)
    # The floor lies 100 dB below full scale; it bounds the logarithm and its gradient in silence.
    return (spectrum.real.square() + spectrum.imag.square()).clamp_min(1e-6).sqrt()


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
