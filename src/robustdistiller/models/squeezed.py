"""SEW and SEW-D: convolutional encoders whose Transformer runs at a fraction of their frame rate (arXiv 2109.06870).

The projected features, a frame every 20 ms, are pooled by `squeeze_factor` (2) before the layers and unfolded after them.
Every state is given at 20 ms: a layer's frame stands for all the frames that it was pooled from, and the last state is the
unfolded output, which is the `last_hidden_state` of `transformers`. An odd last frame, which pooling drops, is not valid.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .encoder import CAPTURE, ConvEncoder, EncoderOutput, LayerCapture, bound
from .frames import mask_from_lengths


class SqueezedEncoder(ConvEncoder):
    """A SEWModel or SEWDModel with lengths in and lengths out."""

    def __init__(self, model: Any, normalize: bool = False, grad_mult: float = 1.0):
        super().__init__(model, normalize, grad_mult)
        self.factor = int(model.config.squeeze_factor)
        self.grid = replace(self.grid, field=self.grid.field + (self.factor - 1) * self.grid.stride)
        self.final_norm = True  # what follows the last layer is no norm, but it goes with that layer alone

    def _stack(self) -> tuple[Any, str]:
        inner = getattr(self.model.encoder, "encoder", None)  # SEW-D
        return (inner, "layer") if inner is not None else (self.model.encoder, "layers")

    def _project(self, cnn: Tensor) -> Tensor:
        normed = self.model.layer_norm(cnn)
        return self.model.feature_projection(normed) if self.model.project_features else normed

    def forward(self, *inputs: Any, **named: Any) -> EncoderOutput:
        """As of `ConvEncoder`."""
        output = super().forward(*inputs, **named)
        frames = output.states[-1].shape[1]
        lengths = torch.div(output.lengths, self.factor, rounding_mode="floor") * self.factor
        return EncoderOutput(tuple(state[:, :frames] for state in output.states), output.cnn[:, :frames], lengths)

    def transform(self, projected: Tensor, valid: Tensor | None) -> list[Tensor]:
        """Run the Transformer; the output of every layer at 20 ms. Padded frames must not be pooled with valid ones."""
        encoder, config = self.model.encoder, self.model.config
        x = (projected if valid is None else projected * valid[..., None]).transpose(1, 2)  # (B, D, F)
        pooled = encoder.pool(x)
        size = pooled.shape[-1]
        x = (pooled + encoder.pos_conv_embed(x)[..., :size]).transpose(1, 2)  # (B, F / factor, D)
        mask = None
        if valid is not None:
            mask = mask_from_lengths(torch.div(valid.sum(1), self.factor, rounding_mode="floor"), size)
        inner, name = self._stack()
        states: list[Tensor] = []
        if name == "layer":
            capture = LayerCapture(None, [])
            with bound(CAPTURE, capture):
                inner(x, x.new_ones(x.shape[:2], dtype=torch.long) if mask is None else mask.long())
            states = capture.outputs
        else:
            from transformers.masking_utils import create_bidirectional_mask

            attention = create_bidirectional_mask(config=config, inputs_embeds=x, attention_mask=mask)
            x = encoder.dropout(encoder.layer_norm(x))
            for layer in encoder.layers:
                x = layer(x, attention_mask=attention)
                states.append(x)
        last = states[-1]
        spread = [state.repeat_interleave(self.factor, 1) for state in states]
        if self.final_norm:
            spread[-1] = encoder.upsample(last)
        return spread
