"""Reading the study's results: rows are models without the number of their seed, so that NAME-0, NAME-1, … are one row."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from robustdistiller.evaluation.metrics import METRICS, Scores
from robustdistiller.evaluation.statistics import Bootstrap, difference
from robustdistiller.files import read_jsonl, replacing


def lines(results: Path) -> list[dict[str, str]]:
    """The lines of results.csv; `row` is the model without its seed."""
    with (results / "results.csv").open() as stream:
        found = list(csv.DictReader(stream))
    for line in found:
        name, dash, seed = line["model"].rpartition("-")
        line["row"] = name if dash and seed.isdigit() else line["model"]
    return found


def compare(results: Path, row: str, other: str) -> None:
    """Print, as Markdown, how far `row` is ahead of `other`: in per cent right, per kind of condition, with 95 % intervals.

    Both are averaged over the seeds that they share. Intervals are those of a paired bootstrap over test speakers, and over
    the pairs of a training and a head.
    """
    kinds = {line["condition"]: line["kind"] for line in lines(results) if not line["condition"].startswith("mean:")}
    for task in sorted((results / "predictions").iterdir()):
        seeds = sorted(_seeds(task, row).keys() & _seeds(task, other).keys())
        if not seeds:
            raise SystemExit(f"{task} has no seed of both {row} and {other}.")
        right = {name: [_right(_seeds(task, name)[seed], kinds) for seed in seeds] for name in (row, other)}
        bootstrap = Bootstrap(right[row][0][1])
        print(f"\n{task.name}, {row} − {other}, seeds {', '.join(seeds)}\n")
        print("| clean | noise | rooms | noise in rooms | contaminated |\n|" + " --- |" * 5)
        cells = []
        for wanted in (("clean",), ("noise",), ("reverb",), ("both",), ("noise", "reverb", "both")):
            chosen = [name for name, kind in kinds.items() if kind in wanted]
            gains = np.concatenate(
                [
                    np.mean([mine[0][c] - theirs[0][c] for c in chosen], 0)
                    for mine, theirs in zip(*right.values(), strict=True)
                ]
            )  # (seeds · heads, utterances)
            scores = Scores(METRICS["accuracy"], 100 * gains, np.ones(gains.shape[1]))
            found = difference(100 * float(gains.mean()), bootstrap.replicate(scores, row))
            cells.append(f"{found.value:+.1f} ({found.low:.1f}–{found.high:.1f})".replace("-", "−"))
        print(f"| {' | '.join(cells)} |")


def _seeds(task: Path, row: str) -> dict[str, Path]:
    """The models of a row by seed."""
    found = ((folder, re.fullmatch(re.escape(row) + r"-(\d+)", folder.name)) for folder in task.iterdir())
    return {match[1]: folder for folder, match in found if match}


def _right(model: Path, kinds: Mapping[str, str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Which answers of each head are right (heads, utterances) by condition, and whose utterances they are."""
    right, speakers = {}, []
    for condition in kinds:
        rows = [row for _, row in read_jsonl(model / f"{condition}.jsonl", "predictions")]
        right[condition] = np.array([[float(said == row["target"]) for said in row["predictions"]] for row in rows]).T
        speakers = [row["speaker"] or row["id"] for row in rows]
    return right, speakers


def plot(results: Path, to: Path) -> None:
    """Draw the first task: accuracy over SNR (mean over the types of noise) and over reverberation time, clean at the right."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "study"
    found = [line for line in lines(results) if line["metric"] == "accuracy"]
    found = [line for line in found if line["task"] == found[0]["task"]]
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for number, row in enumerate(dict.fromkeys(line["row"] for line in found)):
        mine = [line for line in found if line["row"] == row]
        style = {"marker": "osD^vP*"[number % 7], "color": f"C{number}", "label": row}
        for axis, kind, field in ((axes[0], "noise", "snr_db"), (axes[1], "reverb", "t60_low")):
            values: dict[float, list[float]] = {}
            for line in mine:
                if line["kind"] == kind and line["condition"].partition(":")[0] != "mean":
                    values.setdefault(float(line[field]), []).append(100 * float(line["value"]))
            places = sorted(values, reverse=kind == "reverb")
            heights = [sum(values[p]) / len(values[p]) for p in places]
            clean = [100 * float(line["value"]) for line in mine if line["condition"] == "clean"]
            axis.plot(range(len(places) + 1), [*heights, sum(clean) / len(clean)], **style)
            ends = {
                float(line["t60_low"]): line["t60_high"]
                for line in mine
                if line["kind"] == "reverb" and line["t60_low"]
            }
            names = [f"{p:g} dB" if kind == "noise" else f"{p:g}–{float(ends[p]):g} s" for p in places]
            axis.set_xticks(range(len(places) + 1), [*names, "clean"])
    axes[0].set(title="Noise, mean over its types", xlabel="SNR", ylabel="right, %", ylim=(0, 100))
    axes[1].set(title="Measured rooms", xlabel="T60")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[1].legend(loc="lower right", fontsize="small")
    with replacing(to) as part:
        figure.savefig(part, format="svg", metadata={"Date": None})


def table(results: Path) -> None:
    """Print every task's conditions as Markdown; models called NAME-0, NAME-1, … are averaged, with the lowest and highest."""
    figures: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}
    for line in lines(results):
        cells = figures.setdefault((line["task"], line["metric"]), {})
        cells.setdefault(line["condition"], {}).setdefault(line["row"], []).append(float(line["value"]))
    for (task, metric), cells in figures.items():
        rows = list(dict.fromkeys(row for by in cells.values() for row in by))
        print(f"\n{task}, {metric}\n\n| condition | {' | '.join(rows)} |\n|{' --- |' * (len(rows) + 1)}")
        for condition, by in cells.items():
            told = [f"{100 * sum(v) / len(v):.1f}" + (f" ({100 * min(v):.1f}–{100 * max(v):.1f})" if len(v) > 1 else "")
                    for v in (by[row] for row in rows)]  # fmt: skip
            print(f"| {condition.removeprefix('mean:')} | {' | '.join(told)} |")
