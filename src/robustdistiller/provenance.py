"""What a student heard in training, kept beside its weights so that no test on it can pass for unheard.

A student that starts from another student, or has one as its teacher, heard what that one heard too.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .assets import located
from .config import Recipe, load_recipe
from .errors import UserError
from .files import read_json

PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class Heard:
    """Speakers, groups of noise recordings and of rooms by name; the kinds of noise."""

    speakers: frozenset[str] = frozenset()
    noise_groups: frozenset[str] = frozenset()
    room_groups: frozenset[str] = frozenset()
    noise_kinds: frozenset[str] = frozenset()

    def __or__(self, other: Heard) -> Heard:
        return Heard(**{f.name: getattr(self, f.name) | getattr(other, f.name) for f in fields(self)})

    def to_json(self) -> str:
        """The text of a provenance file."""
        return json.dumps({name: sorted(values) for name, values in asdict(self).items()}, indent=1) + "\n"


def read_provenance(folder: str | os.PathLike[str]) -> Heard | None:
    """What the files in a model's folder tell; None where they tell nothing. Raises `UserError`."""
    file = Path(folder) / PROVENANCE
    if not file.is_file():
        return None
    told = read_json(file, "provenance")
    names = [field.name for field in fields(Heard)]
    lists = {name: told.get(name, []) for name in names} if isinstance(told, dict) else None
    if lists is None or not all(isinstance(values, list) for values in lists.values()):
        raise UserError(f"The provenance {file} cannot be understood: copy the student folder again.")
    heard = Heard(**{name: frozenset(map(str, values)) for name, values in lists.items()})
    recipe = file.parent / "recipe.yaml"
    return heard | Heard(noise_kinds=noise_kinds(load_recipe(recipe))) if recipe.is_file() else heard


def noise_kinds(recipe: Recipe) -> frozenset[str]:
    """The kinds of noise that a recipe draws."""
    weights = recipe.environment.noise_kinds.model_dump() if recipe.environment.uses_noise else {}
    return frozenset(kind for kind, weight in weights.items() if weight > 0)


def inherited(recipe: Recipe) -> Heard:
    """What the models heard that a run builds upon: where its student starts, and its teacher."""
    heard = Heard()
    for model in {recipe.student.init, str(recipe.teacher.model)} - {"teacher", "random"}:
        heard |= read_provenance(located(model)) or Heard()
    return heard
