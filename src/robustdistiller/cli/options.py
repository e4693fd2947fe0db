"""Options that several verbs share, and the bounds of numbers: a value out of them is refused before any work."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError

if TYPE_CHECKING:
    import torch

LARGEST_SEED = 2**63 - 1


def between(low: float, high: float) -> Callable[[Any], float]:
    """A parser of finite numbers from `low` to `high`."""

    def parse(text: Any) -> float:
        try:
            value = float(text)
        except ValueError:
            raise typer.BadParameter(f"{text} is no number.") from None
        if not (math.isfinite(value) and low <= value <= high):
            raise typer.BadParameter(f"{text} is not between {low:g} and {high:g}.")
        return value

    return parse


Sources = list[str] | None


def argument(help: str, metavar: str | None = None) -> Any:
    return typer.Argument(metavar=metavar, help=help)


def option(help: str, *flags: str, **settings: Any) -> Any:
    """An option with its help; `flags` name it where its parameter does not."""
    return typer.Option(*flags, help=help, **settings)


def number(help: str, low: float, high: float, metavar: str) -> Any:
    """An option that takes a finite number from `low` to `high`."""
    return typer.Option(parser=between(low, high), metavar=metavar, help=help)


def source(flag: str, help: str) -> Any:
    """An option that names sources of audio and may be repeated."""
    return typer.Option(flag, metavar="SOURCE", help=f"{help} Repeatable.")


Seed = Annotated[int, option("The seed of everything.", "--seed", metavar="N", min=0, max=LARGEST_SEED)]
Workers = Annotated[int | None, option("Processes that read; all cores by default.", "--workers", min=1, max=1024)]
Overwrite = Annotated[bool, option("Replace what an earlier call wrote; nothing else ever is.", "--overwrite")]
Device = Annotated[str, option("`cpu`, `cuda`, `cuda:1`, `mps`; `auto`: a GPU if any.", "--device", metavar="DEVICE")]


def pick_device(text: str) -> torch.device:
    """The device that the option names. Raises `UserError` for one that this machine does not have."""
    import torch

    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise UserError(f"There is no device '{text}': give auto, cpu, cuda, cuda:1 or mps.") from error
    have = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not have.get(device.type, False) or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"This machine has no device '{text}' that PyTorch can use: give --device cpu.")
    return device


def pick_training_device(text: str) -> torch.device | None:
    """The same for a job of one or several processes: None for `auto`, where each of them takes a GPU of its own."""
    return None if text == "auto" else pick_device(text)
