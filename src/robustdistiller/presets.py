"""Where the shipped recipes and conditions are: in the folders of a checkout, or copied into an installed package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from .errors import UserError, closest

Kind = Literal["recipes", "conditions"]


def shipped_folder(kind: Kind) -> Path:
    """The folder of the shipped files of one kind."""
    package = Path(__file__).resolve().parent
    inside = package / kind
    return inside if inside.is_dir() else package.parents[1] / kind


def shipped_names(kind: Kind) -> list[str]:
    return sorted(file.stem for file in shipped_folder(kind).glob("*.yaml"))


def find_shipped(name: str | Path, kind: Kind) -> Path:
    """The file given by path, or by the name of a shipped one (with or without ``.yaml``).

    Raises:
        UserError: There is no such file; the sentence lists what is shipped.
    """
    path = Path(name)
    if os.path.isfile(path):
        return path
    shipped = shipped_folder(kind) / f"{path.stem}.yaml"
    if os.path.isfile(shipped):
        return shipped
    what = {"recipes": "recipe", "conditions": "conditions file"}[kind]
    known = shipped_names(kind)
    raise UserError(f"There is no {what} {name}.{closest(path.stem, known)} Shipped: {', '.join(known)}.")
