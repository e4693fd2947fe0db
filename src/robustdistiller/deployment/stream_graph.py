"""One step of a stream as a network: a chunk of samples and the state before it in, its states and the state after it out.

Every step takes C · 320 samples and gives C frames; the state holds the ends of the convolutions' inputs, the projected frames
that the position convolution still reads, keys and values of `left` frames, and the number of the next frame. Before the audio
there are as many zeros as make its first frame the first of a chunk; frames from before its start or after its end are silent
to the position convolution and not attended to, which is what they are offline. Each frame of each layer is computed once.

Shapes: C frames of a chunk, R of look-ahead, K the position kernel, N layers, D hidden, S states.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UserError
from ..evaluation.false_alarms import WINDOW, window_scores
from ..models.frames import GRID
from ..models.streaming import MASKED, Chunking, check_streamable
from ..models.student import Student
from .graph import graph_states, prepare_encoder
from .task_head import TaskHead


class LayerNormBlock(nn.Module):
    """A convolution, the LayerNorm over its channels and the activation, (1, C, F) → (1, C', F'), without cancellation.

    A front end that was fitted (models/layer_norm.py) adds a bias b much larger than the signal y, which the norm's shift takes
    away again: in float32 the features lose a digit, in 8 bits all of them. With y and b free of their means over the
    channels, in units of s = √(mean b² + ε), the deviation is r = √(1 + v), v = mean(y · (2b + y)), and the norm
    (y + b) / r = y / r - b v / (r (1 + r)) + b, whose last term goes into the shift.
    """

    bias: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, layer: Any):
        super().__init__()
        norm, weight = layer.layer_norm, layer.conv.weight.detach().double()
        bias = weight.new_zeros(len(weight)) if layer.conv.bias is None else layer.conv.bias.detach().double()
        bias = bias - bias.mean()
        deviation = (bias.square().mean() + norm.eps).sqrt()
        bias, scale = bias / deviation, norm.weight.detach().double()
        with torch.no_grad():
            layer.conv.weight.copy_((weight - weight.mean(0)) / deviation)
        layer.conv.bias = None
        self.conv, self.activation = layer.conv, layer.activation
        for name, value in (("bias", bias), ("scale", scale), ("shift", scale * bias + norm.bias.detach().double())):
            self.register_buffer(name, value.to(layer.conv.weight.dtype)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        v = (y * (2 * self.bias + y)).mean(1, keepdim=True)
        r = (1 + v).sqrt()
        return self.activation(self.scale * (y / r - self.bias * (v / (r * (1 + r)))) + self.shift)  # type: ignore[no-any-return]


class StreamGraph(nn.Module):
    """wave (1, C · 320), end (1,), state → states (1, S, C, D) of the frames [position - R, position - R + C), next state.

    `end` is the number of frames of the whole audio, 2^62 while that is unknown; `state_names` tells the state's tensors in
    order, `initial_state` their values before the first step. A frame below 0 or from `end` on is to be dropped.
    The student must be freshly loaded: it is changed.
    """

    output = "states"

    def __init__(self, student: Student, chunking: Chunking, predictions: bool = False):
        super().__init__()
        self.width = student.hidden_size
        check_streamable(student.encoder.model, student.encoder.normalize)
        self.encoder = prepare_encoder(student.encoder)
        self.names = graph_states(student, predictions)
        self.heads = student.heads if predictions else None
        self.chunking = chunking
        first, *others = map(LayerNormBlock, self.encoder.model.feature_extractor.conv_layers)
        self.first, self.convolutions = first, nn.ModuleList(others)
        network = self.encoder.model.encoder
        self.before = network.pos_conv_embed.conv.kernel_size[0] // 2
        self.attention_heads = int(self.encoder.model.config.num_attention_heads)
        # Frame -1 covers the first samples; the first step ends with it or later, and with the look-ahead of a chunk's end.
        steps = -(-(chunking.look_ahead + 1) // chunking.chunk)
        self.start = chunking.look_ahead - chunking.chunk * steps

    @property
    def silence(self) -> int:
        """Zeros before the first sample of the audio."""
        return -(GRID.stride * (self.start - 1) + GRID.field)

    @property
    def state_names(self) -> tuple[str, ...]:
        return (*(f"tail {k}" for k, _ in self._tails()), "projected", "keys", "values", "position")

    def initial_state(self) -> list[Tensor]:
        """The state before the audio, in the order of `state_names`."""
        c, size = self.chunking, self.encoder.hidden_size
        kept = (self.encoder.num_layers, c.left, size)
        tails = [torch.zeros(1, width, self.encoder.kernels[k] - self.encoder.strides[k]) for k, width in self._tails()]
        buffers = [torch.zeros(1, self.before + c.look_ahead, size), torch.zeros(kept), torch.zeros(kept)]
        return [*tails, *buffers, torch.tensor([self.start])]

    def _tails(self) -> list[tuple[int, int]]:
        """The convolutions whose windows overlap, by number, and the channels that they read."""
        widths = (1, *self.encoder.model.config.conv_dim)
        pairs = zip(self.encoder.kernels, self.encoder.strides, strict=True)
        return [(k, widths[k]) for k, (kernel, stride) in enumerate(pairs) if kernel > stride]

    def forward(self, wave: Tensor, end: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        *tails, projected, keys, values, position = state
        c, network = self.chunking, self.encoder.model.encoder
        x, tails = self._convolve(wave[:, None], list(tails))
        new = self.encoder.model.feature_projection(x.transpose(1, 2))
        new = new[0] if isinstance(new, tuple) else new  # (1, C, D)
        number = position + torch.arange(c.chunk)
        new = new * ((number >= 0) & (number < end))[:, None]
        projected = torch.cat([projected, new], 1)  # frames from position - R - before on
        x = projected[:, self.before : self.before + c.chunk]
        states = [x]
        x = network.layer_norm(x + self._positions(projected))
        number = position - c.look_ahead - c.left + torch.arange(c.left + c.chunk)
        mask = torch.where((number >= 0) & (number < end), 0.0, MASKED)  # (left + C,)
        new_keys, new_values = [], []
        for layer, k, v in zip(network.layers, keys, values, strict=True):
            x, k, v = self._layer(layer, x, k, v, mask)
            new_keys.append(k)
            new_values.append(v)
            states.append(x)
        made = torch.stack(states, 1)
        if self.heads is not None:
            made = torch.cat([made, self.heads(states)], 1)
        state = (*tails, projected[:, c.chunk :], torch.stack(new_keys), torch.stack(new_values), position + c.chunk)
        return (made, *state)

    def _convolve(self, x: Tensor, tails: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The front end on what is new, each convolution continued from its tail."""
        kept, index = [], {k: n for n, (k, _) in enumerate(self._tails())}
        for k, layer in enumerate((self.first, *self.convolutions)):
            if k in index:
                tail = tails[index[k]]
                x = torch.cat([tail, x], 2)
                kept.append(x[:, :, x.shape[2] - tail.shape[2] :])
            x = layer(x)
        return x, kept

    def _positions(self, window: Tensor) -> Tensor:
        """The position convolution of the chunk's frames, (1, before + R + C, D) → (1, C, D)."""
        embedding = self.encoder.model.encoder.pos_conv_embed
        conv, wanted = embedding.conv, self.chunking.chunk + embedding.conv.kernel_size[0] - 1
        x = window.transpose(1, 2)[..., :wanted]
        x = functional.pad(x, (0, max(0, wanted - window.shape[1])))
        y = functional.conv1d(x, conv.weight, conv.bias, groups=conv.groups)
        return embedding.activation(y).transpose(1, 2)  # type: ignore[no-any-return]

    def _layer(
        self, layer: Any, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A post-norm layer: x (1, C, D), keys and values (left, D) → its output, and the next keys and values."""
        attention, size = layer.attention, self.chunking.chunk
        keys = torch.cat([keys, attention.k_proj(x)[0]])
        values = torch.cat([values, attention.v_proj(x)[0]])
        parts = (attention.q_proj(x)[0], keys, values)
        q, k, v = (part.unflatten(1, (self.attention_heads, -1)).transpose(0, 1) for part in parts)
        scores = (q * attention.scaling) @ k.transpose(1, 2) + mask  # (heads, C, left + C)
        attended = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)[None]
        x = layer.layer_norm(x + attention.out_proj(attended))
        x = layer.final_layer_norm(x + layer.feed_forward(x))
        return x, keys[size:], values[size:]


class DetectorGraph(StreamGraph):
    """The same with a head of the benchmark behind it: probabilities (1, 1, C, classes) of the last `WINDOW` frames.

    As in the benchmark, a head of kind detection reads the window that ends with each frame, another the mean of it.
    """

    output = "probabilities"

    def __init__(self, student: Student, chunking: Chunking, head: TaskHead):
        super().__init__(student, chunking, len(head.states) > len(student.states_names))
        if len(head.labels) != 1 or head.level is not None:
            raise UserError("Only a head of one slot, trained without level_dbfs, can listen to a stream.")
        self.head, self.depth = copy.deepcopy(head.head), self.width
        self.width = len(next(iter(head.labels.values())))

    @property
    def state_names(self) -> tuple[str, ...]:
        return (*super().state_names, "window")

    def initial_state(self) -> list[Tensor]:
        """The state before the audio: silence in the window."""
        return [*super().initial_state(), torch.zeros(1, len(self.names), WINDOW - 1, self.depth)]

    def forward(self, wave: Tensor, end: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        *state, window = state  # type: ignore[assignment]
        position, (states, *after) = state[-1], super().forward(wave, end, *state)
        number = position - self.chunking.look_ahead + torch.arange(self.chunking.chunk)
        states = states * ((number >= 0) & (number < end))[:, None]
        window = torch.cat([window, states], 2)  # (1, S, WINDOW - 1 + C, D)
        scores = window_scores(self.head, window)  # (C, classes)
        return (scores[None, None], *after, window[:, :, self.chunking.chunk :])
