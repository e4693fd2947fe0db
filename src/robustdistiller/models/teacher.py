"""The teacher: a frozen universal speech representation whose clean hidden layers are the targets.

Frozen means frozen: it is in `eval` whatever the trainer does (the official code left its dropout on), needs no gradient,
stops at the highest target layer, and answers on the student's frame grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from ..errors import UserError
from .encoder import SpeechEncoder
from .frames import GRID, align_frames
from .hub import load_encoder
from .precision import DTYPES, autocast, pick_precision


@dataclass
class TeacherOutput:
    """Targets: hidden (B, L, F, D) float32 on the student's frame grid, and the valid frames lengths (B,)."""

    hidden: Tensor
    lengths: Tensor


class Teacher(nn.Module):
    """A frozen encoder with chosen target layers.

    Args:
        encoder: The pretrained encoder.
        layers: Target layers, from 1; by default the paper's 4, 8, 12 of 12, scaled to the depth.
        name: How messages call it.
        precision: auto, fp32, bf16 or fp16.
        target_norm: "layer" standardises every frame of a target, "auto" does so for pre-norm encoders, "none" never.

    Raises:
        UserError: A layer that the encoder does not have, or frames that are not 20 ms.
    """

    def __init__(
        self,
        encoder: SpeechEncoder,
        layers: tuple[int, ...] | None = None,
        name: str = "teacher",
        precision: str = "auto",
        target_norm: str = "auto",
    ):
        super().__init__()
        self.name = name
        self.source = encoder.source
        self.num_layers = encoder.num_layers
        self.num_parameters = sum(p.numel() for p in encoder.parameters())
        self.layers = tuple(layers) if layers else scaled_layers(self.num_layers)
        wrong = [layer for layer in self.layers if not 1 <= layer <= self.num_layers]
        if wrong:
            raise UserError(f"The teacher {name} has {self.num_layers} layers, not {wrong[0]}: correct teacher.layers.")
        if encoder.grid.stride != GRID.stride:
            raise UserError(f"The teacher {name} has frames of {encoder.grid.stride} samples; it takes 320.")
        self.hidden_size = encoder.hidden_size
        self.normalize = encoder.normalize
        self.precision = precision
        # Pre-norm encoders carry an unnormalised residual stream with a few huge dimensions.
        self.target_norm = "layer" if target_norm == "layer" or (target_norm == "auto" and encoder.pre_norm) else "none"
        self.encoder = encoder
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> Teacher:
        """A teacher is always in evaluation mode."""
        return super().train(False)

    def stop_at_highest(self) -> Teacher:
        """Free the layers above the highest target: they are computed for nothing during distillation."""
        self.encoder.truncate(max(self.layers))
        return self

    def settle(self, device: torch.device) -> Teacher:
        """Move to `device` for good: weights are stored as they are multiplied there.

        `autocast` casts those that learn nothing anew in every pass. The outputs keep their bits; the weights do not.
        """
        precision = pick_precision(self.precision, device, self.encoder)
        for module in self.encoder.modules():
            if parametrize.is_parametrized(module, "weight"):  # the position convolution's weight normalisation
                parametrize.remove_parametrizations(module, "weight")
            if precision != "fp32" and type(module) in (nn.Linear, nn.Conv1d):
                module.to(DTYPES[precision])
        return self.to(device)

    @torch.no_grad()
    def states(self, wave: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """All states [projected CNN output, layer 1, …] on the student's grid, (B, S, F, D) float32, and lengths (B,)."""
        return self._states(wave, lengths, None)

    def _states(self, wave: Tensor, lengths: Tensor | None, chosen: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        """`states`, those numbers only that are `chosen`: what is not asked for is never copied to single precision."""
        if lengths is None:
            lengths = torch.full((wave.shape[0],), wave.shape[1], device=wave.device)
        frames = GRID.count(lengths)
        if int(frames.min()) < 1:
            raise UserError("Some audio is shorter than one frame (400 samples, 25 ms): leave it out.")
        with autocast(wave.device, pick_precision(self.precision, wave.device, self.encoder)):
            output = self.encoder(wave, lengths)
        found = output.states if chosen is None else [output.states[number] for number in chosen]
        stacked = torch.stack([state.float() for state in found], 1)
        size = int(GRID.count(torch.tensor(wave.shape[1])))
        return align_frames(stacked, output.lengths, self.encoder.grid, GRID, size), frames

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> TeacherOutput:
        """Clean waveforms (B, T) with valid `lengths` (B,) samples → the target layers."""
        hidden, frames = self._states(wave, lengths, self.layers)  # (B, L, F, D)
        if self.target_norm == "layer":
            hidden = functional.layer_norm(hidden, hidden.shape[-1:])
        return TeacherOutput(hidden, frames)


def scaled_layers(depth: int) -> tuple[int, ...]:
    """The paper's layers 4, 8, 12 of 12, for a teacher of another depth: a third, two thirds, and the last."""
    return tuple(sorted({max(1, round(depth * part / 3)) for part in (1, 2, 3)}))


def load_teacher(
    name: str,
    layers: tuple[int, ...] | None = None,
    precision: str = "auto",
    device: torch.device | str | None = None,
    target_norm: str = "auto",
) -> Teacher:
    """Load a teacher: any of docs/teachers.md.

    Args:
        name: A hub name, a folder, or the shipped ``mini-hubert``.
        layers: As of `Teacher`, like all that follows.
        precision: Of its computation.
        device: Where it is put; the CPU by default.
        target_norm: How targets are standardised.

    Returns:
        The teacher, frozen and in evaluation mode.

    Raises:
        UserError: The model cannot be loaded, or does not have such a layer.

    Example:
        >>> import torch
        >>> from robustdistiller import load_teacher
        >>> teacher = load_teacher("mini-hubert", layers=(4, 8, 12))
        >>> teacher(torch.randn(1, 16000) * 0.05).hidden.shape  # (B, L, F, D)
        torch.Size([1, 3, 49, 256])
    """
    teacher = Teacher(load_encoder(name), layers, name, precision, target_norm)
    return teacher.to(device) if device is not None else teacher
