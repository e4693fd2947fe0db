"""Where the shipped recipes are: ``recipes/`` of a checkout, or the copy inside an installed package."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import UserError, closest


def recipe_folder() -> Path:
    """The folder of shipped recipes."""
    package = Path(__file__).resolve().parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parents[1] / "recipes"


def recipe_names() -> list[str]:
    """The names of the shipped recipes."""
    return sorted(file.stem for file in recipe_folder().glob("*.yaml"))


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe given by path or by the name of a shipped one (with or without ``.yaml``)."""
    path = Path(name)
    if os.path.isfile(path):
        return path
    shipped = recipe_folder() / f"{path.stem}.yaml"
    if os.path.isfile(shipped):
        return shipped
    raise UserError(
        f"There is no recipe {name}.{closest(path.stem, recipe_names())} Shipped: {', '.join(recipe_names())}."
    )
