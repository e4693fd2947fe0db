"""A student's first weights: what the teacher can give by name, by shape, or by choosing its strongest channels.

Thinned convolutions cannot copy the teacher's weights as they are. They take the teacher's channels that carry most: the
importance of a channel is the energy of the weights that make it times the energy of the weights that read it. Weights that
read fewer channels than in the teacher are scaled up so that the energy of each output filter is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .encoder import SpeechEncoder


@dataclass
class Initialisation:
    """Names of the student's tensors by where their first values came from."""

    copied: list[str] = field(default_factory=list)
    thinned: list[str] = field(default_factory=list)
    random: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(names)} tensors {kind}" for kind, names in vars(self).items() if names]
        return ", ".join(parts)


def copyable_state(source: nn.Module) -> dict[str, Tensor]:
    """The weights of an encoder by `transformers` names; empty for Whisper, of which nothing fits."""
    return dict(source.model.state_dict()) if isinstance(source, SpeechEncoder) else {}


def initialise(student: nn.Module, teacher: dict[str, Tensor]) -> Initialisation:
    """Fill `student` (a `transformers` model) in place from another's state dict; tell what came from where."""
    own = student.state_dict()
    report = Initialisation()
    thinned = _thin_front_end(own, teacher)
    for name, value in own.items():
        if name in teacher and teacher[name].shape == value.shape and name not in thinned:
            own[name] = teacher[name]
            report.copied.append(name)
        elif name in thinned:
            own[name] = thinned[name]
            report.thinned.append(name)
        else:
            report.random.append(name)
    student.load_state_dict(own)
    return report


def _thin_front_end(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> dict[str, Tensor]:
    """The front end's tensors cut down to the student's channel counts; empty when nothing is thinner."""
    convolutions = [f"feature_extractor.conv_layers.{i}.conv.weight" for i in range(len(teacher))]
    convolutions = [name for name in convolutions if name in teacher and name in student]
    project = "feature_projection.projection.weight"
    if not convolutions or project not in teacher or project not in student:
        return {}
    widths = [(student[name].shape[0], teacher[name].shape[0]) for name in convolutions]
    if all(mine == theirs for mine, theirs in widths) or any(mine > theirs for mine, theirs in widths):
        return {}
    if any(student[name].shape[2] != teacher[name].shape[2] for name in convolutions):
        return {}
    result: dict[str, Tensor] = {}
    inputs = torch.arange(1)
    for position, name in enumerate(convolutions):
        weight = teacher[name]  # (out, in, kernel)
        reader = (
            teacher[convolutions[position + 1]] if position + 1 < len(convolutions) else teacher[project][:, :, None]
        )
        importance = weight.square().sum((1, 2)) * reader.square().sum((0, 2))
        outputs = importance.topk(student[name].shape[0]).indices.sort().values
        result[name] = _keep_energy(weight[outputs], weight[outputs][:, inputs])
        for suffix in ("conv.bias", "layer_norm.weight", "layer_norm.bias"):
            side = name.replace("conv.weight", suffix)
            if side in student and side in teacher:
                result[side] = teacher[side][outputs]
        inputs = outputs
    for side in ("feature_projection.layer_norm.weight", "feature_projection.layer_norm.bias"):
        if side in student and side in teacher:
            result[side] = teacher[side][inputs]
    if student[project].shape[0] == teacher[project].shape[0]:
        result[project] = _keep_energy(teacher[project], teacher[project][:, inputs])
    return result


def _keep_energy(full: Tensor, kept: Tensor) -> Tensor:
    """Scale each output filter of `kept` to the energy that it has in `full`."""
    axes = tuple(range(1, full.dim()))
    gain = (full.square().sum(axes) / kept.square().sum(axes).clamp_min(1e-12)).sqrt()
    return kept * gain.view(-1, *(1,) * (full.dim() - 1))
