"""Checkpoints: everything a run is, in safetensors and JSON, whole or absent.

Little needs saving, because the rest is a pure function of (seed, step): the order of the data, every crop and every
contamination, dropout, the learning rate and the curriculum. A checkpoint is the weights of the student with both heads, the
two moments of AdamW by parameter name, and a small JSON (step, best validation, gradient scaler).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import UserError
from ..files import read_json, replacing_folder, write_json


@dataclass
class Progress:
    """Where a run stands: steps done, best validation loss and its step, and the counters of what went wrong."""

    step: int = 0
    best: float | None = None
    best_step: int | None = None
    skipped_steps: int = 0
    seconds: float = 0.0
    audio_seconds: float = 0.0
    scaler: dict[str, Any] = field(default_factory=dict)


def folder(run: Path) -> Path:
    """Where the checkpoints of a run are."""
    return run / "checkpoints"


def available(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in folder(run).glob("step-*") if (path / "progress.json").is_file())


def save(run: Path, module: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress, keep: int) -> Path:
    """Write a checkpoint, then drop all but the newest `keep`. Raises `UserError` when it cannot be written."""
    path = folder(run) / f"step-{progress.step:08d}"
    with replacing_folder(path) as temporary:
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, temporary / "model.safetensors")
        save_file(_moments(module, optimiser), temporary / "optimiser.safetensors")
        write_json(temporary / "progress.json", asdict(progress))
    for old in available(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def load(path: Path, module: nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
    """Bring `module` and `optimiser` to the state of a checkpoint and return its progress."""
    values = read_json(path / "progress.json", "checkpoint")
    try:
        module.load_state_dict(load_file(path / "model.safetensors"))
        moments = load_file(path / "optimiser.safetensors")
        _restore(module, optimiser, moments)
        return Progress(**values)
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"The checkpoint {path} does not fit this run or is damaged ({first[:120]}): delete that folder to go on from the "
            "one before it, or start anew with another --out."
        ) from error


def _named(module: nn.Module, optimiser: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            yield names[id(parameter)], parameter


def _moments(module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": torch.as_tensor(value).contiguous()
        for name, parameter in _named(module, optimiser)
        for key, value in optimiser.state.get(parameter, {}).items()
    }


def _restore(module: nn.Module, optimiser: torch.optim.Optimizer, moments: dict[str, Tensor]) -> None:
    by_name: dict[str, dict[str, Tensor]] = {}
    for joined, value in moments.items():
        name, _, key = joined.rpartition("/")
        by_name.setdefault(name, {})[key] = value
    for name, parameter in _named(module, optimiser):
        if name in by_name:
            optimiser.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in by_name[name].items()
            }
