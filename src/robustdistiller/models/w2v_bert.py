"""Wave → hidden states for w2v-BERT 2.0: Kaldi's log-mel on the device, two frames stacked, independent of padding.

The input is that of `transformers.SeamlessM4TFeatureExtractor`: 80 mel bands every 10 ms, each brought to zero mean and unit
variance over the utterance, and two frames joined to one of 160 values every 20 ms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .encoder import CAPTURE, EncoderOutput, LayerCapture, SpeechEncoder, bound, capture_output
from .frames import FrameGrid, mask_from_lengths

FLOOR = 1.192092955078125e-07


class W2vBertEncoder(SpeechEncoder):
    """The encoder of a Wav2Vec2BertModel as wave → states; frame f covers samples 320 f to 320 f + 559.

    model: a Wav2Vec2BertModel; extractor: its SeamlessM4TFeatureExtractor, for the mel filters and the window
    """

    grid = FrameGrid(stride=320, offset=280, field=560)
    mel_filters: Tensor
    window: Tensor

    def __init__(self, model: Any, extractor: Any):
        super().__init__()
        bands = getattr(extractor, "num_mel_bins", 0)
        wanted = int(model.config.feature_projection_input_dim)
        if getattr(extractor, "stride", 0) != 2 or 2 * bands != wanted:
            raise UserError(
                f"This w2v-BERT takes {wanted} values a frame, its preprocessor_config.json makes {2 * bands} in pairs: copy "
                "both files again from one place."
            )
        self.model = model
        for layer in model.encoder.layers:
            layer.register_forward_hook(capture_output)
        for name in ("mel_filters", "window"):  # (257, 80) and (400,)
            self.register_buffer(name, torch.as_tensor(getattr(extractor, name)).float(), persistent=False)

    def log_mel(self, wave: Tensor, lengths: Tensor) -> Tensor:
        """Waveforms (B, T) with valid `lengths` (B,) samples → (B, F, 160), F frames of 20 ms, zeros beyond the valid ones."""
        frames = (wave.float() * 2**15).unfold(1, 400, 160)  # (B, N, 400)
        frames = frames - frames.mean(-1, keepdim=True)
        first = frames[..., :1] * (1 - 0.97)
        frames = torch.cat([first, frames[..., 1:] - 0.97 * frames[..., :-1]], -1) * self.window
        power = torch.fft.rfft(frames, 512).abs().square()
        mel = (power @ self.mel_filters).clamp_min(FLOOR).log()  # (B, N, 80)
        counts = FrameGrid(160, 200, 400).count(lengths)
        valid = mask_from_lengths(counts, mel.shape[1])[..., None]
        counts = counts[:, None, None]
        centred = (mel - (mel * valid).sum(1, keepdim=True) / counts) * valid
        variance = centred.square().sum(1, keepdim=True) / (counts - 1).clamp_min(1)
        mel = centred * torch.rsqrt(variance + 1e-7)
        even = mel.shape[1] // 2 * 2
        return mel[:, :even].reshape(mel.shape[0], even // 2, -1)

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> EncoderOutput:
        """Encode (B, T) with valid `lengths` (B,) samples; states: the projected log-mel, then every layer, (B, F, D)."""
        if lengths is None:
            lengths = torch.full((wave.shape[0],), wave.shape[1], device=wave.device)
        frames = self.grid.count(lengths)
        if int(frames.min()) < 1:
            raise UserError(f"Audio is shorter than a frame of w2v-BERT ({self.grid.field} samples): leave it out.")
        with torch.autocast(wave.device.type, enabled=False):
            mel = self.log_mel(wave, lengths)
        projected, _ = self.model.feature_projection(mel)
        valid = mask_from_lengths(frames, mel.shape[1])
        capture = LayerCapture(None, [])
        with bound(CAPTURE, capture):
            self.model.encoder(projected.clone(), attention_mask=None if bool(valid.all()) else valid)
        states = capture.outputs
        return EncoderOutput((projected, *states), mel, frames)
