"""Checkpoints: everything a run is, in safetensors and JSON, whole or absent.

Little needs saving, because the rest is a pure function of (seed, step): the order of the data, every crop and every
contamination, dropout, the learning rate and the curriculum. A checkpoint is the weights of the student with both heads, the
two moments of AdamW by parameter name, and a small JSON (step, best validation, gradient scaler) with a digest of either, so
that a checkpoint which a disk or a copy has damaged is not trained on.
"""

from __future__ import annotations

import hashlib
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import explained
from ..files import read_json, replacing_folder, write_json

TENSORS = ("model.safetensors", "optimiser.safetensors")
_DIGESTS = "digests"


@dataclass
class TrainingProgress:
    """Where a run stands: steps done, best validation loss and its step, and the counters of what went wrong."""

    step: int = 0
    best: float | None = None
    best_step: int | None = None
    skipped_steps: int = 0
    seconds: float = 0.0
    audio_seconds: float = 0.0
    scaler: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises `ValueError` for values that no run writes: the file may come from anywhere."""
        for name in ("step", "skipped_steps", "best_step"):
            value = getattr(self, name)
            if not (_is(value, int) and value >= 0) and not (name == "best_step" and value is None):
                raise ValueError(f"{name} is {value!r:.40}")
        if isinstance(self.best, float) and not math.isfinite(self.best):
            self.best = None
        for name in ("seconds", "audio_seconds", "best"):
            value = getattr(self, name)
            if not (_is(value, int, float) and math.isfinite(value)) and not (name == "best" and value is None):
                raise ValueError(f"{name} is {value!r:.40}")
        if not isinstance(self.scaler, dict) or not all(_is(v, int, float) for v in self.scaler.values()):
            raise ValueError("scaler is no mapping of numbers")


def _is(value: Any, *types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def folder(run: Path) -> Path:
    """Where the checkpoints of a run are."""
    return run / "checkpoints"


def available(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first; a copy under another name is none."""
    found = [path for path in folder(run).glob("step-*") if re.fullmatch(r"step-[0-9]{8,18}", path.name)]
    return sorted((path for path in found if (path / "progress.json").is_file()), key=step_of)


def step_of(path: Path) -> int:
    """The step after which the checkpoint `path` was written."""
    return int(path.name.removeprefix("step-"))


def sweep(run: Path) -> None:
    """Remove the half-written folders that a killed process left in `run`; no other process may be writing there."""
    for place, pattern in ((folder(run), ".step-*"), (run, ".student-*")):
        for left in place.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def save(run: Path, module: nn.Module, optimiser: torch.optim.Optimizer, progress: TrainingProgress, keep: int) -> Path:
    """Write a checkpoint, then drop all but the newest `keep`. Raises `UserError` when it cannot be written."""
    path = folder(run) / f"step-{progress.step:08d}"
    with replacing_folder(path) as temporary:
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, temporary / "model.safetensors")
        save_file(_moments(module, optimiser), temporary / "optimiser.safetensors")
        digests = {name: _digest(temporary / name) for name in TENSORS}
        write_json(temporary / "progress.json", {**asdict(progress), _DIGESTS: digests})
    for old in available(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def load(path: Path, module: nn.Module, optimiser: torch.optim.Optimizer) -> TrainingProgress:
    """Bring `module` and `optimiser` to the state of a checkpoint and return its progress."""
    with explained(
        f"The checkpoint {path} does not fit this run or is damaged",
        "delete that folder to go on from the one before it, or start anew with another --out.",
    ):
        values = read_json(path / "progress.json", "checkpoint")
        digests = values.pop(_DIGESTS, {})
        known = [field.name for field in fields(TrainingProgress) if field.name in values]
        progress = TrainingProgress(**{name: values[name] for name in known})
        for name in TENSORS:
            if name in digests and digests[name] != _digest(path / name):
                raise ValueError(f"{name} is not what was saved")
        weights, moments = (load_file(path / name) for name in TENSORS)
        states = _states(module, optimiser, moments)
        module.load_state_dict(weights)
        for parameter, state in states:
            optimiser.state[parameter] = state
        return progress


def _named(module: nn.Module, optimiser: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            yield names[id(parameter)], parameter


def _moments(module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = ((name, optimiser.state.get(parameter, {})) for name, parameter in _named(module, optimiser))
    return {f"{name}/{k}": torch.as_tensor(v).contiguous() for name, values in state for k, v in values.items()}


def _states(
    module: nn.Module, optimiser: torch.optim.Optimizer, moments: dict[str, Tensor]
) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """The optimiser's state of every parameter. Raises `ValueError` when it is not that of this module."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for joined, value in moments.items():
        name, _, key = joined.rpartition("/")
        by_name.setdefault(name, {})[key] = value
    states = []
    for name, parameter in _named(module, optimiser):
        found = by_name.pop(name, None)
        if found is None:
            continue  # a parameter that no gradient ever reached
        for key, value in found.items():
            if value.shape != (() if key == "step" else parameter.shape) or not bool(torch.isfinite(value).all()):
                raise ValueError(f"the moment {key} of {name} does not fit")
        if found.keys() != {"step", "exp_avg", "exp_avg_sq"}:
            raise ValueError(f"the moments of {name} are not those of AdamW")
        # AdamW's fused form has the count of steps beside the moments on the GPU, the others have it on the host.
        places = {"step": parameter.device if parameter.is_cuda else "cpu"}
        states.append((parameter, {k: v.to(places.get(k, parameter.device)) for k, v in found.items()}))
    if by_name:
        raise ValueError(f"there is no parameter {min(by_name)}")
    return states


def _digest(path: Path) -> str:
    total = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            total.update(block)
    return total.hexdigest()
