"""The two tasks of a student: predicting the teacher's hidden layers, and reconstructing the clean spectrogram.

Both heads can be thrown away after training; they are kept beside the encoder because the predictions are useful features
and the enhancement head is a speech enhancer. Shape legend: B utterances, T samples, F frames (50 Hz), N spectrogram frames
(100 Hz), D hidden, L layers, K bins.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .frames import GRID, FrameGrid, align_frames, at_least_single, beside, mask_from_lengths

N_FFT, WINDOW, HOP, BINS = 512, 400, 160, 257
SPECTRUM_GRID = FrameGrid(stride=HOP, offset=0, field=1)
MASK_GRID = FrameGrid(stride=HOP, offset=HOP, field=1)
"""Two masks of a student frame f, centred at 320 f + 200: spectrogram frames 2 f + 1 and 2 f + 2, those nearest in time."""

Weights = Sequence[Tensor]  # of one layer of an LSTM in one direction

# One layer at a time, weights are not where cuDNN wants them, and are copied; they are small.
warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")


class PredictionHeads(nn.Module):
    """The teacher's target layers predicted from the student's states.

    From the last state alone: Linear(D → L·D), GELU, then one Linear(D → D_teacher) per target (DistilHuBERT, arXiv 2110.01900,
    figure 1). With `sources`, layer to layer: one Linear(D → D_teacher) per target, on a state of its own.

    Args:
        hidden: D, the student's width.
        targets: D_teacher.
        layers: L, the number of target layers.
        sources: For each target the number of the student's state that it is predicted from; None: the last for all.
    """

    def __init__(self, hidden: int, targets: int, layers: int, sources: Sequence[int] | None = None):
        super().__init__()
        self.sources = None if sources is None else tuple(sources)
        if sources is None:
            self.shared = nn.Linear(hidden, layers * hidden)
        self.outputs = nn.ModuleList([nn.Linear(hidden, targets) for _ in range(layers)])

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """All of the student's states, (B, F, D) each → predictions (B, L, F, D_teacher)."""
        if self.sources is None:
            parts = functional.gelu(self.shared(states[-1])).chunk(len(self.outputs), dim=-1)
        else:
            parts = tuple(states[source] for source in self.sources)
        return torch.stack([output(part) for output, part in zip(self.outputs, parts, strict=True)], 1)


@dataclass
class Enhancement:
    """What the head makes of a contaminated batch.

    mask: (B, K, N) in [0, 1]; contaminated: (B, K, N) complex spectrogram; frames: (B,) valid spectrogram frames;
    lengths: (B,) valid samples
    """

    mask: Tensor
    contaminated: Tensor
    frames: Tensor
    lengths: Tensor

    @property
    def magnitude(self) -> Tensor:
        """(B, K, N) estimated clean magnitude."""
        return self.mask * self.contaminated.abs()

    @property
    def spectrum(self) -> Tensor:
        """(B, K, N) complex, with the contaminated phase."""
        return self.mask * self.contaminated

    def waveform(self, samples: int) -> Tensor:
        """Back to time, (B, `samples`), zeros beyond the valid samples of each utterance."""
        return istft(self.spectrum, self.frames, self.lengths, samples)


class EnhancementHead(nn.Module):
    """A bidirectional LSTM on a student state estimates a mask in [0, 1] on the contaminated magnitude (paper section 3.2).

    The states come at 50 Hz, the spectrogram has 100 frames a second. With a `frame_rate` of 50 the LSTM runs on the states as
    they come and gives two masks for each, of the spectrogram frames nearest in time; with 100 it runs, as the official code's,
    on every state twice: the same input, for twice the time.

    In training mode the LSTM runs over windows of about `window_seconds` side by side, as if each were an utterance: its steps
    follow one another, and are what a GPU waits for. 0, and evaluation mode: over whole utterances.
    """

    def __init__(
        self,
        size: int,
        hidden: int = 256,
        layers: int = 3,
        dropout: float = 0.1,
        frame_rate: int = 50,
        window_seconds: float = 0.0,
    ):
        super().__init__()
        if frame_rate not in (50, 100):
            raise ValueError(f"the enhancement head runs at 50 or 100 frames a second, not at {frame_rate}")
        self.frame_rate = frame_rate
        self.window = max(1, round(window_seconds * frame_rate)) if window_seconds else None  # frames
        dropped = dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(size, hidden, layers, batch_first=True, bidirectional=True, dropout=dropped)
        self.mask = nn.Linear(2 * hidden, BINS * (100 // frame_rate))

    def forward(self, features: Tensor, frames: Tensor, wave: Tensor, lengths: Tensor) -> Enhancement:
        """features (B, F, D) with valid `frames` (B,), of the contaminated `wave` (B, T) with valid `lengths` (B,)."""
        spectrum, valid = stft(wave, lengths)  # (B, K, N)
        # The LSTM and the spectrogram stay in float32: the losses compare magnitudes over a range of 80 dB.
        with torch.autocast(wave.device.type, enabled=False):
            if self.frame_rate == 50:
                # (B, 2F, K)
                masks = self.mask(self._run(at_least_single(features), frames)).unflatten(2, (2, BINS)).flatten(1, 2)
                masks = align_frames(masks, 2 * frames, MASK_GRID, SPECTRUM_GRID, spectrum.shape[-1])  # (B, N, K)
            else:
                # (B, N, D)
                x = align_frames(at_least_single(features), frames, GRID, SPECTRUM_GRID, spectrum.shape[-1])
                masks = self.mask(self._run(x, valid))
            mask = torch.sigmoid(masks).transpose(1, 2)  # (B, K, N)
        return Enhancement(mask, spectrum, valid, lengths)

    def _run(self, x: Tensor, valid: Tensor) -> Tensor:
        batch, size, width = x.shape
        count = round(size / self.window) if self.training and self.window else 1
        if count > 1:
            length = -(-size // count)
            windows = functional.pad(x, (0, 0, 0, count * length - size)).reshape(batch * count, length, width)
            # Layer by layer: with dropout inside it, cuDNN reads a number from the GPU after each seeding, so in every step.
            windows = self._layers(windows, lambda x, ahead, back: self._recurrent(x, [*ahead, *back], 2))
            return windows.reshape(batch, count * length, -1)[:, :size]
        if bool((valid == size).all()):
            return self.lstm(x)[0]
        # The backward direction must start at the end of each utterance, not in the padding. Packed sequences do that too,
        # but their backward pass on a processor takes ten times as long.
        if x.device.type != "cpu":
            packed = pack_padded_sequence(x, valid.clamp_min(1).cpu(), batch_first=True, enforce_sorted=False)
            return pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=size)[0]
        place = torch.arange(size).expand(x.shape[0], size)
        mirror = torch.where(place < valid[:, None], valid[:, None] - 1 - place, place)[:, :, None]  # (B, N, 1)

        def both_ways(x: Tensor, ahead: Weights, back: Weights) -> Tensor:
            return torch.cat([self._recurrent(x, ahead), _take(self._recurrent(_take(x, mirror), back), mirror)], -1)

        return self._layers(x, both_ways)

    def _layers(self, x: Tensor, layer: Callable[[Tensor, Weights, Weights], Tensor]) -> Tensor:
        """The layers of the LSTM one after the other, each as `layer` computes it, with dropout between them."""
        weights = self.lstm.all_weights  # of layer 0 ahead, of layer 0 back, of layer 1 ahead, …
        for number in range(self.lstm.num_layers):
            if number > 0:
                x = functional.dropout(x, self.lstm.dropout, self.training)
            x = layer(x, weights[2 * number], weights[2 * number + 1])
        return x

    def _recurrent(self, x: Tensor, weights: Weights, ways: int = 1) -> Tensor:
        """One layer of the LSTM in one direction or both, (B, N, D) → (B, N, `ways` · hidden)."""
        start = x.new_zeros(ways, x.shape[0], self.lstm.hidden_size)
        return torch.lstm(x, (start, start), list(weights), True, 1, 0.0, self.training, ways == 2, True)[0]


def _take(x: Tensor, places: Tensor) -> Tensor:
    """Rows of x (B, N, D) in the order of `places` (B, N, 1)."""
    return x.gather(1, places.expand(-1, -1, x.shape[-1]))


def stft(wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The spectrogram of the enhancement task, (B, T) → complex (B, K, N), zeros beyond the valid frames (B,).

    512 points, Hann window of 400, hop 160, centred; zeros outside the utterance, so that padding changes nothing.
    """
    wave = at_least_single(wave)
    window = _hann(wave.dtype, wave.device)
    with torch.autocast(wave.device.type, enabled=False):
        spectrum = torch.stft(wave, N_FFT, HOP, WINDOW, window, center=True, pad_mode="constant", return_complex=True)
    frames = torch.div(lengths, HOP, rounding_mode="floor") + 1
    if bool((frames != spectrum.shape[-1]).any()):
        spectrum = spectrum * mask_from_lengths(beside(frames, spectrum), spectrum.shape[-1])[:, None]
    return spectrum, frames


@lru_cache(8)
def _hann(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The window, made once for a device: a dozen kernels."""
    with torch.inference_mode(False):
        return torch.hann_window(WINDOW, dtype=dtype, device=device)


def istft(spectrum: Tensor, frames: Tensor, lengths: Tensor, samples: int) -> Tensor:
    """The inverse of `stft` for each utterance by itself: (B, K, N) → (B, `samples`)."""
    window = _hann(spectrum.real.dtype, spectrum.device)
    if bool((lengths == samples).all()):
        return torch.istft(spectrum, N_FFT, HOP, WINDOW, window, center=True, length=samples)
    each = zip(spectrum, frames.tolist(), lengths.tolist(), strict=True)
    rows = [torch.istft(row[:, :n], N_FFT, HOP, WINDOW, window, center=True, length=size) for row, n, size in each]
    return torch.stack([functional.pad(row, (0, samples - row.shape[0])) for row in rows])
