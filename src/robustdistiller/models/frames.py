"""Time on the frame axis: how many frames a waveform has, where they are centred, and how to go from one grid to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..audio.batching import RECEPTIVE_FIELD, STRIDE
from ..audio.io import SAMPLE_RATE
from ..errors import UserError


@dataclass(frozen=True)
class FrameGrid:
    """Frame f of a grid is centred at sample ``stride · f + offset`` and needs ``field`` samples in all."""

    stride: int = STRIDE
    offset: float = 200.0
    field: int = RECEPTIVE_FIELD

    def count(self, samples: Tensor) -> Tensor:
        """Number of whole frames in `samples` samples, any integer shape; at least 0."""
        return torch.div(samples - self.field, self.stride, rounding_mode="floor").add(1).clamp_min(0)

    def times(self, frames: int) -> Tensor:
        """Centres of the first `frames` frames in seconds, (F,)."""
        return (torch.arange(frames) * self.stride + self.offset) / SAMPLE_RATE


GRID = FrameGrid()
"""The grid of the students and of every convolutional teacher: 20 ms steps, 25 ms fields."""


def at_least_single(x: Tensor) -> Tensor:
    """Half precision becomes float32; what is finer stays, so that a model in float64 computes in float64 throughout."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def beside(lengths: Tensor, x: Tensor) -> Tensor:
    """`lengths` on the device of `x`. In training they stay integers of the host, where reading them waits for nothing."""
    return lengths.to(x.device, non_blocking=True)


def mask_from_lengths(lengths: Tensor, size: int) -> Tensor:
    """(B,) lengths → (B, size) boolean mask, True where valid."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def align_frames(features: Tensor, lengths: Tensor, source: FrameGrid, target: FrameGrid, frames: int) -> Tensor:
    """Move features (..., F, D) with valid `lengths` (B,) from the grid `source` to `frames` frames of the grid `target`.

    Each target frame takes the valid source frame nearest in time, so that a teacher with a frame more or less than the
    student, or with other frame centres (Whisper), is aligned by time. The leading axis of `features` is the batch.
    """
    if source == target and features.shape[-2] == frames:
        return features
    centres = torch.arange(frames, device=features.device) * target.stride + target.offset
    wanted = (centres - source.offset) / source.stride
    lengths = beside(lengths, features)
    nearest = torch.floor(wanted + 0.5).long()[None, :]  # (1, F)
    nearest = torch.minimum(nearest.clamp_min(0), (lengths[:, None] - 1).clamp_min(0))  # (B, F)
    index = nearest.view(nearest.shape[0], *(1,) * (features.dim() - 3), frames, 1)
    return torch.gather(features, -2, index.expand(*features.shape[:-2], frames, features.shape[-1]))


def checked_batch(wave: Tensor, lengths: Tensor | Sequence[int] | None) -> tuple[Tensor, Tensor | None]:
    """The gate for a batch that a caller gives.

    Args:
        wave: Waveforms (B, T) of finite floats.
        lengths: Valid samples (B,), each in 0 … T; a tensor or list of integers, or None for T everywhere.

    Returns:
        `wave` as it is, and `lengths` as int64 on its device, or None.

    Raises:
        UserError: For anything else.
    """
    if not isinstance(wave, Tensor) or wave.ndim != 2 or not wave.is_floating_point() or not wave.numel():
        what = f"{wave.dtype} of shape {tuple(wave.shape)}" if isinstance(wave, Tensor) else type(wave).__name__
        raise UserError(f"Waveforms are tensors (batch, samples) in ±1 (16-bit samples divided by 32768), not {what}.")
    if not bool(torch.isfinite(wave).all()):
        raise UserError("The waveforms hold samples that are not numbers: repair or leave out those recordings.")
    if lengths is None:
        return wave, None
    try:
        found = torch.as_tensor(lengths, device=wave.device)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError("The lengths are no numbers: give the valid samples of every row.") from error
    if found.dtype not in (torch.int64, torch.int32, torch.int16) or found.shape != wave.shape[:1]:
        raise UserError(f"Lengths are {len(wave)} integers, not {found.dtype} of shape {tuple(found.shape)}.")
    lowest, highest = int(found.min()), int(found.max())
    if (
        lowest < 0 or highest > wave.shape[1]
    ):  # what has no whole frame is refused by the encoder, whose frames they are
        raise UserError(f"Lengths lie between 0 and the {wave.shape[1]} samples of a row, not {lowest} and {highest}.")
    return wave, found.long()
