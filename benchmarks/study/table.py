"""The table of teachers, tasks and models as CSV, from the tables that `robustdistiller evaluate` wrote.

    python benchmarks/study/table.py HuBERT=RESULTS WavLM=RESULTS … > docs/results/study.csv

A teacher may have several folders, of different tasks. A folder of RESULTS holds benchmark.json, and as `plain.csv` and
`teacher.csv` its results.csv with that `--reference`. A line for each task and model: per cent right, and paired differences
with 95 % intervals over speakers, trainings and heads.
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
    "deep-robust": "robust, 4 × 256", "log-mel": "log-mel",
}  # fmt: skip
MEANS = ("clean", "mean:noise", "mean:reverb", "mean:both", "mean:contaminated")
HEADER = ["task", "teacher", "model", "seeds", "clean", "noise", "rooms", "noise in rooms", "contaminated", "95 %",
          *(f"{part} − {other}" for other in ("ordinary", "teacher") for part in ("clean", "contaminated"))]  # fmt: skip

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


def main() -> None:
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(HEADER)
    found: dict[str, tuple[dict[Key, Row], dict[Key, Row]]] = {}
    seeds: dict[tuple[str, str, str], str] = {}
    for name, folder in (given.split("=", 1) for given in sys.argv[1:]):
        for table, reference in zip(found.setdefault(name, ({}, {})), ("plain", "teacher"), strict=True):
            table.update(read(Path(folder) / f"{reference}.csv"))
        told = json.loads((Path(folder) / "benchmark.json").read_text(encoding="utf-8"))
        for task, model in ((task["name"], model) for task in told["tasks"] for model in told["models"]):
            trainings = model.get("trainings", ())
            seeds[name, task, model["name"]] = " ".join(t.rsplit("-", 1)[1] for t in trainings)
    for (task, metric), title in TASKS.items():
        for number, (teacher, tables) in enumerate(found.items()):
            for model, about in MODELS.items():
                rows = [tables[0].get((task, metric, model, part)) for part in MEANS]
                if not all(rows) or (model == "log-mel" and number):  # it is the same for every teacher
                    continue
                last = rows[-1]
                assert last is not None
                values = [percent(row["value"]) for row in rows if row]
                interval = f"{percent(last['low'])} to {percent(last['high'])}"
                gaps = [
                    difference(t.get((task, metric, model, part))) for t in tables for part in (MEANS[0], MEANS[-1])
                ]
                out.writerow(
                    [
                        title,
                        "" if model == "log-mel" else teacher,
                        about,
                        seeds[teacher, task, model],
                        *values,
                        interval,
                        *gaps,
                    ]
                )


if __name__ == "__main__":
    main()
