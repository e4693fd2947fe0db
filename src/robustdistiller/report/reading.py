"""A benchmark's result as the report reads it: figures by task, metric, model and condition, written the human way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from ..files import read_json

Figure = dict[str, Any]

# Okabe and Ito's colours, which the common kinds of colour blindness keep apart (yellow is left out: too pale on white).
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#3a9bd9", "#444444")


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

    def difference(self, figure: Figure) -> str:
        """``+3.4 [+1.2, +5.6]``, to the reference."""
        low, high = (self.scaled(figure[f"difference_{end}"]) for end in ("low", "high"))
        return f"{self.gain(figure)} [{low:+.{self.about['decimals']}f}, {high:+.{self.about['decimals']}f}]"

    def reduction(self, figure: Figure) -> str:
        """``, 12 % fewer errors [8, 16]``, or ``, 108 % more errors [59, 177]``; nothing where there is no perfection."""
        value = figure.get("error_reduction_value")
        if value is None:
            return ""
        low, high = (100 * figure[f"error_reduction_{end}"] for end in ("low", "high"))
        word, (low, high) = ("fewer", (low, high)) if value >= 0 else ("more", (-high, -low))
        return f", {abs(100 * value):.0f} % {word} errors [{low:.0f}, {high:.0f}]"

    def verdict(self, figure: Figure) -> str:
        """What the difference to the reference is, in words."""
        if not figure["significant"]:
            return "not clearly different"
        return "better" if self.better(figure) else "worse"

    def compared(self, condition: str) -> list[Figure]:
        """The figures of a condition that have a difference to the reference."""
        found = [self.get(model, condition) for model in self.models]
        return [figure for figure in found if figure and "against" in figure]

    @property
    def against(self) -> str | None:
        """The reference model of this measure."""
        return next((figure["against"] for figure in self.figures.values() if "against" in figure), None)

    def shade(self, figure: Figure) -> str:
        """A cell's background from white (worst of all conditions) to dark blue (best), with readable ink, as CSS."""
        values = [f["value"] for (_, condition), f in self.figures.items() if not condition.startswith("mean:")]
        low, high = min(values), max(values)
        share = (figure["value"] - low) / (high - low) if high > low else 1.0
        background, ink = shade(0.05 + 0.9 * (share if self.higher_is_better else 1 - share))
        return f"background:{background};color:{ink}"

    def better(self, figure: Figure) -> bool:
        return (figure["difference_value"] > 0) == self.higher_is_better

    def best(self, condition: str) -> list[str]:
        """The model or models with the best printed figure."""
        figures = {model: figure for model in self.models if (figure := self.get(model, condition))}
        found = {m: round(self.scaled(figure["value"]), self.about["decimals"]) for m, figure in figures.items()}
        if not found:
            return []
        top = max(found.values()) if self.higher_is_better else min(found.values())
        return [model for model, value in found.items() if value == top]


@dataclass(frozen=True)
class BenchmarkResult:
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

    def colour(self, model: str) -> str:
        """The colour of a model, the same in tables and pictures."""
        return PALETTE[self.index(model) % len(PALETTE)]

    def similarity(self, task: dict[str, Any]) -> list[tuple[str, list[float]]]:
        """By model, over all contaminated conditions: cosine of all states and of the last, CKA of all and of the last."""
        rows, found = task.get("similarity") or [], []
        for model in unique(row["model"] for row in rows):
            own, values = [row for row in rows if row["model"] == model], []
            for name in ("cosine", "cka"):
                means = [sum(column) / len(own) for column in zip(*(row[name] for row in own), strict=True)]
                values += [sum(means) / len(means), means[-1]]
            found.append((model, values))
        return found

    def average_title(self, name: str) -> str:
        return str(self.values["averages"][name]["title"])

    @property
    def averages(self) -> list[str]:
        return list(self.values["averages"])

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [c for c in self.conditions if c["kind"] == kind]


def read_result(folder: str | Path) -> BenchmarkResult:
    """Open the result that `evaluate` wrote into `folder`. Raises `UserError` if there is none."""
    file = Path(folder) / "benchmark.json"
    if not file.is_file():
        raise UserError(f"There is no benchmark.json in {folder}: give the --out folder of `robustdistiller evaluate`.")
    values = read_json(file, "benchmark")
    if not isinstance(values, dict) or values.get("format") != 1:
        raise UserError(f"{file} is not a benchmark of this version: run `robustdistiller evaluate` again.")
    return BenchmarkResult(_shown(values), Path(folder))


def _shown(value: Any) -> Any:
    """JSON values whose texts any terminal, table and font can show."""
    if isinstance(value, dict):
        return {printable(key): _shown(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shown(inner) for inner in value]
    return printable(value) if isinstance(value, str) else value


def size_text(parameters: int) -> str:
    """``23.5 M`` parameters."""
    if not parameters:
        return "no weights"
    return f"{parameters / 1e6:.1f} M" if parameters >= 1e5 else f"{parameters / 1e6:.2f} M"


def unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def shade(share: float) -> tuple[str, str]:
    """A background from white (0) to dark blue (1), and a colour for text on it; monotone in brightness."""
    share = min(max(share, 0.0), 1.0)
    stops = [(247, 251, 255), (158, 202, 225), (33, 113, 181), (8, 48, 107)]
    place = share * (len(stops) - 1)
    k = min(int(place), len(stops) - 2)
    red, green, blue = (round(a + (b - a) * (place - k)) for a, b in zip(stops[k], stops[k + 1], strict=True))
    return f"#{red:02x}{green:02x}{blue:02x}", "#ffffff" if share > 0.62 else "#111111"
