"""The models under test: students, teachers and hand-made features behind one face."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..assets import located, shipped
from ..audio.io import SAMPLE_RATE
from ..errors import UserError, closest
from ..files import GENERIC, digest, telling_name
from ..models.frames import GRID
from ..models.streaming import split_operating_point
from ..models.student import HEADS_CONFIG, Student, load_student
from ..models.teacher import load_teacher
from ..provenance import TrainingExposure, read_provenance
from .baselines import MFCC, LogMel
from .features import FeatureModel

BASELINES = {"log-mel": LogMel, "mfcc": MFCC}
FRAME_RATE = SAMPLE_RATE / GRID.stride  # frames per second of every encoder here


@dataclass
class EvaluatedModel:
    """A model as the benchmark sees it (a `FeatureModel`)."""

    name: str
    source: str  # what the user asked for
    kind: str  # student | teacher | baseline | own
    network: Any
    state_names: tuple[str, ...]
    num_parameters: int
    digest: str
    predictions: bool = False
    exposure: TrainingExposure | None = None
    shape: tuple[int, int] = (1, 1)  # states and dimensions of its features

    @torch.no_grad()
    def states(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, T) with valid `lengths` (B,) samples → states (B, S, F, D) and valid frames (B,)."""
        if self.predictions:
            return self.network.states(wave, lengths, predictions=True)  # type: ignore[no-any-return]
        return self.network.states(wave, lengths)  # type: ignore[no-any-return]

    @property
    def can_enhance(self) -> bool:
        return isinstance(self.network, Student) and self.network.enhancer is not None

    @torch.no_grad()
    def enhance(self, wave: Tensor, lengths: Tensor) -> Tensor:
        """Contaminated waveforms (B, T) → estimated clean speech (B, T)."""
        return self.network.enhance(wave, lengths)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ReportedModel:
    """What has a row of its own in the report: a model, or a group of trainings of one model."""

    name: str
    members: tuple[EvaluatedModel, ...]

    @property
    def names(self) -> list[str]:
        return [member.name for member in self.members]

    def averaged(self, rows: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Rows of lists of numbers, by the name of a member, as their means over the members."""
        if len(self.members) == 1:
            return list(rows.get(self.name, rows.get(self.names[0], [])))
        return [
            {key: value if isinstance(value, str) else np.mean([row[key] for row in same], 0).round(5).tolist()
             for key, value in same[0].items()}
            for same in zip(*(rows.get(name, []) for name in self.names), strict=True)
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; of a group, those of its first training, and the names of all."""
        first = self.members[0]
        about = {key: getattr(first, key) for key in ("name", "source", "kind", "num_parameters", "digest")}
        told = {**about, "name": self.name, "states": list(first.state_names)}
        if self.names != [self.name]:
            told |= {"trainings": self.names, "digest": digest([member.digest for member in self.members])}
        return told


def open_reported(
    models: Sequence[str | FeatureModel],
    groups: Mapping[str, str | Sequence[str]] | None = None,
    predictions: bool = False,
    device: torch.device | str = "cpu",
) -> tuple[list[EvaluatedModel], list[ReportedModel]]:
    """Open every model, those of groups too.

    Args:
        models: As in `open_models`; each is reported by itself.
        groups: Name → models, or a pattern of their folders, that are reported as one; a model may be in several.
        predictions: Show the heads of a student's teacher layers to the probes as well, where a student has them.
        device: Where the models compute.

    Returns:
        All models, and what is reported.

    Raises:
        UserError: As `open_models`, and for a pattern that fits no folder, a name that a group shares, or models of a
            group that differ in more than their weights.
    """
    members = {name: _matching(name, group) if isinstance(group, str) else list(group)
               for name, group in (groups or {}).items()}  # fmt: skip
    others = dict.fromkeys(model for group in members.values() for model in group if model not in models)
    wanted = [*models, *others]
    subjects = dict(zip(wanted, open_models(wanted, predictions, device), strict=True))
    reported = [ReportedModel(subjects[model].name, (subjects[model],)) for model in models]
    reported += [ReportedModel(name, tuple(subjects[model] for model in group)) for name, group in members.items()]
    for group in reported:
        if [other.name for other in reported].count(group.name) > 1:
            raise UserError(f"A group and a model, or two groups, are called {group.name}: rename one.")
        if len({(m.state_names, m.shape, m.num_parameters) for m in group.members}) > 1:
            raise UserError(f"The models of group {group.name} differ in shape: a group is of trainings of one model.")
    return list(subjects.values()), reported


def groups_of(texts: Sequence[str]) -> dict[str, str]:
    """``name=pattern`` texts as groups. Raises `UserError` for another text, or a name that comes twice."""
    groups: dict[str, str] = {}
    for text in texts:
        name, equals, pattern = text.partition("=")
        if not (equals and name and pattern):
            raise UserError(f"--group is NAME=PATTERN, such as robust='runs/robust-*/student', not {text}.")
        if name in groups:
            raise UserError(f"Two groups are called {name}: rename one.")
        groups[name] = pattern
    return groups


def _matching(name: str, pattern: str) -> list[str]:
    found = sorted(glob.glob(os.path.expanduser(pattern)))
    if not found:
        raise UserError(f"No folder fits {pattern}, the pattern of the group {name}: correct it.")
    return found


def open_models(
    models: Sequence[str | FeatureModel], predictions: bool = False, device: torch.device | str = "cpu"
) -> list[EvaluatedModel]:
    """Open every model: ``log-mel``, ``mfcc``, a student folder, a teacher folder or hub name, or ``name=any of these``.

    An object that is a `FeatureModel` is taken as it is. Raises `UserError` for a model that cannot be opened, two of one name,
    or another frame rate.
    """
    if not models:
        raise UserError("There is no model to evaluate: give at least one student folder, hub name, log-mel or mfcc.")
    subjects: list[EvaluatedModel] = []
    for model in models:
        name, source = model_name(model) if isinstance(model, str) else (model.name, type(model).__name__)
        if any(name == other.name for other in subjects):
            raise UserError(f"Two models are called {name}: name one of them yourself, as other-name={source}.")
        if isinstance(model, str):
            subjects.append(_open(name, source, predictions, device))
        else:
            size = model.num_parameters
            own = EvaluatedModel(name, source, "own", model, tuple(model.state_names), size, model.digest)
            subjects.append(_probed(own, device))
    return subjects


def model_name(text: str, generic: Sequence[str] = GENERIC) -> tuple[str, str]:
    """A display name and the model behind it: `name=model`, else the last part of the path that is not `generic`."""
    name, equals, source = text.partition("=")
    if equals and name and source and "/" not in name:
        return name, source
    return telling_name(text, generic), text


def _open(name: str, source: str, predictions: bool, device: torch.device | str) -> EvaluatedModel:
    network: Any
    state_names: tuple[str, ...]
    exposure = None
    folder = Path(located(split_operating_point(source)[0]))
    if source in BASELINES:
        network = BASELINES[source]()
        kind, state_names, size = "baseline", (f"{source} with differences",), 0
    elif os.path.isfile(folder / HEADS_CONFIG):
        network = load_student(source)
        kind, size, exposure = "student", network.num_parameters, read_provenance(folder)
        state_names = network.states_names
        if predictions and network.heads is not None:
            state_names = (*state_names, *(f"prediction of layer {layer}" for layer in network.layers))
    else:
        if not os.path.exists(folder) and "/" not in source and source not in shipped():
            known = [*BASELINES, *shipped()]
            given = "a student folder, a model folder or hub name, or one of"
            raise UserError(f"There is no model {source}.{closest(source, known)} Give {given} {', '.join(known)}.")
        network = load_teacher(source, precision="fp32")
        kind, size = "teacher", network.num_parameters
        state_names = ("cnn", *(f"layer {k + 1}" for k in range(network.num_layers)))
    network = network.eval().to(device)
    shown = predictions and kind == "student" and network.heads is not None
    key = _digest(network, state_names)
    subject = EvaluatedModel(name, source, kind, network, state_names, size, key, shown, exposure)
    return _probed(subject, device)


def _digest(network: nn.Module, state_names: Sequence[str]) -> str:
    """Of all weights and of what the forward pass takes from the configuration."""
    total = hashlib.blake2b(digest_size=8)
    for key, value in sorted(network.state_dict().items()):
        total.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    encoder: Any = getattr(network, "encoder", None)
    config: Any = getattr(getattr(encoder, "model", None), "config", None)
    chunking = getattr(network, "chunking", None)  # a streaming student's operating point
    told = {k: v for k, v in (config.to_dict() if config is not None else {}).items() if k not in _SILENT}
    return digest(
        [total.hexdigest(), type(network).__name__, list(state_names), repr(sorted(told.items(), key=str)),
         getattr(encoder, "normalize", None), *([repr(chunking)] if chunking is not None else [])]
    )  # fmt: skip


_SILENT = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


def _probed(subject: EvaluatedModel, device: torch.device | str) -> EvaluatedModel:
    """Listen to two seconds: refuse another frame rate, and learn the shape of the features."""
    seconds = 2
    wave = torch.zeros(1, seconds * SAMPLE_RATE, device=device)
    wave[0, ::160] = 0.1
    states, frames = subject.states(wave, torch.tensor([wave.shape[1]], device=device))
    if abs(int(frames[0]) - seconds * FRAME_RATE) > 2:
        rate = int(frames[0]) / seconds
        needed = f"where the benchmark needs {FRAME_RATE:g}"
        raise UserError(f"The model {subject.name} gives {rate:g} frames per second {needed}: leave it out.")
    if states.shape[1] != len(subject.state_names):
        raise UserError(f"The model {subject.name} gives {states.shape[1]} states, not {len(subject.state_names)}.")
    subject.shape = (states.shape[1], states.shape[3])
    return subject
