"""What a student was trained on, kept beside its weights so that no evaluation on it can pass for one on unseen data.

A student that starts from another student, or has one as its teacher, was exposed to what that one was exposed to as well.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .assets import located
from .config import Recipe
from .errors import UserError
from .files import StrPath, read_json

PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class TrainingExposure:
    """What a model was trained on.

    Attributes:
        speakers: Names of the speakers.
        noise_groups: Names of the groups (recordings, archives) of noise.
        room_groups: Names of the groups of room impulse responses.
        noise_kinds: Kinds of noise, such as ``white`` or ``babble``.
    """

    speakers: frozenset[str] = frozenset()
    noise_groups: frozenset[str] = frozenset()
    room_groups: frozenset[str] = frozenset()
    noise_kinds: frozenset[str] = frozenset()

    def __or__(self, other: TrainingExposure) -> TrainingExposure:
        return TrainingExposure(**{f.name: getattr(self, f.name) | getattr(other, f.name) for f in fields(self)})

    def to_json(self) -> str:
        """The text of a provenance file."""
        return json.dumps({name: sorted(values) for name, values in asdict(self).items()}, indent=1) + "\n"


def read_provenance(folder: StrPath) -> TrainingExposure | None:
    """Read the provenance that lies in a model's folder; None where there is none.

    Raises:
        UserError: For a file that cannot be understood.
    """
    file = Path(folder) / PROVENANCE
    if not file.is_file():
        return None
    values = read_json(file, "provenance")
    names = [field.name for field in fields(TrainingExposure)]
    lists = {name: values.get(name, []) for name in names} if isinstance(values, dict) else None
    if lists is None or not all(isinstance(items, list) for items in lists.values()):
        raise UserError(f"The provenance {file} cannot be understood: copy the student folder again.")
    return TrainingExposure(**{name: frozenset(map(str, items)) for name, items in lists.items()})


def noise_kinds(recipe: Recipe) -> frozenset[str]:
    """The kinds of noise that a recipe draws."""
    weights = recipe.environment.noise_kinds.model_dump() if recipe.environment.uses_noise else {}
    return frozenset(kind for kind, weight in weights.items() if weight > 0)


def inherited(recipe: Recipe) -> TrainingExposure:
    """The exposure of the models that a run builds upon: where its student starts, and its teacher."""
    exposure = TrainingExposure()
    for model in {recipe.student.init, str(recipe.teacher.model)} - {"teacher", "random"}:
        exposure |= read_provenance(located(model)) or TrainingExposure()
    return exposure
