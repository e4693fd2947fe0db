"""The verb that lists and prints what is shipped: recipes."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import Json, say, say_json


def register(app: typer.Typer) -> None:
    """Add the verb to `app`."""
    app.command()(recipes)


def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe to print; all are listed without it.")] = None,
    as_json: Json = False,
) -> None:
    """List the shipped recipes, or print one as the start of your own.

    Example: `robustdistiller recipes edge > mine.yaml`
    """
    from ..config import load_recipe
    from ..presets import find_shipped, shipped_names

    if name is None:
        notes = {shipped: load_recipe(shipped).notes for shipped in shipped_names("recipes")}
        if as_json:
            say_json(notes)
        else:
            width = max(map(len, notes))
            say(*(f"{shipped:<{width}}  {text}" for shipped, text in notes.items()))
    elif as_json:
        say_json(load_recipe(name).to_dict())
    else:
        say(*find_shipped(name, "recipes").read_text(encoding="utf-8").splitlines())
