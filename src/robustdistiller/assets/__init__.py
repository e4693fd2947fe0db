"""Files that are shipped inside the package: the pretrained mini teacher, and students of it."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UserError, closest

_FOLDER = Path(__file__).resolve().parent


def shipped() -> list[str]:
    """The names of the shipped files and folders."""
    return sorted(p.name for p in _FOLDER.iterdir() if not p.name.startswith(("_", ".")) and p.suffix != ".py")


def asset(name: str) -> Path:
    """The path of a shipped file or folder, e.g. ``asset("mini-hubert")``. Raises `UserError` for an unknown name."""
    path = _FOLDER / name
    known = shipped()
    if name.split("/")[0] not in known or not path.exists():
        raise UserError(f"The package ships no '{name}'.{closest(name, known)} It ships {', '.join(known)}.")
    return path


def located(name: str | os.PathLike[str]) -> str:
    """The folder of a shipped model given by its name; anything else as it is."""
    name = os.fspath(name)
    return str(asset(name)) if name in shipped() else name
