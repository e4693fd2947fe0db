"""Task and condition files: YAML into frozen values, with one sentence for a wrong field."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import UserError, closest
from ..files import read_mapping


class Options(BaseModel):
    """A part of such a file: immutable, and strict about unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


T = TypeVar("T", bound=Options)


def load_options(path: Path, model: type[T], what: str) -> T:
    """Read the YAML file `path` into `model`; `what` names the kind of file in errors.

    Raises `UserError` for an unreadable file, an unknown field (with the closest known one) or a wrong value.
    """
    return options_from_dict(read_mapping(path, what), model, f"the {what} {path}")


def options_from_dict(values: dict[str, Any], model: type[T], where: str) -> T:
    """Validate plain values against `model`; `where` names their origin in errors."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(_sentence(error, model, where)) from error


def _sentence(error: ValidationError, model: type[BaseModel], where: str) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        *trail, unknown = first["loc"]
        known = list(_inner(model, trail).model_fields)
        return f"Unknown field '{name}' in {where}.{closest(str(unknown), known)} Known here: {', '.join(known)}."
    if first["type"] == "missing":
        return f"The field '{name}' is missing in {where}: add it."
    message = first["msg"].removeprefix("Value error, ")
    at = f"The field '{name}' in {where} is wrong" if name else f"A choice in {where} is wrong"
    return f"{at}: {message[:1].lower()}{message[1:]} (got {reprlib.repr(first['input']):.80})."


def _inner(model: type[BaseModel], trail: list[int | str]) -> type[BaseModel]:
    """The section class that the location `trail` of an error leads to."""
    for part in trail:
        if isinstance(part, str) and part in model.model_fields:
            model = _section(model.model_fields[part].annotation) or model
    return model


def _section(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, tuple, list, dict) or get_args(annotation):
        return next((found for part in get_args(annotation) if (found := _section(part))), None)
    return None
