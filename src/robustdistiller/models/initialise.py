"""A student's first weights: what the teacher can give by name, by shape, or by choosing what carries most.

Thinned convolutions and feed-forward layers cannot copy the teacher's weights as they are. They take some of the teacher's
channels and units: those that `pruning.plan_pruning` names on speech, else those whose weights carry most, by the
energy of the weights that make a channel times the energy of the weights that read it. Weights that read fewer channels than
in the teacher are scaled up so that the energy of each output filter is kept, until `pruning.fit` replaces them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .encoder import ConvEncoder

CONVOLUTION = "feature_extractor.conv_layers.{}.conv.weight"
PROJECT = "feature_projection.projection.weight"
FEED_FORWARD = "encoder.layers.{}.feed_forward.{}_dense"


@dataclass
class PruningPlan:
    """What a narrower student keeps of its source, by number, in rising order.

    channels: of each convolution; empty where the front end is not pruned. units: of each layer's feed-forward part, None
    where it is as wide as the source's
    """

    channels: list[Tensor] = field(default_factory=list)
    units: list[Tensor | None] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.channels) or any(units is not None for units in self.units)


@dataclass
class Initialisation:
    """Names of the student's tensors by where their first values came from, and what pruned parts kept."""

    copied: list[str] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)
    random: list[str] = field(default_factory=list)
    fitted: list[str] = field(default_factory=list)
    kept: PruningPlan = field(default_factory=PruningPlan)

    def __str__(self) -> str:
        kinds = {"copied": self.copied, "pruned": self.pruned, "fitted": self.fitted, "random": self.random}
        return ", ".join(f"{len(names)} tensors {kind}" for kind, names in kinds.items() if names)

    def mark_fitted(self, prefix: str) -> None:
        """Say of the tensors with this beginning that they were fitted afterwards."""
        for names in (self.copied, self.pruned, self.random):
            self.fitted += [name for name in names if name.startswith(prefix)]
            names[:] = [name for name in names if not name.startswith(prefix)]


def copyable_state(source: nn.Module, layers: Sequence[int]) -> dict[str, Tensor]:
    """The weights of an encoder by `transformers` names; empty for Whisper, of which nothing fits.

    Args:
        source: The encoder.
        layers: Its layers (1-based) that a student starts from; they are numbered as the student's.
    """
    if not isinstance(source, ConvEncoder):
        return {}
    state = source.model.state_dict()
    # WavLM's embedding of relative positions stands in its first layer, and serves all.
    found = {k: v for k, v in state.items() if not k.startswith("encoder.layers.") or "rel_attn_embed" in k}
    for place, layer in enumerate(layers):
        theirs, mine = f"encoder.layers.{layer - 1}.", f"encoder.layers.{place}."
        found |= {mine + name.removeprefix(theirs): value for name, value in state.items() if name.startswith(theirs)}
    return found


def initialise(student: nn.Module, teacher: dict[str, Tensor], kept: PruningPlan | None = None) -> Initialisation:
    """Fill `student` (a `transformers` model) in place from another's state dict; tell what came from where.

    kept: what pruned parts keep; None: what `strongest` finds in the weights alone
    """
    own = student.state_dict()
    report = Initialisation(kept=strongest(own, teacher) if kept is None else kept)
    pruned = _prune_front_end(own, teacher, report.kept.channels) | _shorten_position(own, teacher)
    for layer, units in enumerate(report.kept.units):
        if units is not None:
            pruned |= _prune_feed_forward(teacher, layer, units)
    for name, value in own.items():
        if name in teacher and teacher[name].shape == value.shape and name not in pruned:
            own[name] = teacher[name]
            report.copied.append(name)
        elif name in pruned:
            own[name] = pruned[name]
            report.pruned.append(name)
        else:
            report.random.append(name)
    student.load_state_dict(own)
    return report


def strongest(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> PruningPlan:
    """The channels and units whose weights carry most, where the student is narrower than the teacher and else like it."""
    kept = PruningPlan()
    names = _narrower_convolutions(student, teacher)
    for position, name in enumerate(names):
        weight = teacher[name]  # (out, in, kernel)
        reader = teacher[names[position + 1]] if position + 1 < len(names) else teacher[PROJECT][:, :, None]
        importance = weight.square().sum((1, 2)) * reader.square().sum((0, 2))
        kept.channels.append(importance.topk(student[name].shape[0]).indices.sort().values)
    for layer in range(len(student)):
        inner, outer = (FEED_FORWARD.format(layer, part) + ".weight" for part in ("intermediate", "output"))
        if inner not in student or inner not in teacher:
            break
        mine, theirs = student[inner], teacher[inner]
        if mine.shape[1] != theirs.shape[1] or mine.shape[0] >= theirs.shape[0]:
            kept.units.append(None)
            continue
        importance = theirs.square().sum(1) * teacher[outer].square().sum(0)
        kept.units.append(importance.topk(mine.shape[0]).indices.sort().values)
    return kept


def _narrower_convolutions(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> list[str]:
    """The names of all convolutions, where some of the student's are narrower than the teacher's and none is wider."""
    names = [name for name in map(CONVOLUTION.format, range(len(teacher))) if name in teacher and name in student]
    if not names or PROJECT not in teacher or PROJECT not in student:
        return []
    widths = [(student[name].shape[0], teacher[name].shape[0]) for name in names]
    if all(mine == theirs for mine, theirs in widths) or any(mine > theirs for mine, theirs in widths):
        return []
    same_kernels = all(student[name].shape[2] == teacher[name].shape[2] for name in names)
    return names if same_kernels else []


def _prune_front_end(
    student: dict[str, Tensor], teacher: dict[str, Tensor], channels: list[Tensor]
) -> dict[str, Tensor]:
    """The front end's tensors cut down to `channels`; empty when none is narrower."""
    result: dict[str, Tensor] = {}
    inputs = torch.arange(1)
    for position, outputs in enumerate(channels):
        name = CONVOLUTION.format(position)
        weight = teacher[name]
        result[name] = _keep_energy(weight[outputs], weight[outputs][:, inputs])
        for suffix in ("conv.bias", "layer_norm.weight", "layer_norm.bias"):
            side = name.replace("conv.weight", suffix)
            if side in student and side in teacher:
                result[side] = teacher[side][outputs]
        inputs = outputs
    if not channels:
        return result
    for side in ("feature_projection.layer_norm.weight", "feature_projection.layer_norm.bias"):
        if side in student and side in teacher:
            result[side] = teacher[side][inputs]
    if student[PROJECT].shape[0] == teacher[PROJECT].shape[0]:
        result[PROJECT] = _keep_energy(teacher[PROJECT], teacher[PROJECT][:, inputs])
    return result


def _prune_feed_forward(teacher: dict[str, Tensor], layer: int, units: Tensor) -> dict[str, Tensor]:
    """A layer's feed-forward part cut down to `units`."""
    inner, outer = (FEED_FORWARD.format(layer, part) for part in ("intermediate", "output"))
    output = teacher[f"{outer}.weight"]
    return {
        f"{inner}.weight": teacher[f"{inner}.weight"][units], f"{inner}.bias": teacher[f"{inner}.bias"][units],
        f"{outer}.weight": _keep_energy(output, output[:, units]), f"{outer}.bias": teacher[f"{outer}.bias"],
    }  # fmt: skip


def _shorten_position(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> dict[str, Tensor]:
    """The middle of the position convolution's kernel, where most of its energy is, for a student with a shorter one."""
    result = {}
    for name in (f"encoder.pos_conv_embed.conv.parametrizations.weight.original{k}" for k in (0, 1)):
        if name in student and name in teacher and student[name].shape[:2] == teacher[name].shape[:2]:
            taps, full = student[name].shape[2], teacher[name].shape[2]
            # Of an even kernel the middle is the tap after its first half.
            if taps < full:
                result[name] = teacher[name][..., full // 2 - taps // 2 :][..., :taps]
    return result


def _keep_energy(full: Tensor, kept: Tensor) -> Tensor:
    """Scale each output filter of `kept` to the energy that it has in `full`."""
    axes = tuple(range(1, full.dim()))
    gain = (full.square().sum(axes) / kept.square().sum(axes).clamp_min(1e-12)).sqrt()
    return kept * gain.view(-1, *(1,) * (full.dim() - 1))
