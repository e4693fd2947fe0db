"""The networks as they are exported: a waveform goes in, and everything from its normalisation on is inside.

They compute what `Student.states`, `Student.enhance` and a task head compute, without a decision that depends on the data, and
are as independent of padding as those. Shapes: B utterances, T samples, F frames, S states, D hidden, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UserError
from ..models.encoder import ConvEncoder, LengthAwareGroupNorm, normalize_wave
from ..models.frames import GRID, align_frames, mask_from_lengths
from ..models.heads import BINS, HOP, MASK_GRID, SPECTRUM_GRID
from ..models.streaming import layer_outputs
from ..models.student import Student
from .fourier import Analysis, Synthesis
from .tracing import lstm, trace


class FirstBlock(nn.Module):
    """The first convolution, its GroupNorm over the valid frames, and the activation: one small matrix product.

    The norm needs the mean and variance of w · x over time for every channel, x being the patch of samples under the
    kernel w. They are w · E[x] and wᵀ Cov[x] w: the moments of ten numbers instead of those of 512 channels, so that the
    widest tensor of the network is written once, and leaving the padding out costs nothing. The moments are taken in
    float64, because a filter may look where the signal has almost no energy.
    """

    weight: Tensor
    scale: Tensor
    shift: Tensor
    pick: Tensor

    def __init__(self, block: Any):
        super().__init__()
        convolution, norm = block.conv, block.layer_norm
        self.size, self.stride, self.eps = convolution.kernel_size[0], convolution.stride[0], norm.eps
        self.activation = block.activation
        # The convolution's own bias is removed again by the norm.
        self.register_buffer("weight", convolution.weight.detach()[:, 0].double())  # (C, k)
        self.register_buffer("scale", norm.weight.detach().double())  # (C,)
        self.register_buffer("shift", norm.bias.detach().double())
        self.register_buffer("pick", torch.eye(self.size)[:, None])  # cuts the waveform into patches

    def forward(self, wave: Tensor, lengths: Tensor) -> Tensor:
        """(B, T), (B,) samples → (B, C, F)"""
        patches = functional.conv1d(wave[:, None], self.pick, stride=self.stride)  # (B, k, F)
        size = patches.shape[-1]
        frames = torch.div(lengths - self.size, self.stride, rounding_mode="floor") + 1
        valid = mask_from_lengths(frames, size)[:, None]
        count = frames[:, None, None].double()
        mean = (patches.double() * valid).sum(-1, keepdim=True) / count  # (B, k, 1)
        centred = (patches.double() - mean) * valid
        # The second factor is cut out again instead of transposed: onnxruntime before 1.26 fuses a transpose and a product
        # of float64 into an operator that it does not have.
        place = torch.arange(size)[:, None] * self.stride + torch.arange(self.size)  # (F, k)
        rows = wave.index_select(1, place.flatten()).double().reshape(-1, size, self.size)
        covariance = centred @ (rows - mean.reshape(-1, 1, self.size)) / count  # (B, k, k)
        variance = ((self.weight @ covariance) * self.weight).sum(-1)  # (B, C)
        weight = (self.scale * torch.rsqrt(variance + self.eps))[..., None] * self.weight  # (B, C, k)
        bias = self.shift[:, None] - weight @ mean  # (B, C, 1)
        # A row of ones carries the bias, so that no second pass over the result is needed.
        patches = torch.cat([patches, torch.ones_like(patches[:, :1])], 1)
        return self.activation(torch.cat([weight, bias], 2).float() @ patches)  # type: ignore[no-any-return]


class EncoderGraph(nn.Module):
    """wave (B, T), lengths (B,) → states (B, S, F, D) with zeros beyond the valid frames, and frames (B,).

    predictions: also the predicted teacher layers, after the states; last: only the last state of the Transformer.
    The student must be freshly loaded: it is changed.
    """

    def __init__(self, student: Student, predictions: bool = False, last: bool = False):
        super().__init__()
        self.encoder, self.last = prepare_encoder(student.encoder), last
        self.names = student.states_names[-1:] if last else graph_states(student, predictions)
        self.heads = student.heads if predictions else None
        first, *others = self.encoder.model.feature_extractor.conv_layers
        self.normed = isinstance(getattr(first, "layer_norm", None), LengthAwareGroupNorm)
        self.first = FirstBlock(first) if self.normed else first
        self.convolutions = nn.Sequential(*others)

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.encoder.normalize:
            # Engines sum a minute of float32 samples one after the other, which costs the mean its digits.
            wave = normalize_wave(wave.double(), lengths).float()
        x = self.convolutions(self.first(wave, lengths) if self.normed else self.first(wave[:, None]))
        projected = self.encoder.model.feature_projection(x.transpose(1, 2))
        projected = projected[0] if isinstance(projected, tuple) else projected
        frames = self.encoder.grid.count(lengths)
        valid = mask_from_lengths(frames, projected.shape[1])
        states = torch.stack([projected, *self._transform(projected, valid)], 1)
        if self.last:
            states = states[:, -1:]
        elif self.heads is not None:
            states = torch.cat([states, self.heads(states.unbind(1))], 1)
        return states * valid[:, None, :, None], frames

    def _transform(self, projected: Tensor, valid: Tensor) -> list[Tensor]:
        """The Transformer's layers, (B, F, D) each. Beside a product, what `transformers` silences padding with is slow."""
        network = self.encoder.model.encoder
        if type(network).__name__ != "HubertEncoder":
            return self.encoder.transform(projected, valid)
        x = projected * valid[..., None]
        x = network.layer_norm(x + network.pos_conv_embed(x))
        mask = torch.where(valid, 0.0, torch.finfo(x.dtype).min)[:, None, None]  # (B, 1, 1, F)
        return layer_outputs(network.layers, x, mask)


class EnhancerGraph(EncoderGraph):
    """wave (B, T), lengths (B,) → the enhanced waveform (B, T), zeros beyond its end."""

    def __init__(self, student: Student):
        super().__init__(student)
        head = student.enhancement_head()
        parts = dict(lstm=RecurrentLayers(head.lstm), mask=head.mask, analysis=Analysis(), synthesis=Synthesis())
        self.head = nn.ModuleDict(parts)  # what stays in float32, see quantise.py
        self.frame_rate = head.frame_rate
        named = {"cnn": 0, "last": student.encoder.num_layers}
        self.state = int(named.get(str(student.tap), student.tap))

    def forward(self, wave: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        states, frames = super().forward(wave, lengths)
        wave = wave * mask_from_lengths(lengths, wave.shape[1])
        real, imaginary = self.head["analysis"](wave)  # (B, K, N)
        count = torch.div(lengths, HOP, rounding_mode="floor") + 1
        valid = mask_from_lengths(count, real.shape[-1])[:, None].float()  # (B, 1, N)
        x, size = states[:, self.state], real.shape[-1]  # (B, F, D)
        if self.frame_rate == 50:
            masks = self.head["mask"](self.head["lstm"](x, frames))  # (B, F, 2K)
            masks = masks.reshape(x.shape[0], -1, BINS)
            masks = align_frames(masks, 2 * frames, MASK_GRID, SPECTRUM_GRID, size)  # (B, N, K)
        else:
            masks = self.head["mask"](self.head["lstm"](align_frames(x, frames, GRID, SPECTRUM_GRID, size), count))
        mask = torch.sigmoid(masks).transpose(1, 2) * valid
        enhanced = self.head["synthesis"](mask * real, mask * imaginary, valid, wave.shape[1])
        return enhanced * mask_from_lengths(lengths, wave.shape[1])  # type: ignore[no-any-return]


class ClassifierGraph(EncoderGraph):
    """wave (B, T), lengths (B,) → the probabilities of every slot's labels, [(B, classes), …].

    head: averaged states (B, S, D) → logits per slot; level: of the waveform, in dBFS, or None to take it as it is
    """

    def __init__(self, student: Student, head: nn.Module, level: float | None = None, predictions: bool = False):
        super().__init__(student, predictions)
        self.head, self.level = head, level

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        if self.level is not None:
            wave = at_level(wave, lengths, self.level)
        return self.classify(*super().forward(wave, lengths))

    def classify(self, states: Tensor, frames: Tensor) -> tuple[Tensor, ...]:
        """states (B, S, F, D) with zeros beyond the valid `frames` (B,)"""
        mean = states.sum(2) / frames[:, None, None]
        return tuple(logits.softmax(-1) for logits in self.head(mean))


def at_level(wave: Tensor, lengths: Tensor, dbfs: float) -> Tensor:
    """wave (B, T), lengths (B,) → the waveform at an RMS level of `dbfs` dB; silence stays as it is."""
    power = (wave * mask_from_lengths(lengths, wave.shape[1])).square().sum(1) / lengths  # (B,)
    gain = torch.where(power > 0, 10 ** (dbfs / 20) * torch.rsqrt(power.clamp_min(1e-30)), torch.ones_like(power))
    return wave * gain[:, None]


class RecurrentLayers(nn.Module):
    """A bidirectional LSTM, (B, N, D) → (B, N, 2·H), exported as ONNX's own operator; for that only."""

    def __init__(self, lstm: nn.LSTM):
        super().__init__()
        self.lstm = lstm
        for layer in range(lstm.num_layers):
            for name, parts in (
                ("input", ("weight_ih",)),
                ("hidden", ("weight_hh",)),
                ("bias", ("bias_ih", "bias_hh")),
            ):
                both = []
                for way in ("", "_reverse"):
                    gates = [self._gates(getattr(lstm, f"{part}_l{layer}{way}").detach()) for part in parts]
                    both.append(torch.cat(gates))
                self.register_buffer(f"{name}{layer}", torch.stack(both))  # (2, …)

    @staticmethod
    def _gates(value: Tensor) -> Tensor:
        """PyTorch's order input, forget, cell, output → ONNX's input, output, forget, cell."""
        i, f, c, o = value.chunk(4)
        return torch.cat([i, o, f, c])

    def forward(self, x: Tensor, count: Tensor) -> Tensor:
        """x (B, N, D) of which the first `count` (B,) steps are valid; for export only."""
        size, count = self.lstm.hidden_size, count.int()
        x = x.transpose(0, 1)  # (N, B, D)
        steps, batch = x.shape[:2]
        for layer in range(self.lstm.num_layers):
            weights = [getattr(self, f"{name}{layer}") for name in ("input", "hidden", "bias")]
            x = lstm(x, *weights, count)  # the backward direction starts at the end of each utterance
            x = x.transpose(1, 2).reshape(steps, batch, 2 * size)
        return x.transpose(0, 1)


def trace_waves(network: EncoderGraph, outputs: Sequence[str]) -> Any:
    """The `onnx.ModelProto` of a network of waveforms, any number of any length."""
    draw = torch.Generator().manual_seed(0)
    waves = [0.1 * torch.randn(shape, generator=draw) for shape in ((2, 16_000), (3, 21_333))]
    lengths = torch.tensor([16_000, 12_000]), torch.tensor([21_333, 9_000, 5_000])
    return trace(network, {"wave": (waves[0], waves[1]), "lengths": lengths}, outputs)


def prepare_encoder(encoder: ConvEncoder) -> ConvEncoder:
    """Make a freshly loaded encoder fit for export, in place: plain weights and plain attention.

    The position convolution's weight-norm parametrisation is folded into its weight; on a deep copy that would break the
    original, whose class the copy shares.
    """
    for module in encoder.modules():
        if nn.utils.parametrize.is_parametrized(module, "weight"):
            nn.utils.parametrize.remove_parametrizations(module, "weight")
    encoder.model.set_attn_implementation("eager")
    return encoder


def graph_states(student: Student, predictions: bool = False) -> tuple[str, ...]:
    """The names of the states that `EncoderGraph` gives, in order. Raises `UserError` for predictions that do not fit."""
    if not predictions:
        return student.states_names
    if student.heads is None or student.heads.outputs[0].out_features != student.hidden_size:
        raise UserError(f"The student {student.name} has no predictions of its own width: leave --predictions out.")
    return (*student.states_names, *(f"teacher layer {layer}" for layer in student.layers))
