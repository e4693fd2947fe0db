"""The figures for papers: Markdown tables of the averages and of every condition, each number with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import markdown
from ..files import write_text
from .reading import BenchmarkResult, Measure, read_result, size_text


def write_summary(folder: str | Path) -> Path:
    """Write the tables of the benchmark in `folder` as its `summary.md`."""
    result = read_result(folder)
    path = result.folder / "summary.md"
    write_text(path, render_summary(result))
    return path


def render_summary(result: BenchmarkResult) -> str:
    settings = result.values["settings"]
    lines = [
        "# Robustness benchmark",
        "",
        f"Heads trained on {settings['train_on']} speech, {settings['seeds']} head seed(s) each; 95 % intervals from "
        f"{settings['replicates']} bootstrap replicates over test speakers, trainings and heads. "
        f"In parentheses: the difference to {markdown(result.reference)}; * marks p < 0.05 after Holm's correction.",
        "",
        "| model | parameters | states shown to the heads |",
        "| --- | ---: | --- |",
    ]
    for m in result.models:
        trainings = f", {len(m['trainings'])} trainings" if "trainings" in m else ""
        size, states = size_text(m["num_parameters"]), ", ".join(m["states"])
        lines.append(f"| {markdown(m['name'])}{trainings} | {size} | {states} |")
    for task in result.tasks:
        for measure in result.measures(task):
            lines += ["", f"## {markdown(task['title'])}: {markdown(measure.label)}", "", *_averages(result, measure)]
            lines += ["", *_all(result, measure)]
        lines += _similarities(result, task)
    if result.values["notes"]:
        lines += ["", "## Remarks", "", *(f"- {markdown(note)}" for note in result.values["notes"])]
    return "\n".join(lines) + "\n"


def _averages(result: BenchmarkResult, measure: Measure) -> list[str]:
    names = ["clean", *(f"mean:{name}" for name in result.averages)]
    titles = ["clean", *(result.average_title(name) for name in result.averages)]
    lines = [f"| model | {' | '.join(titles)} |", f"| --- |{' ---: |' * len(titles)}"]
    for model in measure.models:
        cells = []
        for name in names:
            figure = measure.get(model, name)
            text = measure.interval(figure) if figure else "–"
            if figure and "against" in figure:
                text += f" ({measure.difference(figure)}{'*' if figure['significant'] else ''})"
            cells.append(text)
        lines.append(f"| {markdown(model)} | {' | '.join(cells)} |")
    return lines


def _all(result: BenchmarkResult, measure: Measure) -> list[str]:
    models = " | ".join(map(markdown, measure.models))
    lines = [f"| condition | seen | {models} |", f"| --- | --- |{' ---: |' * len(measure.models)}"]
    for condition in result.conditions:
        figures = [measure.get(model, condition["name"]) for model in measure.models]
        cells = " | ".join(measure.interval(figure) if figure else "–" for figure in figures)
        lines.append(f"| {markdown(condition['title'])} | {condition['seen'] or ''} | {cells} |")
    return lines


def _similarities(result: BenchmarkResult, task: dict[str, Any]) -> list[str]:
    found = result.similarity(task)
    if not found:
        return []
    return [
        "", f"## {markdown(task['title'])}: similarity of clean and contaminated features", "",
        "| model | cosine, all states | cosine, last state | CKA, all states | CKA, last state |", "| --- |" + " ---: |" * 4,
        *(f"| {markdown(model)} | {' | '.join(f'{value:.3f}' for value in values)} |" for model, values in found),
    ]  # fmt: skip
