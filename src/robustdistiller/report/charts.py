"""The pictures, as SVG with real text: the metric over SNR and T60, clean against contaminated, layer weights, confusions."""

from __future__ import annotations

import base64
import functools
import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ..errors import optional
from ..files import StrPath, replacing
from .reading import PALETTE, BenchmarkResult, Measure, size_text, unique

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "os^DXv*"
LINES = ("-", "--", ":", "-.", (0, (4, 2)), (0, (1, 2)), (0, (8, 3)))
PANEL = (3.6, 2.6)  # inches
KINDS = {"clean": "clean", "noise": "noise", "reverb": "reverberation", "both": "noise in rooms"}
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "robustdistiller", "font.family": "sans-serif", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e4e8ec",
    "text.parse_math": False, "axes.titlesize": 10, "axes.titlelocation": "left", "legend.frameon": False,
}  # fmt: skip

P = ParamSpec("P")
T = TypeVar("T")
Place = tuple[float, str, str]
"""Where on the axis, how it is written there, and the condition."""


def _styled(draw: Callable[P, T]) -> Callable[P, T]:
    """The function with our style of drawing. It raises `UserError` where matplotlib is missing."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> T:
        with optional("matplotlib", "report", "A picture of results").rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


@_styled
def curves(result: BenchmarkResult, measure: Measure) -> str:
    """A panel for every noise (over SNR), every source of rooms (over T60), and every room with noise."""
    panels = [(noise, "SNR (dB)", _over_snr(result.of_kind("noise"), noise=noise))
              for noise in unique(c["noise"] for c in result.of_kind("noise"))]  # fmt: skip
    panels += [(f"reverberation ({rooms})", "T60 (s)", _over_t60([c for c in result.of_kind("reverb") if c["rooms"] == rooms]))
               for rooms in unique(c["rooms"] for c in result.of_kind("reverb"))]  # fmt: skip
    for noise, rooms, t60 in unique((c["noise"], c["rooms"], tuple(c["t60"])) for c in result.of_kind("both")):
        places = _over_snr(result.of_kind("both"), noise=noise, rooms=rooms, t60=list(t60))
        if len(places) > 2:
            panels.append((f"{noise}, T60 {t60[0]:g}–{t60[1]:g} s ({rooms})", "SNR (dB)", places))
    if not panels:
        return ""
    figure, axes = _panels(len(panels), sharey=True)
    for axis, (title, label, places) in zip(axes, panels, strict=True):
        _lines(axis, result, measure, places)
        axis.set(title=title, xlabel=label)
    for axis in axes[::3]:
        axis.set_ylabel(measure.label)
    return _embedded(figure, f"{measure.label} under noise and reverberation", axes[0])


@_styled
def write_means(result: BenchmarkResult, measure: Measure, path: StrPath) -> None:
    """Write one picture of a measure: over SNR, the mean of all noises, and over T60, the mean of all sources of rooms."""
    noise, reverb = result.of_kind("noise"), result.of_kind("reverb")
    by_snr = {snr: [c["name"] for c in noise if c["snr_db"] == snr] for snr in sorted({c["snr_db"] for c in noise})}
    by_t60 = {t: [c["name"] for c in reverb if tuple(c["t60"]) == t] for t in sorted({tuple(c["t60"]) for c in reverb})}
    groups = [("Noise, mean over its types", "SNR (dB)", {f"{snr:g}": names for snr, names in by_snr.items()})]
    rooms = {f"{low:g}–{high:g}": by_t60[low, high] for low, high in sorted(by_t60, reverse=True)}
    groups.append(("Rooms", "T60 (s)", rooms))
    groups = [group for group in groups if group[2]]
    if not groups:
        return
    figure, axes = _panels(len(groups), sharey=True, size=(4.5, 3.6))
    for axis, (title, label, ticks) in zip(axes, groups, strict=True):
        ticks = {**ticks, "clean": ["clean"]}
        for model in measure.models:
            found = [[f for name in names if (f := measure.get(model, name))] for names in ticks.values()]
            heights = [measure.scaled(sum(f["value"] for f in fs) / len(fs)) if fs else math.nan for fs in found]
            axis.plot(range(len(ticks)), heights, label=model, **_style(result.index(model)))
        axis.set_xticks(range(len(ticks)), list(ticks))
        axis.set(title=title, xlabel=label)
    axes[0].set_ylabel(measure.label)
    with replacing(path) as part:
        _written(figure, part, measure.label, axes[0])


@_styled
def scatter(result: BenchmarkResult, measure: Measure) -> str:
    """Clean against the average of all contaminated conditions; the marker's area grows with the model."""
    sizes = {m["name"]: int(m["num_parameters"]) for m in result.models}
    found = [(m, measure.get(m, "clean"), measure.get(m, "mean:contaminated")) for m in measure.models]
    dots = [(model, clean, robust) for model, clean, robust in found if clean and robust]
    if not dots:
        return ""
    figure, (axis,) = _panels(1, size=(4.8, 3.6))
    for model, clean, robust in dots:
        index, ends = result.index(model), []
        for one in (clean, robust):
            ends.append([[measure.scaled(one["value"] - one["low"])], [measure.scaled(one["high"] - one["value"])]])
        x, y = measure.scaled(clean["value"]), measure.scaled(robust["value"])
        axis.errorbar(x, y, ends[1], ends[0], color=PALETTE[index % 7], marker=MARKERS[index % 7],
                      markersize=5 + math.sqrt(sizes.get(model, 0) / 1e6))  # fmt: skip
        words = f"{model}, {size_text(sizes[model])}" if sizes.get(model) else model
        axis.annotate(words, (x, y), (7, 5), textcoords="offset points")
    axis.set(title="clean against contaminated", xlabel=f"clean {measure.label}", ylabel="mean of all contaminated")
    both = [max(axis.get_xlim()[0], axis.get_ylim()[0]), min(axis.get_xlim()[1], axis.get_ylim()[1])]
    if both[0] < both[1]:  # the line of no loss, where both axes have it
        axis.plot(both, both, color="#8b949e", linestyle=":", zorder=0)
    return _embedded(figure, f"clean against contaminated {measure.label}")


@_styled
def detection(rows: Sequence[dict[str, Any]], result: BenchmarkResult) -> str:
    """DET curves: missed keywords over false alarms an hour, a panel for every condition."""
    titles = {c["name"]: c["title"] for c in result.conditions}
    names = unique(row["condition"] for row in rows)
    if not names:
        return ""
    figure, axes = _panels(len(names), sharey=True)
    for axis, name in zip(axes, names, strict=True):
        for row in (row for row in rows if row["condition"] == name):
            points, style = row["points"], _style(result.index(row["model"]))
            x = [point["alarms"] for point in points]
            keys = ("recall", "recall_high", "recall_low")
            missed, low, high = ([100 * (1 - point[key]) for point in points] for key in keys)
            axis.plot(x, missed, label=row["model"], **{**style, "markersize": 3})
            axis.fill_between(x, low, high, color=style["color"], alpha=0.14, linewidth=0)
        axis.set_xscale("symlog", linthresh=0.5)
        axis.set_xticks(ticks := (0, 1, 10, 100, 1000), [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set(title=titles.get(name, name), xlabel="false alarms an hour", ylim=(0, 100))
    for axis in axes[::3]:
        axis.set_ylabel("keywords missed (%)")
    return _embedded(figure, "detection error trade-off", axes[0])


@_styled
def weights(heads: Sequence[dict[str, Any]], result: BenchmarkResult) -> str:
    """Which states the heads read: a panel of bars for every model."""
    heads = [head for head in heads if len(head["states"]) > 1]
    if not heads:
        return ""
    figure, axes = _panels(len(heads), size=(3.6, 0.8 + 0.18 * max(len(head["states"]) for head in heads)))
    for axis, head in zip(axes, heads, strict=True):
        axis.barh(head["states"], head["weights"], color=PALETTE[result.index(head["model"]) % 7])
        axis.invert_yaxis()
        axis.set(title=head["model"])
    return _embedded(figure, "weights of the states")


@_styled
def similarity_per_state(rows: Sequence[dict[str, Any]], result: BenchmarkResult) -> str:
    """Cosine of clean and contaminated features per state, a panel for every model, a line for every kind of contamination."""
    kinds = {c["name"]: c["kind"] for c in result.conditions}
    models = [m for m in result.models if len(m["states"]) > 1 and any(row["model"] == m["name"] for row in rows)]
    if not models:
        return ""
    figure, axes = _panels(len(models), sharey=True)
    for axis, model in zip(axes, models, strict=True):
        own = [row for row in rows if row["model"] == model["name"]]
        for k, kind in enumerate(unique(kinds[row["condition"]] for row in own)):
            found = [row["cosine"] for row in own if kinds[row["condition"]] == kind]
            mean = [sum(column) / len(found) for column in zip(*found, strict=True)]
            axis.plot(range(len(mean)), mean, label=KINDS[kind], **_style(k))
        stride = -(-len(model["states"]) // 9)
        names = [state.replace("layer ", "").replace("prediction of ", "p") for state in model["states"]]
        axis.set_xticks(range(0, len(names), stride), names[::stride])
        axis.set(title=model["name"], xlabel="state", ylabel="cosine")
    return _embedded(figure, "similarity of clean and contaminated features", axes[0])


@_styled
def confusions(entries: Sequence[dict[str, Any]], classes: dict[str, Sequence[str]]) -> str:
    """Rows are what was said, columns what was answered; shades and numbers are per cent of the row."""
    largest = max(len(classes[entry["slot"]]) for entry in entries)
    side = 2.3 + 0.24 * largest
    figure, axes = _panels(len(entries), size=(side, side))
    for axis, entry in zip(axes, entries, strict=True):
        names = [name if len(name) <= 17 else name[:16] + "…" for name in classes[entry["slot"]]]
        shares = [[100 * count / max(1e-9, sum(row)) for count in row] for row in entry["counts"]]
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        axis.set_xticks(range(len(names)), names, rotation=60, ha="right")
        axis.set_yticks(range(len(names)), names)
        axis.grid(False)
        axis.set(title=f"{entry['slot']}, {entry['condition']}")
        for y, row in enumerate(shares if len(names) <= 16 else ()):
            for x, share in enumerate(row):
                if share >= 0.5:
                    colour = "white" if share > 60 else "black"
                    axis.text(x, y, f"{share:.0f}", ha="center", va="center", fontsize=7, color=colour, in_layout=False)
    return _embedded(figure, "what is taken for what")


def _over_snr(cells: Sequence[dict[str, Any]], **fixed: Any) -> list[Place]:
    """The SNRs of the conditions that have the values `fixed`, and clean speech at the right end."""
    chosen = [c for c in cells if all((list(c[k]) if k == "t60" else c[k]) == value for k, value in fixed.items())]
    chosen = sorted(chosen, key=lambda c: float(c["snr_db"]))
    levels = [float(c["snr_db"]) for c in chosen]
    step = (levels[-1] - levels[0]) / max(1, len(levels) - 1) or 5.0
    places = [(level, f"{level:g}", c["name"]) for level, c in zip(levels, chosen, strict=True)]
    return [*places, (levels[-1] + 1.2 * step, "clean", "clean")]


def _over_t60(cells: Sequence[dict[str, Any]]) -> list[Place]:
    """The bins of T60, and clean speech at the left end."""
    ordered = sorted(cells, key=lambda c: tuple(c["t60"]))
    return [(0.0, "clean", "clean"),
            *((k + 1.0, f"{c['t60'][0]:g}–{c['t60'][1]:g}", c["name"]) for k, c in enumerate(ordered))]  # fmt: skip


def _lines(axis: Axes, result: BenchmarkResult, measure: Measure, places: Sequence[Place]) -> None:
    """A line with its interval for every model."""
    for model in measure.models:
        found = [(place, figure) for place, _, name in places if (figure := measure.get(model, name))]
        x = [place for place, _ in found]
        value, low, high = ([measure.scaled(f[key]) for _, f in found] for key in ("value", "low", "high"))
        style = _style(result.index(model))
        axis.plot(x, value, label=model, **style)
        axis.fill_between(x, low, high, color=style["color"], alpha=0.14, linewidth=0)
    axis.set_xticks([place for place, _, _ in places], [tick for _, tick, _ in places])


def _style(index: int) -> dict[str, Any]:
    """Colour, marker and dash: each alone tells models apart."""
    return {"color": PALETTE[index % 7], "marker": MARKERS[index % 7], "linestyle": LINES[index % 7], "markersize": 5}


def _panels(count: int, sharey: bool = False, size: tuple[float, float] = PANEL) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, three in a row."""
    from matplotlib.figure import Figure

    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=sharey, squeeze=False).flatten().tolist()
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def _written(figure: Figure, to: Any, title: str, legend: Axes | None) -> None:
    if legend is not None:
        handles, labels = legend.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(4, max(1, len(labels))))
    figure.savefig(to, format="svg", metadata={"Date": None, "Creator": None, "Title": title})


def _embedded(figure: Figure, title: str, legend: Axes | None = None) -> str:
    """The picture as a data address."""
    stream = io.BytesIO()
    _written(figure, stream, title, legend)
    return f"data:image/svg+xml;base64,{base64.b64encode(stream.getvalue()).decode()}"
