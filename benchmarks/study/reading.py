"""Reading the study's results: rows are models without the number of their seed, so that NAME-0, NAME-1, … are one row."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from robustdistiller.evaluation.metrics import METRICS, Scores
from robustdistiller.evaluation.probes import accuracy
from robustdistiller.evaluation.rows import Row
from robustdistiller.evaluation.statistics import Bootstrap, difference
from robustdistiller.files import read_jsonl, replacing


def lines(results: Path) -> list[dict[str, str]]:
    """The lines of results.csv; `row` is the model without its seed."""
    with (results / "results.csv").open() as stream:
        found = list(csv.DictReader(stream))
    for line in found:
        line["row"], _ = _row_and_seed(line["model"])
    return found


def _row_and_seed(model: str) -> tuple[str, str]:
    """ "robust-0" → ("robust", "0"); a model without a seed is a row of its own, under the empty seed."""
    name, dash, seed = model.rpartition("-")
    return (name, seed) if dash and seed.isdigit() else (model, "")


def compare(results: Path, row: str, other: str) -> None:
    """Print, as Markdown, how far `row` is ahead of `other`: in per cent right, per kind of condition, with 95 % intervals.

    Two rows are averaged over the seeds that they share; two models are compared as they are. Intervals are those of a paired
    bootstrap over test speakers, and over the pairs of a training and a head.
    """
    kinds = {line["condition"]: line["kind"] for line in lines(results) if not _is_mean(line)}
    for task in sorted((results / "predictions").iterdir()):
        models = [_models(task, name) for name in (row, other)]
        seeds = sorted(models[0].keys() & models[1].keys())
        if not seeds:
            raise SystemExit(f"{task} has no seed of both {row} and {other}.")
        mine, theirs = ([_answers(by_seed[seed], kinds) for seed in seeds] for by_seed in models)
        bootstrap = Bootstrap([answer["speaker"] or answer["id"] for answer in mine[0]["clean"]])
        print(f"\n{task.name}, {row} − {other}{', seeds ' * any(seeds)}{', '.join(seeds)}\n")
        print("| clean | noise | rooms | noise in rooms | contaminated |\n|" + " --- |" * 5)
        gains = {c: np.concatenate([accuracy(m[c]).total - accuracy(t[c]).total for m, t in zip(mine, theirs, strict=True)])
                 for c in kinds}  # condition → (seeds · heads, utterances)  # fmt: skip
        cells = []
        for wanted in (("clean",), ("noise",), ("reverb",), ("both",), ("noise", "reverb", "both")):
            gain = 100 * np.mean([gains[c] for c, kind in kinds.items() if kind in wanted], 0)
            scores = Scores(METRICS["accuracy"], gain, np.ones(gain.shape[1]))
            ahead = difference(float(gain.mean()), bootstrap.replicate(scores, row))
            cells.append(f"{ahead.value:+.1f} ({ahead.low:.1f}–{ahead.high:.1f})".replace("-", "−"))
        print(f"| {' | '.join(cells)} |")


def _is_mean(line: dict[str, str]) -> bool:
    """Whether a line is of a mean over conditions, not of one."""
    return line["condition"].startswith("mean:")


def _models(task: Path, name: str) -> dict[str, Path]:
    """The models of a row by seed; of a name that is one model's, that model under the empty seed."""
    rows = {seed: model for model in task.iterdir() for row, seed in [_row_and_seed(model.name)] if row == name}
    return rows or ({"": task / name} if (task / name).is_dir() else {})


def _answers(model: Path, conditions: Iterable[str]) -> dict[str, list[Row]]:
    """What the heads of a model answered, by condition."""
    return {c: [row for _, row in read_jsonl(model / f"{c}.jsonl", "predictions")] for c in conditions}


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
                if line["kind"] == kind and not _is_mean(line):
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
