"""Sections of validated values, strict about names: what is wrong with a file of them is said in one sentence."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import UserError, closest


class Section(BaseModel):
    """A part of a recipe, or of another file of choices: immutable, and strict about unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


T = TypeVar("T", bound=Section)


def validated(model: type[T], values: dict[str, Any], where: str) -> T:
    """Plain values that were read from `where` as a `model`.

    Raises:
        UserError: An unknown field (with the closest known one) or a wrong value, in one sentence about the first fault.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(_sentence(error, model, where)) from error


def _sentence(error: ValidationError, model: type[BaseModel], where: str) -> str:
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        whole, (*trail, unknown) = model, first["loc"]
        for part in trail:
            model = _section(model.model_fields[part].annotation) or model if part in model.model_fields else model
        known = list(model.model_fields)
        elsewhere = [field for field in _fields(whole) if field.rpartition(".")[2] == unknown]
        nearest = min(elsewhere, key=lambda field: field.count("."), default="")
        meant = f" Did you mean '{nearest}'?" if nearest else closest(str(unknown), known)
        return f"Unknown field '{name}' in {where}.{meant} Known here: {', '.join(known)}."
    if first["type"] == "missing":
        return f"The field '{name}' is missing in {where}: add it."
    message = first["msg"].removeprefix("Value error, ").replace("tuple", "list").replace("Tuple", "list").rstrip(".")
    if first["type"] == "string_pattern_mismatch":
        message = "it may hold letters, digits, _, . and - alone"
    at = f"The field '{name}' in {where} is wrong" if name else f"A choice in {where} is wrong"
    got = f" (got {reprlib.repr(first['input']):.80})" if name else ""
    text = f"{at}: {message[:1].lower()}{message[1:]}{got}"
    return text if text.endswith("?") else f"{text}."


def _fields(model: type[BaseModel]) -> Iterator[str]:
    """The names of all fields of a section and of the sections in it, with dots."""
    for name, field in model.model_fields.items():
        yield name
        if (inner := _section(field.annotation)) is not None:
            yield from (f"{name}.{field}" for field in _fields(inner))


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field of this type holds, itself or in a list, if it holds one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section(part))), None)
