"""The table of objectives as CSV, from the results.csv of `robustdistiller evaluate` on validation speakers.

    python benchmarks/study/objectives.py RESULTS > docs/results/objectives.csv

Per cent right in clean and in contaminated speech, and paired differences to the reference with 95 % intervals over speakers
and heads.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from table import difference, percent, read

TASKS = {("keywords", "accuracy"): "keywords", ("spoken-intents", "slots"): "spoken commands"}
PARTS = {"clean": "clean", "mean:contaminated": "contaminated"}
ROWS = {
    "deep-robust": "L1 + cosine to three layers, enhancement at the CNN output (the paper's loss)",
    "deep-off": "without enhancement",
    "deep-tap-2": "enhancement at layer 2",
    "deep-tap-last": "enhancement at the last layer",
    "deep-correlation": "with correlation metrics",
    "deep-vicreg": "with VICReg's variance and covariance",
    "deep-mse": "squared error to the last layer alone (DeWavLM)",
    "deep-skill": "targets are means of four layers (SKILL)",
    "deep-consistency": "two contaminations have one prediction",
    "deep-units": "masked units of the last layer alone (DiceHuBERT)",
}


def main() -> None:
    found = read(Path(sys.argv[1]))
    out = csv.writer(sys.stdout, lineterminator="\n")
    columns = [f"{task}, {part}" for task in TASKS.values() for part in PARTS.values()]
    out.writerow(["objective", *(word for column in columns for word in (column, "difference"))])
    for name, title in ROWS.items():
        rows = [found[task, metric, name, part] for task, metric in TASKS for part in PARTS]
        out.writerow([title, *(word for row in rows for word in (percent(row["value"]), difference(row)))])


if __name__ == "__main__":
    main()
