"""The picture behind a choice: accuracy over conditions against speed and size, from a latency result and a benchmark."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import UserError, optional
from ..files import read_json, replacing
from ..outputs import software
from .latency import Latency

FORMAT_MARKS = {"torch": "o", "onnx": "s", "int8": "^", "openvino": "D"}
FORMAT_NAMES = {"torch": "PyTorch fp32", "onnx": "ONNX fp32", "int8": "ONNX int8", "openvino": "OpenVINO fp32"}


def robustness(benchmark: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """Mean accuracy over the tasks of a ``benchmark.json``, by model: {"clean": …, "contaminated": …}, fractions.

    Raises `UserError` for a file that is no benchmark result or holds no accuracy.
    """
    result: Any = read_json(benchmark, "benchmark result")
    scores: dict[str, dict[str, list[float]]] = {}
    try:
        for task in result["tasks"]:
            for figure in task["figures"]:
                condition = {"clean": "clean", "mean:contaminated": "contaminated"}.get(figure["condition"])
                if condition and figure["metric"] == "accuracy":
                    scores.setdefault(figure["model"], {}).setdefault(condition, []).append(float(figure["value"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{benchmark} is no result of `evaluate`: give its benchmark.json.") from error
    if not scores:
        raise UserError(f"{benchmark} holds no accuracy: evaluate a classification or slot task first.")
    return {m: {c: sum(values) / len(values) for c, values in found.items()} for m, found in scores.items()}


def plot_tradeoff(
    latency: Latency, benchmark: str | os.PathLike[str], out: str | os.PathLike[str], threads: int = 1
) -> None:
    """Write a picture: accuracy against real-time factor, the area of a mark being the size of its file.

    The accuracy of a model is that of its PyTorch version in the benchmark, in every format. Raises `UserError` when no
    measured model is in the benchmark, or matplotlib is missing.
    """
    optional("matplotlib", "report", "The plot")
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    scores = robustness(benchmark)
    known = [row for row in latency.rows if row.candidate.name in scores]
    if not known:
        names = ", ".join(sorted(scores))
        raise UserError(f"None of the measured models is in {benchmark}: name them as there ({names}), as name=MODEL.")
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True)
    colours = {name: f"C{k}" for k, name in enumerate(dict.fromkeys(row.candidate.name for row in known))}
    for axis, condition in zip(axes, ("clean", "contaminated"), strict=True):
        for row in known:
            candidate, value = row.candidate, scores[row.candidate.name].get(condition)
            if value is None:
                continue
            rtf = row.timings[threads].minimum / latency.audio
            label = f"{candidate.name}, {FORMAT_NAMES[candidate.format]}, {candidate.bytes / 1e6:.0f} MB"
            axis.scatter(
                rtf, 100 * value, s=20 + 4 * candidate.bytes / 1e6, color=colours[candidate.name],
                marker=FORMAT_MARKS[candidate.format], alpha=0.75, label=label,
            )  # fmt: skip
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(f"real-time factor, {threads} thread{'s' * (threads > 1)} (smaller is faster)")
        axis.set_ylabel("mean accuracy in PyTorch, %")
        axis.set_title(f"{condition} speech")
        axis.grid(alpha=0.3)
    for handle in axes[0].legend(fontsize=7, loc="best").legend_handles:
        handle.set_sizes([30])
    figure.suptitle(f"{latency.machine['processor']} ({', '.join(latency.machine['flags'])})", fontsize=8)
    with replacing(Path(out)) as temporary:
        figure.savefig(temporary, dpi=150, metadata={"Title": software("latency")})
