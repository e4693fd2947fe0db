"""Files that are shipped inside the package: the pretrained mini teacher."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError, closest


def asset(name: str) -> Path:
    """The path of a shipped file or folder, e.g. ``asset("mini-hubert")``. Raises `UserError` for an unknown name."""
    folder = Path(__file__).resolve().parent
    path = folder / name
    known = sorted(p.name for p in folder.iterdir() if not p.name.startswith(("_", ".")))
    if name.split("/")[0] not in known or not path.exists():
        raise UserError(
            f"The package ships no '{name}'.{closest(name, known)} It ships: {', '.join(known) or 'nothing'}."
        )
    return path
