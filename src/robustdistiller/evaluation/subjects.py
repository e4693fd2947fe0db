"""The models under test: students, teachers and hand-made features behind one face."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..assets import located, shipped
from ..audio.io import SAMPLE_RATE
from ..errors import UserError, closest
from ..files import GENERIC, digest, telling_name
from ..models.streaming import split_operating_point
from ..models.student import HEADS_CONFIG, Student, load_student
from ..models.teacher import load_teacher
from ..provenance import TrainingExposure, read_provenance
from .baselines import MFCC, LogMel
from .features import FeatureModel

BASELINES = {"log-mel": LogMel, "mfcc": MFCC}
FRAME_RATE = SAMPLE_RATE / 320  # frames per second of every encoder here


@dataclass
class Subject:
    """A model as the benchmark sees it (a `FeatureModel`)."""

    name: str
    source: str  # what the user asked for
    kind: str  # student | teacher | baseline | own
    network: Any
    state_names: tuple[str, ...]
    num_parameters: int
    digest: str
    predictions: bool = False
    heard: TrainingExposure | None = None
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


def open_subjects(
    models: Sequence[str | FeatureModel], predictions: bool = False, device: torch.device | str = "cpu"
) -> list[Subject]:
    """Open every model: ``log-mel``, ``mfcc``, a student folder, a teacher folder or hub name, or ``name=any of these``.

    An object that is a `FeatureModel` is taken as it is.

    predictions: show the heads of a student's teacher layers to the probes as well, where a student has them.
    Raises `UserError` for a model that cannot be opened, two of one name, or another frame rate.
    """
    if not models:
        raise UserError("There is no model to evaluate: give at least one student folder, hub name, log-mel or mfcc.")
    subjects: list[Subject] = []
    for model in models:
        name, source = model_name(model) if isinstance(model, str) else (model.name, type(model).__name__)
        if any(name == other.name for other in subjects):
            raise UserError(f"Two models are called {name}: name one of them yourself, as other-name={source}.")
        if isinstance(model, str):
            subjects.append(_open(name, source, predictions, device))
        else:
            own = Subject(name, source, "own", model, tuple(model.state_names), model.num_parameters, model.digest)
            subjects.append(_probed(own, device))
    return subjects


def model_name(text: str, generic: Sequence[str] = GENERIC) -> tuple[str, str]:
    """A display name and the model behind it: `name=model`, else the last part of the path that is not `generic`."""
    name, equals, source = text.partition("=")
    if equals and name and source and "/" not in name:
        return name, source
    return telling_name(text, generic), text


def _open(name: str, source: str, predictions: bool, device: torch.device | str) -> Subject:
    network: Any
    state_names: tuple[str, ...]
    heard = None
    folder = Path(located(split_operating_point(source)[0]))
    if source in BASELINES:
        network = BASELINES[source]()
        kind, state_names, size = "baseline", (f"{source} with differences",), 0
    elif (folder / HEADS_CONFIG).is_file():
        network = load_student(source)
        kind, size, heard = "student", network.num_parameters, read_provenance(folder)
        state_names = network.states_names
        if predictions and network.heads is not None:
            state_names = (*state_names, *(f"prediction of layer {layer}" for layer in network.layers))
    else:
        if not folder.exists() and "/" not in source and source not in shipped():
            known = [*BASELINES, *shipped()]
            raise UserError(
                f"There is no model {source}.{closest(source, known)} Give a student folder, a model folder or hub "
                f"name, or one of {', '.join(known)}."
            )
        network = load_teacher(source, precision="fp32")
        kind, size = "teacher", network.num_parameters
        state_names = ("cnn", *(f"layer {k + 1}" for k in range(network.num_layers)))
    network = network.eval().to(device)
    shown = predictions and kind == "student" and network.heads is not None
    subject = Subject(name, source, kind, network, state_names, size, _digest(network, state_names), shown, heard)
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


def _probed(subject: Subject, device: torch.device | str) -> Subject:
    """Listen to two seconds: refuse another frame rate, and learn the shape of the features."""
    seconds = 2
    wave = torch.zeros(1, seconds * SAMPLE_RATE, device=device)
    wave[0, ::160] = 0.1
    states, frames = subject.states(wave, torch.tensor([wave.shape[1]], device=device))
    if abs(int(frames[0]) - seconds * FRAME_RATE) > 2:
        raise UserError(
            f"The model {subject.name} gives {int(frames[0]) / seconds:g} frames per second where the benchmark needs "
            f"{FRAME_RATE:g}: leave it out."
        )
    if states.shape[1] != len(subject.state_names):
        raise UserError(f"The model {subject.name} gives {states.shape[1]} states, not {len(subject.state_names)}.")
    subject.shape = (states.shape[1], states.shape[3])
    return subject
