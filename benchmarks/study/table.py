"""The tables of teachers, tasks and models as CSV, from those that `robustdistiller evaluate` wrote.

    python benchmarks/study/table.py docs/results HuBERT=RESULTS WavLM=RESULTS …

A teacher may have several folders, of different tasks. A folder of RESULTS holds benchmark.json, and as `plain.csv`,
`robust.csv` and `teacher.csv` its results.csv with that `--reference`. study.csv: per cent right, a line for each task and
model; differences.csv: paired differences of models. All intervals are 95 % over speakers, trainings and heads.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

TASKS = {
    ("keywords", "accuracy"): "keywords", ("emotion", "accuracy"): "emotion",
    ("spoken-intents", "accuracy"): "spoken commands, all three slots right",
    ("spoken-intents", "slots"): "spoken commands, mean of slots", ("intents", "slots"): "coffee orders, mean of slots",
    ("speakers", "accuracy"): "who speaks", ("phones", "frame_accuracy"): "phones, frames right",
}  # fmt: skip
MODELS = {
    "teacher": "the teacher", "plain": "ordinary, 2 × 1024", "robust": "robust, 2 × 1024", "deep-plain": "ordinary, 4 × 256",
    "deep-robust": "robust, 4 × 256", "mini-deep": "`mini-deep`, its predictions",
    "mini-robust": "`mini-robust`, its predictions", "log-mel": "log-mel",
}  # fmt: skip
MEANS = ("clean", "mean:noise", "mean:reverb", "mean:both", "mean:contaminated")
CONDITIONS = ("clean", "noise", "rooms", "noise in rooms", "contaminated")
PAIRS = (
    ("robust", "plain"), ("deep-robust", "plain"), ("mini-deep", "plain"), ("mini-robust", "plain"), ("deep-robust", "robust"),
    ("robust", "teacher"), ("deep-robust", "teacher"), ("mini-deep", "teacher"), ("mini-robust", "teacher"),
)  # fmt: skip

Row = dict[str, str]
Key = tuple[str, str, str, str]  # task, metric, model, condition


def percent(value: str, sign: bool = False) -> str:
    text = f"{100 * float(value):{'+' if sign else ''}.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def read(file: Path) -> dict[Key, Row]:
    with file.open(encoding="utf-8", newline="") as stream:
        return {(r["task"], r["metric"], r["model"], r["condition"]): r for r in csv.DictReader(stream)}


def difference(row: Row | None) -> str:
    if row is None or not row["difference_value"]:
        return ""
    low, high = (percent(row[f"difference_{end}"]) for end in ("low", "high"))
    return f"{percent(row['difference_value'], sign=True)} ({low} to {high})"


class Teacher:
    """What was measured with one teacher: the tables by their reference, and the seeds of every model by task."""

    def __init__(self, folders: list[Path]):
        self.tables: dict[str, dict[Key, Row]] = {"plain": {}, "robust": {}, "teacher": {}}
        self.seeds: dict[tuple[str, str], str] = {}
        for folder in folders:
            for reference, table in self.tables.items():
                if (file := folder / f"{reference}.csv").is_file():
                    table.update(read(file))
            told = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))
            for task, model in ((task["name"], model) for task in told["tasks"] for model in told["models"]):
                trainings = model.get("trainings", (model["name"],) if model["kind"] == "student" else ())
                self.seeds[task, model["name"]] = " ".join(
                    seed for t in trainings if (seed := t.rsplit("-", 1)[-1]).isdigit()
                )

    def scores(self, task: str, metric: str, model: str) -> list[str] | None:
        """Seeds, per cent right under all conditions, and the interval of the last."""
        rows = [self.tables["plain"].get((task, metric, model, part)) for part in MEANS]
        if not all(rows):
            return None
        return [self.seeds[task, model], *(percent(r["value"]) for r in rows if r),
                " to ".join(percent(rows[-1][end]) for end in ("low", "high") if rows[-1])]  # fmt: skip

    def differences(self, task: str, metric: str, model: str, other: str) -> list[str] | None:
        found = [difference(self.tables[other].get((task, metric, model, part))) for part in MEANS]
        return found if all(found) else None


def main() -> None:
    to, folders = Path(sys.argv[1]), [given.split("=", 1) for given in sys.argv[2:]]
    names = list(dict.fromkeys(name for name, _ in folders))
    teachers = {name: Teacher([Path(folder) for n, folder in folders if n == name]) for name in names}
    study: list[list[str]] = []
    differences: list[list[str]] = []
    for (task, metric), title in TASKS.items():
        for name, teacher in teachers.items():
            for model, about in MODELS.items():
                if model == "log-mel" and name != names[0]:  # it is the same for every teacher
                    continue
                if scores := teacher.scores(task, metric, model):
                    study.append([title, "" if model == "log-mel" else name, about, *scores])
            for model, other in PAIRS:
                if found := teacher.differences(task, metric, model, other):
                    differences.append([title, name, f"{MODELS[model]} − {MODELS[other]}".replace(",", ""), *found])
    write(to / "study.csv", ["task", "teacher", "model", "seeds", *CONDITIONS, "95 %"], study)
    write(to / "differences.csv", ["task", "teacher", "difference", *CONDITIONS], differences)


def write(file: Path, header: list[str], rows: list[list[str]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])


if __name__ == "__main__":
    main()
