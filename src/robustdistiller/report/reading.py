"""A benchmark's result as the report reads it: figures by task, metric, model and condition, written the human way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json

Figure = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """One metric of one task, with all its figures."""

    about: dict[str, Any]
    figures: dict[tuple[str, str], Figure]  # (model, condition)
    models: tuple[str, ...]

    @property
    def higher_is_better(self) -> bool:
        return bool(self.about["higher_is_better"])

    @property
    def label(self) -> str:
        unit = self.about["unit"]
        return f"{self.about['title']} ({unit})" if unit else str(self.about["title"])

    def get(self, model: str, condition: str) -> Figure | None:
        return self.figures.get((model, condition))

    def scaled(self, value: float) -> float:
        """As it is printed: per cent for shares."""
        return float(value) * float(self.about["scale"])

    def number(self, value: float) -> str:
        return f"{self.scaled(value):.{self.about['decimals']}f}"

    def interval(self, figure: Figure) -> str:
        """``96.2 [95.1, 97.3]``."""
        return f"{self.number(figure['value'])} [{self.number(figure['low'])}, {self.number(figure['high'])}]"

    def gain(self, figure: Figure) -> str:
        """The signed difference to the reference, in the metric's unit."""
        return f"{self.scaled(figure['difference_value']):+.{self.about['decimals']}f}"

    def better(self, figure: Figure) -> bool:
        return (figure["difference_value"] > 0) == self.higher_is_better

    def best(self, condition: str) -> list[str]:
        """The model or models with the best printed figure."""
        found = {
            m: round(self.scaled(f["value"]), self.about["decimals"])
            for m in self.models
            if (f := self.get(m, condition))
        }
        if not found:
            return []
        top = max(found.values()) if self.higher_is_better else min(found.values())
        return [model for model, value in found.items() if value == top]


@dataclass(frozen=True)
class Result:
    """A whole benchmark."""

    values: dict[str, Any]
    folder: Path

    @cached_property
    def models(self) -> list[dict[str, Any]]:
        return list(self.values["models"])

    @cached_property
    def conditions(self) -> list[dict[str, Any]]:
        return list(self.values["conditions"])

    @property
    def tasks(self) -> list[dict[str, Any]]:
        return list(self.values["tasks"])

    @property
    def reference(self) -> str:
        return str(self.values["settings"]["reference"])

    def index(self, model: str) -> int:
        """Which colour and marker a model has."""
        names = [m["name"] for m in self.models]
        return names.index(model) if model in names else len(names)

    def measures(self, task: dict[str, Any]) -> list[Measure]:
        """The metrics of a task, the main one first."""
        found = []
        for about in task["metrics"]:
            figures = {(f["model"], f["condition"]): f for f in task["figures"] if f["metric"] == about["name"]}
            found.append(Measure(about, figures, tuple(dict.fromkeys(model for model, _ in figures))))
        return found

    def average_title(self, name: str) -> str:
        return str(self.values["averages"][name]["title"])

    @property
    def averages(self) -> list[str]:
        return list(self.values["averages"])

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [c for c in self.conditions if c["kind"] == kind]


def read_result(folder: str | Path) -> Result:
    """Open the result that `evaluate` wrote into `folder`. Raises `UserError` if there is none."""
    file = Path(folder) / "benchmark.json"
    if not file.is_file():
        raise UserError(f"There is no benchmark.json in {folder}: give the --out folder of `robustdistiller evaluate`.")
    values = read_json(file, "benchmark")
    if not isinstance(values, dict) or values.get("format") != 1:
        raise UserError(f"{file} is not a benchmark of this version: run `robustdistiller evaluate` again.")
    return Result(values, Path(folder))


def size_text(parameters: int) -> str:
    """``23.5 M`` parameters."""
    if not parameters:
        return "no weights"
    return f"{parameters / 1e6:.1f} M" if parameters >= 1e5 else f"{parameters / 1e6:.2f} M"


def unique(values: Iterable[Any]) -> list[Any]:
    """In order, without repetition."""
    return list(dict.fromkeys(values))
