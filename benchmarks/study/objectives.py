"""The table of objectives as CSV, from the results.csv of `robustdistiller evaluate` on validation speakers.

    python benchmarks/study/objectives.py RESULTS > docs/results/objectives.csv

A line for each row of the study that was measured, in the order of rows.yaml: per cent right, clean and contaminated,
and the paired difference to the reference in contaminated speech with its 95 % interval over speakers, trainings and heads.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import yaml
from table import difference, percent, read

TASKS = {
    ("keywords", "accuracy"): "keywords", ("spoken-intents", "slots"): "spoken commands", ("intents", "slots"): "coffee orders",
}  # fmt: skip


def main() -> None:
    found = read(Path(sys.argv[1]) / "results.csv")
    rows = yaml.safe_load((Path(__file__).parent / "rows.yaml").read_text())["rows"]
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(
        ["row", "what", *(f"{t}, {c}" for t in TASKS.values() for c in ("clean", "contaminated", "difference"))]
    )
    for name in dict.fromkeys(model for _, _, model, _ in found):
        line = [name, rows.get(name, {}).get("about", "")]
        for task, metric in TASKS:
            clean, contaminated = (found.get((task, metric, name, c)) for c in ("clean", "mean:contaminated"))
            line += [*(percent(row["value"]) if row else "" for row in (clean, contaminated)), difference(contaminated)]
        out.writerow(line)


if __name__ == "__main__":
    main()
