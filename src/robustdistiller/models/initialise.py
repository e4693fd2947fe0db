"""A student's first weights: what the teacher can give by name, by shape, or by choosing its strongest channels.

Thinned convolutions cannot copy the teacher's weights as they are. They take the teacher's channels that carry most: the
importance of a channel is the energy of the weights that make it times the energy of the weights that read it. Weights that
read fewer channels than in the teacher are scaled up so that the energy of each output filter is kept, or, where there is
speech to listen to, fitted: each convolution to the teacher's output at its channels, one after the other, so that every one
makes up for what those before it lost. On the mini teacher's convolutions cut to an eighth … the whole of their width, the
projected output then keeps a cosine of 0.85 with the teacher's, and 0.34 without the fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .encoder import SpeechEncoder, normalize_wave

RIDGE = 1e-4  # of the mean energy of an input: what a minute of speech hardly excites stays small


@dataclass
class Initialisation:
    """Names of the student's tensors by where their first values came from.

    channels: the teacher's channels that each thinned convolution took; empty where the front end is not thinned
    """

    copied: list[str] = field(default_factory=list)
    thinned: list[str] = field(default_factory=list)
    random: list[str] = field(default_factory=list)
    channels: list[Tensor] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = {"copied": self.copied, "thinned": self.thinned, "random": self.random}
        return ", ".join(f"{len(names)} tensors {kind}" for kind, names in kinds.items() if names)


def copyable_state(source: nn.Module) -> dict[str, Tensor]:
    """The weights of an encoder by `transformers` names; empty for Whisper, of which nothing fits."""
    return dict(source.model.state_dict()) if isinstance(source, SpeechEncoder) else {}


def initialise(student: nn.Module, teacher: dict[str, Tensor]) -> Initialisation:
    """Fill `student` (a `transformers` model) in place from another's state dict; tell what came from where."""
    own = student.state_dict()
    report = Initialisation()
    thinned, report.channels = _thin_front_end(own, teacher)
    thinned |= _shorten_position(own, teacher)
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


@torch.no_grad()
def fit_front_end(
    student: SpeechEncoder, teacher: SpeechEncoder, channels: Sequence[Tensor], speech: Sequence[Tensor]
) -> None:
    """Fit the thinned convolutions of `student`, in place, to what `teacher` makes of `speech`: clips (T,) on its device.

    channels: as `Initialisation.channels` says. The first convolution hears the same waveform and stays; each other one,
    and the projection where it reads fewer channels, becomes the linear map with the least squared error.
    """
    mine, theirs = (encoder.model.feature_extractor.conv_layers for encoder in (student, teacher))
    modes = student.training, teacher.training
    student.eval(), teacher.eval()
    for number, kept in enumerate(channels[1:], 1):
        conv = mine[number].conv
        pairs = (
            (
                _patches(_convolved(student, mine[:number], wave), conv.kernel_size[0], conv.stride[0]),
                theirs[number].conv(_convolved(teacher, theirs[:number], wave))[0, kept].T,
            )
            for wave in speech
        )
        weight, bias = _least_squares(pairs, conv.bias is not None)
        conv.weight.copy_(weight.unflatten(1, (-1, conv.kernel_size[0])))
        if conv.bias is not None:
            conv.bias.copy_(bias)
    project, reference = (encoder.model.feature_projection for encoder in (student, teacher))
    if project.projection.weight.shape[1] < reference.projection.weight.shape[1]:
        norm: Any = getattr(project, "layer_norm", None) or nn.Identity()
        pairs = (
            (norm(_convolved(student, mine, wave)[0].T), _projected(reference, _convolved(teacher, theirs, wave)[0].T))
            for wave in speech
        )
        weight, bias = _least_squares(pairs, True)
        project.projection.weight.copy_(weight)
        project.projection.bias.copy_(bias)
    student.train(modes[0]), teacher.train(modes[1])


def _convolved(encoder: SpeechEncoder, layers: Any, wave: Tensor) -> Tensor:
    """(T,) → (1, C, F)"""
    x = wave[None]
    if encoder.normalize:
        x = normalize_wave(x, torch.tensor([len(wave)], device=wave.device))
    x = x[:, None]
    for layer in layers:
        x = layer(x)
    return x


def _patches(x: Tensor, size: int, stride: int) -> Tensor:
    """(1, C, F) → (F', C · size), what a convolution sees in each of its frames."""
    return x[0].unfold(1, size, stride).permute(1, 0, 2).flatten(1)


def _projected(projection: Any, x: Tensor) -> Tensor:
    out = projection(x)
    return out[0] if isinstance(out, tuple) else out


def _least_squares(pairs: Any, offset: bool) -> tuple[Tensor, Tensor]:
    """Pairs of inputs (F, N) and outputs (F, M) → weight (M, N) and bias (M,), zero without `offset`."""
    gram = cross = torch.zeros((), dtype=torch.float64)
    for x, y in pairs:
        x = x.double().cpu()
        if offset:
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        gram, cross = gram + x.T @ x, cross + x.T @ y.double().cpu()
    solved = torch.linalg.solve(gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram)), cross).T.float()
    return (solved[:, :-1], solved[:, -1]) if offset else (solved, solved.new_zeros(len(solved)))


def _thin_front_end(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The front end's tensors cut down to the student's channel counts, and the channels kept; empty when none is thinner."""
    convolutions = [f"feature_extractor.conv_layers.{i}.conv.weight" for i in range(len(teacher))]
    convolutions = [name for name in convolutions if name in teacher and name in student]
    project = "feature_projection.projection.weight"
    if not convolutions or project not in teacher or project not in student:
        return {}, []
    widths = [(student[name].shape[0], teacher[name].shape[0]) for name in convolutions]
    if all(mine == theirs for mine, theirs in widths) or any(mine > theirs for mine, theirs in widths):
        return {}, []
    if any(student[name].shape[2] != teacher[name].shape[2] for name in convolutions):
        return {}, []
    result: dict[str, Tensor] = {}
    channels = []
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
        channels.append(outputs)
    for side in ("feature_projection.layer_norm.weight", "feature_projection.layer_norm.bias"):
        if side in student and side in teacher:
            result[side] = teacher[side][inputs]
    if student[project].shape[0] == teacher[project].shape[0]:
        result[project] = _keep_energy(teacher[project], teacher[project][:, inputs])
    return result, channels


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
