"""Checkpoints of s3prl's distiller (DistilHuBERT, and the RobustDistiller authors' ``rd_*.ckpt``) → a student folder.

Such a checkpoint is a pickled dictionary with the student's tensors under ``Distiller`` and its settings under ``Config``. It
is opened with PyTorch's restricted loader, which builds tensors and plain containers and refuses everything else; the one
class allowed beside them is `argparse.Namespace`, in which the toolkit keeps its command line. Sizes are taken from the
tensors, never from the settings, so that a file cannot ask for more memory than it fills.

Their student is the HuBERT layout without a LayerNorm before the projection and without input normalisation. One distilled
from WavLM has plain attention: the authors' code drops the teacher's position bias and gates when it copies the layers.
"""

from __future__ import annotations

import argparse
import math
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..errors import UserError, closest, code, explained, markdown
from ..files import StrPath
from ..models.building import NO_MASKING
from ..models.encoder import ConvEncoder
from ..models.frames import GRID
from ..models.heads import PredictionHeads
from ..models.student import Student
from ..models.weights import check_archive

# their name → ours, inside the encoder; {i} counts convolutions or layers
_ENCODER = {
    "post_extract_proj": "feature_projection.projection",
    "encoder.layer_norm": "encoder.layer_norm",
    "encoder.layers.{i}.self_attn.q_proj": "encoder.layers.{i}.attention.q_proj",
    "encoder.layers.{i}.self_attn.k_proj": "encoder.layers.{i}.attention.k_proj",
    "encoder.layers.{i}.self_attn.v_proj": "encoder.layers.{i}.attention.v_proj",
    "encoder.layers.{i}.self_attn.out_proj": "encoder.layers.{i}.attention.out_proj",
    "encoder.layers.{i}.self_attn_layer_norm": "encoder.layers.{i}.layer_norm",
    "encoder.layers.{i}.fc1": "encoder.layers.{i}.feed_forward.intermediate_dense",
    "encoder.layers.{i}.fc2": "encoder.layers.{i}.feed_forward.output_dense",
    "encoder.layers.{i}.final_layer_norm": "encoder.layers.{i}.final_layer_norm",
}
_POSITION = "encoder.pos_conv_embed.conv"
_WAVLM_ONLY = ("relative_attention_bias", "grep_a", "grep_linear")


@dataclass(frozen=True)
class Imported:
    """What came in: the student as written, the teacher's name as far as the checkpoint tells, the steps of its training."""

    student: Student
    teacher: str
    step: int | None


def import_checkpoint(checkpoint: StrPath, out: StrPath) -> Imported:
    """Turn an s3prl distiller checkpoint into the student folder `out`, prediction heads included.

    Raises `UserError` for a file that is no such checkpoint, holds anything but tensors and plain values, is truncated, has
    tensors that are unexpected, missing or of another shape, or was built in a way that our student cannot be.
    """
    values = read_checkpoint(checkpoint)
    tensors, settings, told = _parts(values, checkpoint)
    student = build(tensors, settings, str(checkpoint))
    teacher, step = told.get("teacher"), values.get("Step")
    name = str(teacher.get("model", "unknown")) if isinstance(teacher, dict) else "unknown"
    imported = Imported(student, name, step if isinstance(step, int) else None)
    student.save(out, {"README.md": _card(imported, Path(checkpoint).name)})
    return imported


def read_checkpoint(path: StrPath) -> dict[str, Any]:
    """Load a checkpoint without building anything but tensors and plain values. Raises `UserError`."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}: check the path.")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is no complete PyTorch checkpoint (1.6 or newer): copy it, or torch.save it, again.")
    with explained(f"{path} cannot be loaded", "copy it again."):
        check_archive(path, also=("argparse.Namespace",))
        with torch.serialization.safe_globals([argparse.Namespace]):
            values = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, not the dictionary of an s3prl checkpoint.")
    return values


def _parts(values: dict[str, Any], path: Any) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """The tensors, the distiller's settings, and all settings."""
    if {"state_dict", "config"} <= values.keys():
        raise UserError(f"{path} is a pruned model (DPHuBERT's layout): only s3prl distiller checkpoints are imported.")
    if not {"Distiller", "Config"} <= values.keys():
        known = ", ".join(str(key) for key in list(values)[:6])
        raise UserError(f"{path} has no 'Distiller' and 'Config' (it has {known}): it is no distiller checkpoint.")
    tensors, told = values["Distiller"], values["Config"]
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise UserError(f"The 'Distiller' entry of {path} is no set of named tensors: copy the checkpoint again.")
    for name, tensor in tensors.items():
        plain = tensor.layout == torch.strided and tensor.is_floating_point()
        if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"The tensor {name} of {path} is no plain one in 16 or 32 bits: copy the checkpoint again.")
    settings = told.get("distiller") if isinstance(told, dict) else None
    if not isinstance(settings, dict):
        raise UserError(f"The 'Config' entry of {path} has no 'distiller' section: copy the checkpoint again.")
    return {name: tensor.float() for name, tensor in tensors.items()}, settings, told


def build(tensors: dict[str, Tensor], settings: dict[str, Any], where: str) -> Student:
    """The student that these tensors and settings describe. Raises `UserError` when they do not fit together."""
    from transformers import HubertModel

    left = dict(tensors)
    try:
        config, strides = _config(left, settings, where)
        state = _encoder_state(left, config)
        heads, layers = _heads(left, settings, config.hidden_size, where)
        if left:
            raise UserError(_unexpected(left, tensors, where))
        model = HubertModel(config)
        model.load_state_dict(state)
    except (KeyError, IndexError) as error:
        raise UserError(f"{where} lacks the tensor {error.args[0]}: copy the checkpoint again.") from error
    except RuntimeError as error:
        first = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"The tensors of {where} do not fit together ({first[-1][:140]}): copy it again.") from error
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise UserError(f"{where} holds weights that are not numbers: its training failed; take another checkpoint.")
    if math.prod(strides) != GRID.stride:
        raise UserError(f"{where} has a frame every {math.prod(strides)} samples: only 320 (20 ms) can be used here.")
    return Student(ConvEncoder(model), heads, None, layers, name=Path(where).stem).eval()


def _config(tensors: dict[str, Tensor], settings: dict[str, Any], where: str) -> tuple[Any, list[int]]:
    """The HuBERT configuration: sizes from the tensors, the rest from the settings, in their defaults where left out."""
    from transformers import HubertConfig

    text = settings.get("extractor_conv_feature_layers", "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2")
    announced = conv_layers(str(text), where)
    shapes = [tensors[f"feature_extractor.conv_layers.{i}.0.weight"].shape for i in range(len(announced))]
    if [(shape[0], shape[-1]) for shape in shapes] != [(width, kernel) for width, kernel, _ in announced]:
        raise UserError(f"The convolutions of {where} are not those of its settings ({text}): copy it again.")
    mode = str(settings.get("extractor_mode", "default"))
    attention = str(settings.get("attention_type", "original"))
    activation = str(settings.get("activation_fn", "gelu"))
    if mode not in ("default", "layer_norm") or attention != "original" or activation not in ("gelu", "relu"):
        raise UserError(
            f"{where} uses extractor_mode={mode}, attention_type={attention}, activation_fn={activation}, which have no "
            "counterpart here: only default or layer_norm, original, and gelu or relu are imported."
        )
    numbers = {name.split(".")[2] for name in tensors if name.startswith("encoder.layers.")}
    hidden = len(tensors["encoder.layer_norm.weight"])
    wanted = _integer(settings, "encoder_attention_heads", 12, where)
    if wanted < 1 or hidden % wanted:
        raise UserError(f"{where} names {wanted} attention heads for {hidden} dimensions, which do not divide.")
    position = _position(tensors)
    groups = hidden // position.shape[1] if position.dim() == 3 and position.shape[1] else 0
    if groups < 1:
        raise UserError(f"The position convolution of {where} has the shape {tuple(position.shape)}: copy it again.")
    config = HubertConfig(
        hidden_size=hidden, num_hidden_layers=len(numbers), num_attention_heads=wanted, hidden_act=activation,
        intermediate_size=len(tensors["encoder.layers.0.fc1.bias"]), conv_dim=tuple(width for width, _, _ in announced),
        conv_kernel=tuple(kernel for _, kernel, _ in announced), conv_stride=tuple(stride for _, _, stride in announced),
        conv_bias=False, feat_extract_norm="group" if mode == "default" else "layer", feat_proj_layer_norm=False,
        do_stable_layer_norm=bool(settings.get("layer_norm_first", False)), num_conv_pos_embeddings=position.shape[-1],
        num_conv_pos_embedding_groups=groups, hidden_dropout=_fraction(settings, "dropout"),
        activation_dropout=_fraction(settings, "activation_dropout"),
        attention_dropout=_fraction(settings, "attention_dropout"), **NO_MASKING,
    )  # fmt: skip
    return config, [stride for _, _, stride in announced]


def _encoder_state(left: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Our encoder's state, taken out of `left`."""
    state: dict[str, Tensor] = {}
    for i in range(len(config.conv_dim)):
        block = f"feature_extractor.conv_layers.{i}"
        state[f"{block}.conv.weight"] = left.pop(f"{block}.0.weight")
        norm = "2.1" if config.feat_extract_norm == "layer" else "2"
        if config.feat_extract_norm == "layer" or i == 0:
            for part in ("weight", "bias"):
                state[f"{block}.layer_norm.{part}"] = left.pop(f"{block}.{norm}.{part}")
    if "post_extract_proj.weight" not in left and config.conv_dim[-1] == config.hidden_size:
        # They leave the projection out where nothing has to be brought to another width; ours is then the identity.
        left["post_extract_proj.weight"] = torch.eye(config.hidden_size)
        left["post_extract_proj.bias"] = torch.zeros(config.hidden_size)
    for theirs, ours in _ENCODER.items():
        for i in range(config.num_hidden_layers if "{i}" in theirs else 1):
            for part in ("weight", "bias"):
                state[f"{ours.format(i=i)}.{part}"] = left.pop(f"{theirs.format(i=i)}.{part}")
    state[f"{_POSITION}.bias"] = left.pop("encoder.pos_conv.0.bias")
    for number, old in enumerate(("weight_g", "weight_v")):
        new = f"parametrizations.weight.original{number}"
        name = f"encoder.pos_conv.0.{old}" if f"encoder.pos_conv.0.{old}" in left else f"encoder.pos_conv.0.{new}"
        state[f"{_POSITION}.{new}"] = left.pop(name)
    return state


def _position(tensors: dict[str, Tensor]) -> Tensor:
    new = "encoder.pos_conv.0.parametrizations.weight.original1"
    return tensors[new] if new in tensors else tensors["encoder.pos_conv.0.weight_v"]


def _heads(
    left: dict[str, Tensor], settings: dict[str, Any], hidden: int, where: str
) -> tuple[PredictionHeads | None, tuple[int, ...]]:
    """The prediction heads, Linear → GELU → one Linear per layer, taken out of `left`; None where there are none."""
    kind = str(settings.get("task_emb_type", "expand-last"))
    if kind in ("add", "concat", "concat-last"):
        raise UserError(f"{where} was trained with task embeddings ({kind}): only expand-last students are imported.")
    if not any(name.startswith("output_layer.") for name in left):
        return None, ()
    count = _integer(settings, "n_tasks", 12, where)
    layers = settings.get("pred_layer_id", list(range(1, count + 1)))
    if not isinstance(layers, list | tuple) or len(layers) != count or not all(isinstance(k, int) for k in layers):
        raise UserError(f"{where} names {layers!r:.60} as the layers of its {count} heads: copy the checkpoint again.")
    shared = left.pop("output_layer.0.weight"), left.pop("output_layer.0.bias")
    if count == 1:
        weights, biases = left.pop("output_layer.2.layer.weight")[None], left.pop("output_layer.2.layer.bias")[None]
    else:
        # (layers, in, out) and (1, 1, layers, out): theirs multiply from the left.
        weights = left.pop("output_layer.2.weight").transpose(-1, -2)
        biases = left.pop("output_layer.2.bias").reshape(-1, weights.shape[1])
    if shared[0].shape != (count * hidden, hidden) or weights.shape[0] != count or weights.shape[-1] != hidden:
        raise UserError(f"The heads of {where} are not {hidden} wide inside (out_layer_inter_dim), as ours have to be.")
    heads = PredictionHeads(hidden, weights.shape[1], count)
    state = {"shared.weight": shared[0], "shared.bias": shared[1]}
    for part, values in (("weight", weights), ("bias", biases)):
        state |= {f"outputs.{k}.{part}": value for k, value in enumerate(values)}
    heads.load_state_dict(state)
    return heads, tuple(layers)


def _unexpected(left: dict[str, Tensor], tensors: dict[str, Tensor], where: str) -> str:
    name = sorted(left)[0]
    if any(part in name for part in _WAVLM_ONLY):
        return f"{where} keeps WavLM's position bias ({name}), which the authors' students do not have: it cannot be imported."
    return f"{where} has {len(left)} unexpected tensors ({name}): it is another model.{closest(name, set(tensors) - set(left))}"


def conv_layers(text: str, where: str = "the checkpoint") -> list[tuple[int, ...]]:
    """Read ``[(512,10,5)] + [(512,3,2)] * 4`` as a list of (width, kernel, stride), without evaluating it as a program."""
    layers: list[tuple[int, ...]] = []
    for term in text.replace(" ", "").split("+"):
        found = re.fullmatch(r"\[(?:\([1-9]\d{0,4},[1-9]\d{0,4},[1-9]\d{0,4}\),?)+\](?:\*([1-9]|1[0-6]))?", term[:400])
        if not found or len(layers) > 16:
            raise UserError(f"The convolutions of {where} cannot be read from {text[:80]!r}: copy it again.")
        triples = re.findall(r"(\d+),(\d+),(\d+)", term)
        layers += [tuple(map(int, triple)) for triple in triples] * int(found[1] or 1)
    return layers


def _integer(settings: dict[str, Any], name: str, default: int, where: str) -> int:
    value = settings.get(name, default)
    if type(value) is not int:
        raise UserError(f"The setting {name} of {where} is {value!r:.40}, not a whole number: copy it again.")
    return value


def _fraction(settings: dict[str, Any], name: str) -> float:
    value = settings.get(name, 0.1)
    return float(value) if isinstance(value, int | float) and 0 <= value < 1 else 0.1


def _card(imported: Imported, source: str) -> str:
    student = imported.student
    heads = f"its heads predict layers {', '.join(map(str, student.layers))}" if student.heads else "it has no heads"
    steps = f", {imported.step} steps" if imported.step is not None else ""
    return f"""---
library_name: transformers
tags: [speech, distillation, robustdistiller]
---
# {markdown(student.name)}

Imported by RobustDistiller {__version__} from the s3prl checkpoint `{code(source)}`
(teacher `{code(imported.teacher)}`{steps}): a speech encoder of
{student.num_parameters / 1e6:.2f} M parameters, {student.hidden_size} dimensions every 20 ms; {heads}.
The checkpoint's licence is not known here: fill it in before passing the model on.
"""
