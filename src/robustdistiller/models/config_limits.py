"""What a stranger's model folder claims, checked against bounds and its own files before any memory is spent on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..files import read_json

LARGEST = 1 << 20
"""No number in the description of a speech encoder is larger."""

LIMITS = {
    **dict.fromkeys(("hidden_size", "d_model", "output_hidden_size", "conv_dim", "hidden", "targets"), 1 << 14),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "num_conv_pos_embeddings"), 1 << 17),
    **dict.fromkeys(("num_hidden_layers", "encoder_layers", "decoder_layers", "num_feat_extract_layers"), 256),
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads"), 1024),
    **{"num_adapter_layers": 16, "n_fft": 8192, "feature_size": 512, "chunk_length": 60, "conv_kernel": 1024},
}
"""Tighter bounds, several times what any published encoder has: each of these sizes memory or a loop."""

LONGEST_LIST = 4096


def check_folder(folder: Path) -> None:
    """Refuse impossible sizes, quantised weights and weight lists that leave the folder; raises `UserError`."""
    for name, what in (("config.json", "model config"), ("preprocessor_config.json", "preprocessor config")):
        if (folder / name).is_file():
            check_values(read_json(folder / name, what), f"{folder / name}")
    if "quantization_config" in read_json(folder / "config.json", "model config"):
        raise UserError(f"The weights in {folder} are quantised: give the model in 16 or 32 bits.")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        parts = read_json(index, "list of weights")
        names = parts.get("weight_map") if isinstance(parts, dict) else None
        if not isinstance(names, dict) or any(Path(str(name)).name != name for name in names.values()):
            raise UserError(f"The list of weights {index} names files outside its folder: download the model again.")


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


def check_weights(config: Any, folder: Path) -> None:
    """Refuse a config that describes more weights than the files hold bytes, without allocating any of them."""
    from transformers import AutoModel

    with torch.device("meta"):
        described = AutoModel.from_config(config)
    counts = {True: 0, False: 0}
    for name, parameter in described.named_parameters():
        counts[name.startswith("decoder.")] += parameter.numel()
    held = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    # A weight takes a byte or more. A decoder, which is not used, need not be there, but its memory is taken.
    if counts[False] > held or counts[True] > 16 * held:
        raise UserError(
            f"The config in {folder} describes {sum(counts.values()) / 1e6:.1f} M weights, but the .safetensors files hold "
            f"{held / 1e6:.1f} MB: copy or download the folder again."
        )


def check_finite(module: nn.Module, name: str) -> None:
    """Refuse weights that are not numbers: nothing computed with them would be."""
    for key, value in module.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"The weights {key} of {name} hold values that are not numbers: copy or download it again.")
