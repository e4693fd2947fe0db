"""Wave → hidden states: any `transformers` convolutional speech encoder, made independent of padding.

HuBERT, wav2vec 2.0, WavLM, data2vec-audio, UniSpeech and UniSpeech-SAT share one build: a convolutional feature extractor, a
projection, a convolutional position embedding and Transformer layers; Wav2Vec2-Conformer has Conformer layers instead. In the
base models the first convolution is followed by a GroupNorm over *time*, so that zero padding changes every frame of an
utterance (44 % when 4 s are padded to 12 s), even with an attention mask. `SpeechEncoder` passes lengths, not masks, from
stage to stage, normalises over valid frames only, and gives for an utterance in any batch what it gives for it alone.

Shape legend: B utterances, T samples, F frames, C convolution channels, D hidden.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UserError
from .frames import FrameGrid, at_least_single, beside, mask_from_lengths
from .streaming import Chunking, chunked_layers


@dataclass
class EncoderOutput:
    """The input of an encoder.

    states: N+1 tensors (B, F, D): the projected CNN output, then the output of each Transformer layer
    cnn: (B, F, C) the output of the convolutions, before the projection
    lengths: (B,) valid frames; what lies beyond them is undefined
    """

    states: tuple[Tensor, ...]
    cnn: Tensor
    lengths: Tensor


@dataclass
class LayerCapture:
    """What one pass through the Transformer tells and asks of the hooks: valid (B, F) or None, and every layer's output."""

    valid: Tensor | None
    outputs: list[Tensor]


# Threads may share an encoder, so that what belongs to one call is bound to its context and not to the modules.
_FIRST_LENGTHS: ContextVar[Tensor | None] = ContextVar("first_lengths", default=None)
CAPTURE: ContextVar[LayerCapture | None] = ContextVar("capture", default=None)


@contextmanager
def bound(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def capture_output(module: nn.Module, args: Any, output: Any) -> None:
    if (capture := CAPTURE.get()) is not None:
        capture.outputs.append(output[0] if isinstance(output, tuple) else output)


def _silence_padding(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    capture = CAPTURE.get()
    if capture is None or capture.valid is None:
        return args
    return (args[0] * capture.valid[:, None], *args[1:])  # (B, D, F)


class LengthAwareGroupNorm(nn.GroupNorm):
    """A GroupNorm with one group per channel, (B, C, F), whose statistics are taken over the valid frames only."""

    def __init__(self, original: nn.GroupNorm):
        super().__init__(original.num_groups, original.num_channels, original.eps, affine=False)
        self.affine = original.affine
        self.weight, self.bias = original.weight, original.bias

    def forward(self, x: Tensor) -> Tensor:
        lengths = _FIRST_LENGTHS.get()  # (B,) bound by ConvEncoder; None: all frames are valid
        if lengths is None and x.dtype in (torch.bfloat16, torch.float16):
            # `autocast` would have the largest tensor of a pass normalised, activated and copied in twice the bytes.
            with torch.autocast(x.device.type, enabled=False):
                weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
                return functional.group_norm(x, self.num_groups, weight, bias, self.eps)
        if lengths is None:
            return super().forward(x)
        x = at_least_single(x)
        # Utterance by utterance: PyTorch's kernel takes a third of the time of masked sums over a whole batch.
        rows = (functional.group_norm(row[None, :, :size], self.num_groups, self.weight, self.bias, self.eps)
                for row, size in zip(x, lengths.tolist(), strict=True))  # fmt: skip
        return torch.cat([functional.pad(row, (0, x.shape[-1] - row.shape[-1])) for row in rows])


def position_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, groups: int) -> Tensor:
    """The convolution of the position embedding: (B, C, F), weight (C', C / groups, K) → (B, C', F + 2 padding − K + 1)."""
    if x.device.type != "cuda":
        return functional.conv1d(x, weight, bias, padding=padding, groups=groups)
    return convolve_by_products(x, weight, bias, padding, groups)


def convolve_by_products(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, groups: int, block: int = 8
) -> Tensor:
    """A grouped convolution as one matrix product for each group, which gives `block` frames at a time.

    For some lengths cuDNN picks a kernel for groups that does without tensor cores: 35 ms for 94 s of HuBERT Base on an H100,
    far more than all the rest of its forward pass.
    """
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    x, weight = x.to(dtype), weight.to(dtype)
    (batch, _, size), (width, _, taps) = x.shape, weight.shape
    frames = size + 2 * padding - taps + 1
    blocks, span = -(-frames // block), block + taps - 1  # samples of x that `block` frames are made from
    x = functional.pad(x, (padding, blocks * block + taps - 1 - size - padding))
    windows = x.unfold(-1, span, block).unflatten(1, (groups, -1))  # (B, groups, C / groups, blocks, span)
    windows = windows.permute(1, 0, 3, 2, 4).reshape(groups, batch * blocks, -1)
    # The taps once for each frame of a block, each time one sample later: rows of span + 1 read as rows of span,
    # which makes (groups, C / groups · span, C' / groups · block).
    rows = functional.pad(weight, (0, block))[:, :, None].expand(-1, -1, block, -1).flatten(2)
    later = rows[..., : block * span].unflatten(2, (block, span)).unflatten(0, (groups, -1))
    later = later.permute(0, 2, 4, 1, 3).reshape(groups, windows.shape[2], -1)
    out = (windows @ later).unflatten(1, (batch, blocks)).unflatten(3, (-1, block))
    out = out.permute(1, 0, 3, 2, 4).reshape(batch, width, blocks * block)[..., :frames]
    return out if bias is None else out + bias[:, None].to(dtype)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None


def normalize_wave(wave: Tensor, lengths: Tensor) -> Tensor:
    """Zero mean and unit variance per utterance over its valid samples, zeros in the padding: `do_normalize` of the hub.

    wave: (B, T); lengths: (B,) samples. The 1e-7 is that of `transformers.Wav2Vec2FeatureExtractor`.
    """
    lengths = beside(lengths, wave)
    valid = mask_from_lengths(lengths, wave.shape[1])
    count = lengths.clamp_min(1)[:, None]
    mean = (wave * valid).sum(1, keepdim=True) / count
    centred = (wave - mean) * valid
    variance = centred.square().sum(1, keepdim=True) / count
    return centred * torch.rsqrt(variance + 1e-7)


class SpeechEncoder(nn.Module):
    """An encoder of `transformers` with lengths in and lengths out.

    Attributes:
        grid: The frames of its states.
        normalize: Whether the input is brought to zero mean and unit variance first.
        pre_norm: Whether its layers add to a stream that is not normalised.
        final_norm: Whether the last state is more than what the last layer gives.
        source: The files that it was read from.
    """

    model: Any
    grid: FrameGrid
    normalize = pre_norm = final_norm = False
    source = ""

    def _stack(self) -> tuple[Any, str]:
        """Where the layers are: a module and the name of its list."""
        return self.model.encoder, "layers"

    @property
    def stack(self) -> Any:
        """The Transformer layers."""
        return getattr(*self._stack())

    @property
    def num_layers(self) -> int:
        return len(self.stack)

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.hidden_size)

    def truncate(self, layers: int) -> None:
        """Drop the Transformer layers above `layers`, with the final normalisation if it no longer follows its layer."""
        if layers < self.num_layers:
            setattr(*self._stack(), self.stack[:layers])
            self.final_norm = False


class ConvEncoder(SpeechEncoder):
    """An encoder with convolutions before the Transformer.

    model: a HubertModel, Wav2Vec2Model, WavLMModel, Data2VecAudioModel, UniSpeechModel, UniSpeechSatModel or
    Wav2Vec2ConformerModel
    normalize: whether the input is brought to zero mean and unit variance first
    grad_mult: factor on the gradient that reaches the convolutions
    """

    def __init__(self, model: Any, normalize: bool = False, grad_mult: float = 1.0):
        super().__init__()
        missing = [part for part in ("feature_extractor", "encoder") if not hasattr(model, part)]
        if missing:
            raise UserError(f"A {type(model).__name__} has no {missing[0]}: use a model of docs/teachers.md.")
        self.model = model
        self.normalize = normalize
        self.grad_mult = grad_mult
        config = self.model.config
        self.kernels, self.strides = tuple(config.conv_kernel), tuple(config.conv_stride)
        self.grid = self.conv_grid = conv_grid(self.kernels, self.strides)
        # In training mode `transformers` would otherwise ask for a gradient on the waveform itself, which is wasted work
        # and fails on tensors that are not leaves.
        self.model.feature_extractor._requires_grad = False
        first = self.model.feature_extractor.conv_layers[0]
        if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
            first.layer_norm = LengthAwareGroupNorm(first.layer_norm)
        for layer in self.stack:
            if capture_output not in layer._forward_hooks.values():  # the model may have been in an encoder before
                layer.register_forward_hook(capture_output)
        position = getattr(getattr(self.model.encoder, "pos_conv_embed", None), "conv", None)
        if isinstance(position, nn.Conv1d) and position.stride == (1,):
            position._conv_forward = partial(  # type: ignore[method-assign]
                position_convolution, padding=int(position.padding[0]), groups=position.groups
            )
        for part in self._past_padding():
            part.register_forward_pre_hook(_silence_padding)
        # "Stable" (pre-norm) encoders normalise after the last layer: that output, not the raw sum, is the last state. So
        # do conformers, whose layers end in a norm of their own.
        self.pre_norm = bool(getattr(config, "do_stable_layer_norm", False))
        self.final_norm = self.pre_norm or config.model_type == "wav2vec2-conformer"
        if config.model_type == "wavlm":  # `transformers` gives PyTorch masks of two types, which it adds as it should
            warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")

    def _past_padding(self) -> list[nn.Module]:
        """The convolutions that padding, silent when the encoder begins, would reach as something else than zeros."""
        position: Any = getattr(self.model.encoder, "pos_conv_embed", None)
        found = [*getattr(position, "layers", ())]  # the second to fifth of data2vec
        if getattr(position, "batch_norm", None) is not None:  # a HuBERT with conv_pos_batch_norm
            found.append(position.conv)
        return found + [layer.conv_module.depthwise_conv for layer in self.stack if hasattr(layer, "conv_module")]

    def compile_layers(self) -> None:
        """Have `torch.compile` fuse the Transformer layers, once for all of a shape, when the first is used.

        Layers that cannot be compiled run as they are.
        """
        import torch._dynamo

        torch._dynamo.config.suppress_errors = True
        for layer in self.stack:
            layer.forward = torch.compile(layer.forward)

    def forward(self, wave: Tensor, lengths: Tensor | None = None, chunking: Chunking | None = None) -> EncoderOutput:
        """Encode waveforms (B, T) of which the first `lengths` (B,) samples are valid (None: all of them).

        chunking: attend within chunks as a stream does; None: within the whole utterance
        """
        samples = wave.shape[1]
        if samples < self.grid.field:
            raise UserError(f"The audio has {samples} samples, a frame {self.grid.field} (25 ms): give more.")
        padded = lengths is not None and bool((lengths != samples).any())
        if padded and lengths is not None and int(lengths.min()) < self.grid.field:
            # A row without a frame has nothing to attend to, and what comes out of it would be no number.
            raise UserError(f"Some audio is shorter than one frame ({self.grid.field} samples): leave it out.")
        if lengths is None:
            lengths = torch.full((wave.shape[0],), samples, device=wave.device)
        if self.normalize:
            wave = normalize_wave(wave, lengths)
        cnn = self._convolve(wave, lengths if padded else None)  # (B, C, F)
        if self.training and self.grad_mult != 1.0:
            cnn = _ScaleGradient.apply(cnn, self.grad_mult)
        cnn = cnn.transpose(1, 2)  # (B, F, C)
        projected = self._project(cnn)  # (B, F, D)
        frames = self.conv_grid.count(lengths)
        valid = mask_from_lengths(beside(frames, cnn), cnn.shape[1]) if padded else None
        if chunking is not None:
            layers = chunked_layers(self.model.encoder, projected, valid, chunking)
        else:
            layers = self.transform(projected, valid)
        return EncoderOutput((projected, *layers), cnn, frames)

    def _project(self, cnn: Tensor) -> Tensor:
        projected = self.model.feature_projection(cnn)
        return projected[0] if isinstance(projected, tuple) else projected

    def _convolve(self, wave: Tensor, lengths: Tensor | None) -> Tensor:
        norm = getattr(self.model.feature_extractor.conv_layers[0], "layer_norm", None)
        if lengths is None or not isinstance(norm, LengthAwareGroupNorm):
            return self.model.feature_extractor(wave)
        with bound(_FIRST_LENGTHS, FrameGrid(self.strides[0], 0, self.kernels[0]).count(lengths)):
            return self.model.feature_extractor(wave)

    def transform(self, projected: Tensor, valid: Tensor | None) -> list[Tensor]:
        """Run the Transformer and collect the output of every layer, whatever the version of `transformers` returns."""
        encoder, capture = self.model.encoder, LayerCapture(valid, [])
        with bound(CAPTURE, capture):
            # The encoder zeroes padded frames in place; the projected features themselves are a state that we keep.
            out = encoder(projected if valid is None else projected.clone(), attention_mask=valid)
        outputs = capture.outputs
        if self.final_norm:
            outputs[-1] = out.last_hidden_state if hasattr(out, "last_hidden_state") else out[0]
        return outputs

    def __reduce__(self) -> Any:
        """Pickle and copy by configuration and weights: a parametrised module, the position convolution, cannot be pickled."""
        values = dict(
            made=type(self), kind=type(self.model), config=self.model.config, normalize=self.normalize,
            grad_mult=self.grad_mult, layers=self.num_layers, training=self.training, state=self.state_dict(),
            frozen=[name for name, parameter in self.named_parameters() if not parameter.requires_grad],
        )  # fmt: skip
        return _rebuilt, (values,)


def _rebuilt(values: dict[str, Any]) -> ConvEncoder:
    encoder: ConvEncoder = values["made"](values["kind"](values["config"]), values["normalize"], values["grad_mult"])
    encoder.truncate(values["layers"])
    encoder.load_state_dict(values["state"], assign=True)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name not in values["frozen"])
    return encoder.train(values["training"])


def conv_grid(kernels: tuple[int, ...], strides: tuple[int, ...]) -> FrameGrid:
    """The frame grid of a stack of unpadded convolutions."""
    stride, field = 1, 1
    for kernel, step in zip(kernels, strides, strict=True):
        field += (kernel - 1) * stride
        stride *= step
    return FrameGrid(stride, field / 2, field)
