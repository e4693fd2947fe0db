"""The mini teacher as a network: a small HuBERT, wav2vec 2.0 or WavLM with heads that predict the layers of a larger encoder.

The heads and the scale of the targets belong to pretraining and are thrown away with it; what is left is a `transformers`
model like any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional

from ..audio.io import SAMPLE_RATE
from ..config import Depth, Whole, Width
from ..models.building import NO_MASKING
from ..models.frames import GRID
from ..schema import Section


class MiniConfig(Section):
    """Form and size of the mini, and which of its states learn which states of its teacher.

    State 0 is the projected CNN output.
    """

    architecture: Literal["hubert", "wav2vec2", "wavlm"] = "hubert"
    layers: Depth = 12
    hidden_size: Width = 256
    heads: Width = 4
    feed_forward: Width = 1024
    channels: Width = 128
    taps: tuple[Whole, ...] = (0, 3, 6, 9, 12)
    targets: tuple[Whole, ...] = (0, 1, 2, 3, 4)

    @model_validator(mode="after")
    def _check(self) -> MiniConfig:
        if len(self.taps) != len(self.targets) or not all(0 <= tap <= self.layers for tap in self.taps):
            raise ValueError("taps must be states of the mini, one for every target")
        return self


def build_mini(config: MiniConfig | None = None) -> Any:
    """The bare model of `transformers` with random weights (global generator); 10.3 M parameters by default."""
    import transformers as hf

    c = config or MiniConfig()
    family = {"hubert": "Hubert", "wav2vec2": "Wav2Vec2", "wavlm": "WavLM"}[c.architecture]
    make_config, model = getattr(hf, f"{family}Config"), getattr(hf, f"{family}Model")  # loads no other family
    return model(
        make_config(
            hidden_size=c.hidden_size,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            intermediate_size=c.feed_forward,
            conv_dim=(c.channels,) * 7,
            num_conv_pos_embedding_groups=max(1, min(16, c.hidden_size // 16)),  # bf16 needs 16 channels a group
            feat_extract_norm="group",
            **dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout"), 0.0),
            **NO_MASKING,
        )
    )


class Mini(nn.Module):
    """A bare model with one linear head per tap, and the mean and scale that standardise the targets."""

    mean: Tensor  # (L, F, D)
    scale: Tensor  # (L, 1, D)

    def __init__(self, config: MiniConfig, target_size: int, longest: float):
        """target_size: dimensions of the teacher's states; longest: seconds of the longest crop."""
        super().__init__()
        self.config = config
        self.model: Any = build_mini(config)
        if config.architecture != "wavlm":  # whose attention has one form only
            # On a CPU the fused attention costs a fifth of a step more than the plain one at crops of a few seconds.
            self.model.set_attn_implementation("eager")
        self.heads = nn.ModuleList(nn.Linear(config.hidden_size, target_size) for _ in config.taps)
        self.mask_vector = nn.Parameter(torch.zeros(config.hidden_size))
        frames = int(GRID.count(torch.tensor(round(longest * SAMPLE_RATE))))
        self.register_buffer("mean", torch.zeros(len(config.taps), frames, target_size))
        self.register_buffer("scale", torch.ones(len(config.taps), 1, target_size))

    def forward(self, wave: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalised waves (B, T), frames to hide from the Transformer (B, F) → predictions (B, L, F, D) float32."""
        encoder = self.model.encoder
        projected = self.model.feature_projection(self.model.feature_extractor(wave).transpose(1, 2))
        projected = projected[0] if isinstance(projected, tuple) else projected  # (B, F, hidden)
        states = [projected]
        if mask is not None:
            projected = torch.where(mask[..., None], self.mask_vector.to(projected.dtype), projected)
        x = encoder.layer_norm(projected + encoder.pos_conv_embed(projected))
        bias: dict[str, Tensor] = {}  # of relative positions: the first layer of a WavLM makes it for all
        for layer in encoder.layers:
            x = layer(x, **bias)
            if self.config.architecture == "wavlm":
                x, bias["position_bias"] = x[:2]
            elif isinstance(x, tuple):
                x = x[0]
            states.append(x)
        predictions = [head(states[tap]) for head, tap in zip(self.heads, self.config.taps, strict=True)]
        return torch.stack(predictions, 1).float()

    def standardise(self, states: Tensor) -> Tensor:
        """The teacher's states (B, S, F, D) → targets (B, L, F, D) of zero mean and unit variance in every dimension.

        Whisper is a pre-norm network: a few dimensions of its residual stream are a hundred times larger than the rest
        and would be all that a loss sees.
        """
        picked = states[:, list(self.config.targets)]
        return (picked - self.mean[:, : picked.shape[2]]) / self.scale

    @torch.no_grad()
    def measure(self, batches: Iterable[Tensor]) -> None:
        """Set mean and scale from the teacher's states (B, S, F, D) of crops of the longest length, one batch at a time.

        The mean is taken per position, over all crops and five neighbouring frames: Whisper adds an absolute position
        to its residual stream, which a network with relative positions cannot know and should not spend itself on.
        """
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for batch in batches:
            states = batch[:, list(self.config.targets)].double()
            count += len(states)
            total, squares = total + states.sum(0), squares + states.square().sum(0)  # (L, F, D)
        mean = total / count
        around = functional.pad(mean.transpose(1, 2), (2, 2), mode="replicate").unfold(2, 5, 1).mean(-1).transpose(1, 2)
        self.mean.copy_(around.float())
        variance = squares / count - mean.square() + (mean - around).square()
        self.scale.copy_(variance.mean(1).clamp_min(0).sqrt().clamp_min(1e-4)[:, None].float())


def loss_terms(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """L1 and -log sigmoid(cosine), (B, L) each, of (B, L, F, D): the terms of the distillation loss, kept apart by layer."""
    cosine = functional.cosine_similarity(prediction, target, dim=-1, eps=1e-6)
    return (prediction - target).abs().mean((2, 3)), -functional.logsigmoid(cosine).mean(2)
