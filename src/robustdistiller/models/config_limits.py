"""What a stranger's model folder claims, checked against bounds and its own files before any memory is spent on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import UserError

LARGEST = 1 << 20
"""No number in the description of a speech encoder is larger."""

LIMITS = {
    **dict.fromkeys(("hidden_size", "d_model", "output_hidden_size", "conv_dim", "hidden", "targets"), 1 << 14),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "num_conv_pos_embeddings"), 1 << 17),
    **dict.fromkeys(("num_hidden_layers", "encoder_layers", "decoder_layers", "num_feat_extract_layers"), 256),
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads"), 1024),
    **{"num_adapter_layers": 16, "n_fft": 8192, "feature_size": 512, "chunk_length": 60, "conv_kernel": 1024},
    **{"max_source_positions": 1 << 14, "squeeze_factor": 64, "num_mel_bins": 1024, "stride": 64},
}
"""Tighter bounds, several times what any published encoder has: each of these sizes memory or a loop."""

LONGEST_LIST = 4096


def check_values(values: Any, where: str) -> None:
    """Refuse a description that is no mapping or holds a number that no model has; `where` names it in the error."""
    if not isinstance(values, dict):
        raise UserError(f"{where} is no mapping of names to values: copy or download it again.")
    pending: list[tuple[str, Any]] = list(values.items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending += value.items()
        elif isinstance(value, list):
            if len(value) > LONGEST_LIST:
                raise UserError(f"{where} lists {len(value)} values as {name}, which no model has: download it again.")
            pending += [(name, item) for item in value]
        elif isinstance(value, (int, float)) and abs(value) > LIMITS.get(name, LARGEST if type(value) is int else 1e30):
            raise UserError(f"{where} says {name} = {value:.6g}, which no model has: copy or download it again.")


def check_finite(module: nn.Module, name: str) -> None:
    """Refuse weights that are not numbers: nothing computed with them would be."""
    for key, value in module.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"The weights {key} of {name} hold values that are not numbers: copy or download it again.")
