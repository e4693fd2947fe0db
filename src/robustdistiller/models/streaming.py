"""Streaming: a Transformer that attends within chunks, in training, offline evaluation and on a stream, with equal results.

Frames are grouped into chunks of C. A frame attends to its own chunk and to `left` frames before it; the position convolution
sees the frames up to the end of the chunk and `look_ahead` frames R beyond, which is the only look-ahead. Every frame of every
layer is therefore computed once, from what a stream holds by then: a chunk is out C + R frames after its first one began.
With a chunk size drawn for every batch, whole utterances among them, one set of weights serves offline and on a stream
(dynamic-chunk training: WeNet's U2, arXiv 2012.05481).

Nothing may depend on statistics over time: the convolutions are normalised frame by frame (``feat_extract_norm="layer"``), and
the waveform is taken as it is. Shapes: B utterances, F frames, D hidden, S states, C frames of a chunk, K the kernel.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..assets import located
from ..config import StreamingConfig
from ..errors import UserError
from .frames import GRID

logger = logging.getLogger(__name__)

FRAME_MS = 20
LONGEST_MS = 60_000
MASKED = -3e4  # added to attention scores: a number in every precision, and nothing after a softmax
ENDLESS = 1 << 62  # the number of frames of a stream that has not ended


@dataclass(frozen=True)
class Chunking:
    """An operating point in frames of 20 ms: chunk C, look-ahead R, and `left` frames of attention before the chunk."""

    chunk: int
    look_ahead: int
    left: int

    def __post_init__(self) -> None:
        if self.chunk < 1 or self.look_ahead < 0 or self.left < 0:
            raise UserError("A chunk has at least one frame (20 ms), look-ahead and left context at least none.")

    @property
    def latency(self) -> float:
        """Seconds between the first sample of a chunk and its output, at worst, without the time to compute it."""
        return ((self.chunk + self.look_ahead - 1) * GRID.stride + GRID.field) / 16_000

    def allowed(self, frames: int, device: torch.device | None = None) -> Tensor:
        """(F, F), True where a frame (row) may attend to another (column)."""
        place = torch.arange(frames, device=device)
        start = place // self.chunk * self.chunk
        return (place < (start + self.chunk)[:, None]) & (place >= (start - self.left)[:, None])


def draw_chunking(config: StreamingConfig) -> Chunking | None:
    """Chunk and look-ahead of a batch, or None for whole utterances, from PyTorch's generator.

    The trainer seeds that generator from (seed, step) before every forward pass, so that the draw is a function of these.
    """
    whole, chunk, ahead = torch.rand(3).tolist()
    if whole < config.whole:
        return None
    size, beyond = config.chunk_ms, config.look_ahead_ms
    times = (size[int(chunk * len(size))], beyond[int(ahead * len(beyond))], config.left_ms)
    return Chunking(*(ms // FRAME_MS for ms in times))


def split_operating_point(name: str) -> tuple[str, tuple[int, int] | None]:
    """``folder@160+80`` → the folder, and chunk and look-ahead in ms; None without such an ending.

    Raises `UserError` for another ending of a model on this machine: only those of the hub have revisions.
    """
    found = re.fullmatch(r"(.+)@(\d+)\+(\d+)", name)
    if found is not None:
        return found[1], (int(found[2]), int(found[3]))
    base, at, _ = name.rpartition("@")
    if at and os.path.isdir(located(base)) and not os.path.exists(name):
        raise UserError(f"{name} ends in no operating point: write chunk and look-ahead in ms, such as {base}@160+160.")
    return name, None


def operating_point(config: StreamingConfig, chunk_ms: int, look_ahead_ms: int) -> Chunking:
    """An operating point of a student. Raises `UserError` for times that are no whole frames, or longer than a minute."""
    if (
        chunk_ms % FRAME_MS
        or look_ahead_ms % FRAME_MS
        or chunk_ms < FRAME_MS
        or max(chunk_ms, look_ahead_ms) > LONGEST_MS
    ):
        raise UserError(
            f"@{chunk_ms}+{look_ahead_ms} is no operating point: chunk and look-ahead are multiples of a frame of "
            f"{FRAME_MS} ms up to {LONGEST_MS}, the chunk at least one, as in @160+160."
        )
    if chunk_ms < (shortest := min(config.chunk_ms)):
        logger.warning("chunks of %d ms are shorter than any in the student's training (%d ms)", chunk_ms, shortest)
    return Chunking(chunk_ms // FRAME_MS, look_ahead_ms // FRAME_MS, config.left_ms // FRAME_MS)


def check_streamable(model: Any, normalize: bool) -> None:
    """Raise `UserError` for a `transformers` model whose frames depend on more than a stream can know."""
    config = model.config
    wrong = {
        f"a {type(model).__name__}": type(model).__name__ != "HubertModel",
        "pre-norm layers": bool(getattr(config, "do_stable_layer_norm", False)),
        "a GroupNorm over time": getattr(config, "feat_extract_norm", "layer") != "layer",
        "a position convolution with batch norm": bool(getattr(config, "conv_pos_batch_norm", False)),
        "an input normalised over the utterance": normalize,
    }
    for what, is_so in wrong.items():
        if is_so:
            raise UserError(f"This model has {what} and cannot stream: distil one that can (recipe mini-stream).")


def chunked_layers(network: Any, projected: Tensor, valid: Tensor | None, chunking: Chunking) -> list[Tensor]:
    """The outputs (B, F, D) of a HubertEncoder's layers under a chunking; `valid` (B, F) is True where there is audio."""
    x = projected if valid is None else projected * valid[..., None]
    x = network.dropout(network.layer_norm(x + _chunked_positions(network.pos_conv_embed, x, chunking)))
    allowed = chunking.allowed(x.shape[1], x.device)[None]
    if valid is not None:
        allowed = allowed & valid[:, None]
    mask = torch.where(allowed, 0.0, MASKED)[:, None].to(x.dtype)  # (B or 1, 1, F, F)
    return layer_outputs(network.layers, x, mask)


def layer_outputs(layers: Iterable[Any], x: Tensor, mask: Tensor | None) -> list[Tensor]:
    """The outputs (B, F, D) of layers one after the other, whatever the version of `transformers` returns."""
    outputs = []
    for layer in layers:
        x = layer(x, attention_mask=mask)
        x = x[0] if isinstance(x, tuple) else x
        outputs.append(x)
    return outputs


def _chunked_positions(embedding: Any, x: Tensor, chunking: Chunking) -> Tensor:
    """The position convolution (B, F, D) → (B, F, D), its input zero beyond the look-ahead of each chunk."""
    size, frames = chunking.chunk, x.shape[1]
    kernel = embedding.conv.kernel_size[0]
    before = kernel // 2
    missing = -frames % size
    padded = functional.pad(x.transpose(1, 2), (before, missing + kernel - 1 - before))
    windows = padded.unfold(2, size + kernel - 1, size)  # (B, D, chunks, C + K - 1)
    seen = before + size + chunking.look_ahead
    windows = functional.pad(windows[..., :seen], (0, max(0, windows.shape[-1] - seen)))
    y = _convolve(embedding, windows.transpose(1, 2).flatten(0, 1))  # (B · chunks, D, C)
    return y.unflatten(0, (x.shape[0], -1)).transpose(1, 2).flatten(2)[..., :frames].transpose(1, 2)


def _convolve(embedding: Any, window: Tensor) -> Tensor:
    """(N, D, C + K - 1) → (N, D, C), without the padding that `transformers` adds."""
    conv = embedding.conv
    y = functional.conv1d(window, conv.weight, conv.bias, groups=conv.groups)
    return embedding.activation(y)  # type: ignore[no-any-return]
