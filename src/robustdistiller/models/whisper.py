"""Wave → hidden states for Whisper's encoder: log-mel on the device, short windows, independent of padding.

Whisper was trained on 30 s windows. Running every 3 s crop in one would cost ten times the work, so an utterance is given one
second of silence after its end and nothing more (`TAIL`): on real speech its layers then agree with the 30 s window to a
cosine of 0.99, 0.98, 0.97 and 0.95 (mean of 8 utterances of 1–3.6 s, layers 1–4 of tiny.en), against 0.92 for the last layer
without it. What another utterance of the batch is long cannot matter, because everything past the tail is masked.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import UserError
from .encoder import EncoderOutput, SpeechEncoder
from .frames import FrameGrid, beside, mask_from_lengths
from .streaming import layer_outputs

TAIL = 50  # frames of 20 ms


class WhisperEncoder(SpeechEncoder):
    """The encoder of a `transformers` WhisperModel as wave → states; its frames are centred at sample 320 f.

    model: a WhisperModel (its decoder is not kept)
    extractor: its WhisperFeatureExtractor, for the mel filters and the window
    """

    grid = FrameGrid(stride=320, offset=0, field=1)
    final_norm = pre_norm = True
    mel_filters: Tensor
    window: Tensor

    def __init__(self, model: Any, extractor: Any):
        super().__init__()
        if extractor.hop_length != 160:
            raise UserError(f"This Whisper has a hop of {extractor.hop_length} samples; only 160 can be aligned.")
        self.model = getattr(model, "encoder", model)
        self.n_fft, self.hop = extractor.n_fft, extractor.hop_length
        filters = torch.as_tensor(extractor.mel_filters, dtype=torch.float32)  # (n_fft / 2 + 1, mels)
        wanted = (self.n_fft // 2 + 1, int(self.model.config.num_mel_bins))
        if tuple(filters.shape) != wanted:
            raise UserError(
                f"This Whisper takes {wanted[1]} mel bands of {wanted[0]} frequencies, its preprocessor_config.json makes "
                f"{' x '.join(map(str, filters.shape[::-1]))}: copy both files again from one place."
            )
        self.register_buffer("mel_filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)
        self.max_frames = int(self.model.config.max_source_positions)

    def _stack(self) -> tuple[Any, str]:
        return self.model, "layers"

    def log_mel(self, wave: Tensor, lengths: Tensor) -> Tensor:
        """Whisper's log-mel of waveforms (B, T) → (B, mels, T // 160); the dynamic range is that of the valid part."""
        form: dict[str, Any] = dict(window=self.window, center=True, pad_mode="reflect", return_complex=True)
        spectrum = torch.stft(wave.float(), self.n_fft, self.hop, **form)[..., :-1]
        power = spectrum.abs().square()  # (B, bins, frames)
        mel = torch.log10((self.mel_filters.T @ power).clamp_min(1e-10))
        # The frame after the last valid one still overlaps it, as it does when the reference pads to 30 s.
        covered = torch.div(beside(lengths, mel), self.hop, rounding_mode="floor") + 2
        valid = mask_from_lengths(covered, mel.shape[-1])[:, None]
        peak = mel.masked_fill(~valid, -10.0).amax((1, 2), keepdim=True)
        return (torch.maximum(mel, peak - 8.0) + 4.0) / 4.0

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> EncoderOutput:
        """Encode (B, T) with valid `lengths` (B,) samples; states: the convolved log-mel, then every layer, (B, F, D)."""
        if lengths is None:
            lengths = torch.full((wave.shape[0],), wave.shape[1], device=wave.device)
        frames = torch.div(lengths + self.grid.stride - 1, self.grid.stride, rounding_mode="floor").clamp_min(1)
        if int(frames.max()) > self.max_frames:
            limit = self.max_frames / 50
            raise UserError(f"Whisper takes at most {limit:.0f} s: set data.crop_seconds to {limit - 1:.0f} or less.")
        context = (frames + TAIL).clamp_max(self.max_frames)  # (B,)
        size = int(context.max())
        whole, context = bool((context == size).all()), beside(context, wave)
        samples = size * self.grid.stride
        with torch.autocast(wave.device.type, enabled=False):
            mel = self.log_mel(functional.pad(wave, (0, max(0, samples - wave.shape[1])))[:, :samples], lengths)
        mel = mel * mask_from_lengths(2 * context, mel.shape[-1])[:, None]
        x = functional.gelu(self.model.conv1(mel))
        x = x * mask_from_lengths(2 * context, x.shape[-1])[:, None]
        cnn = functional.gelu(self.model.conv2(x)).transpose(1, 2)  # (B, F, D)
        x = cnn + self.model.embed_positions.weight[:size]
        valid = mask_from_lengths(context, size)
        mask = None if whole else valid[:, None, None, :].expand(-1, 1, size, -1)
        states = [cnn, *layer_outputs(self.model.layers, x, mask)]
        if self.final_norm:
            states[-1] = self.model.layer_norm(states[-1])
        keep = int(frames.max())
        return EncoderOutput(tuple(state[:, :keep] for state in states), cnn[:, :keep], frames)
