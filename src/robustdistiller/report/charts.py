"""The pictures: accuracy against SNR and T60, clean against robust, layer weights, similarity per layer, confusions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .reading import Measure, Result, size_text, unique
from .svg import DASHES, PALETTE, Canvas, nice_ticks, shade

WIDTH, HEIGHT = 360.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 12.0, 26.0, 42.0


@dataclass(frozen=True)
class Series:
    """A line: (place on the x axis, value, low, high) with the model's index."""

    name: str
    index: int
    points: list[tuple[float, float, float, float]]


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    ticks: Sequence[tuple[float, str]],
    series: Sequence[Series],
    gap: float | None = None,
    extent: tuple[float, float] | None = None,
) -> str:
    """Lines with interval bands.

    gap: where the axis is interrupted (between the last SNR and "clean"); extent: what the y axis must cover, else the data.
    """
    canvas = Canvas(WIDTH, HEIGHT, f"{title}: {y_label} against {x_label}")
    values = extent or tuple(value for one in series for point in one.points for value in point[2:])
    levels = nice_ticks(min(values), max(values))
    x = _scale([tick for tick, _ in ticks], LEFT + 10, WIDTH - RIGHT - 14)
    y = _scale([levels[0], levels[-1]], HEIGHT - BOTTOM, TOP)
    canvas.text((LEFT, 14), title, css="title")
    _levels(canvas, levels, y)
    for place, name in ticks:
        canvas.line((x(place), HEIGHT - BOTTOM), (x(place), HEIGHT - BOTTOM + 4))
        canvas.text((x(place), HEIGHT - BOTTOM + 16), name, "middle")
    if gap is not None:
        canvas.line((x(gap), TOP), (x(gap), HEIGHT - BOTTOM), style="stroke-dasharray:2 3")
    canvas.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8), x_label, "middle", css="soft")
    for one in series:
        colour = PALETTE[one.index % len(PALETTE)]
        if len(one.points) > 1:
            upper = [(x(place), y(high)) for place, _, _, high in one.points]
            lower = [(x(place), y(low)) for place, _, low, _ in reversed(one.points)]
            canvas.band([*upper, *lower], colour)
            dash = DASHES[one.index % len(DASHES)]
            canvas.path([(x(place), y(value)) for place, value, _, _ in one.points], colour, dash)
    for one in series:
        for place, value, low, high in one.points:
            canvas.marker((x(place), y(value)), one.index, 3.6, f"{one.name}: {value:.3g} [{low:.3g}, {high:.3g}]")
    return canvas.render()


def snr_charts(result: Result, measure: Measure) -> list[str]:
    """One chart per noise type: the metric against SNR, with clean speech at the right end."""
    return [
        _snr_chart(result, measure, f"{noise}", [c for c in result.of_kind("noise") if c["noise"] == noise])
        for noise in unique(c["noise"] for c in result.of_kind("noise"))
    ]


def both_charts(result: Result, measure: Measure) -> list[str]:
    """The same for noise in rooms, where a room has several SNRs."""
    charts = []
    rooms = unique((c["noise"], c["rooms"], tuple(c["t60"])) for c in result.of_kind("both"))
    for noise, room, (low, high) in rooms:
        cells = [
            c for c in result.of_kind("both") if (c["noise"], c["rooms"], tuple(c["t60"])) == (noise, room, (low, high))
        ]
        if len(cells) > 1:
            charts.append(_snr_chart(result, measure, f"{noise}, T60 {low:g}–{high:g} s ({room})", cells))
    return charts


def t60_charts(result: Result, measure: Measure) -> list[str]:
    """One chart per room source: the metric against the bins of T60, with clean speech at the left end."""
    charts = []
    for room in unique(c["rooms"] for c in result.of_kind("reverb")):
        cells = sorted((c for c in result.of_kind("reverb") if c["rooms"] == room), key=lambda c: tuple(c["t60"]))
        names = ["clean", *(c["name"] for c in cells)]
        ticks = [(0.0, "dry"), *((float(k + 1), f"{c['t60'][0]:g}–{c['t60'][1]:g}") for k, c in enumerate(cells))]
        series = _series(result, measure, list(enumerate(names)))
        if series:
            title = f"reverberation ({room})"
            charts.append(line_chart(title, "T60 (s)", measure.label, ticks, series, 0.5, _extent(measure)))
    return charts


def _snr_chart(result: Result, measure: Measure, title: str, cells: Sequence[dict[str, Any]]) -> str:
    cells = sorted(cells, key=lambda c: float(c["snr_db"]))
    levels = [float(c["snr_db"]) for c in cells]
    step = (levels[-1] - levels[0]) / max(1, len(levels) - 1) or 5.0
    clean = levels[-1] + 1.2 * step
    places = [*zip(levels, (c["name"] for c in cells), strict=True), (clean, "clean")]
    ticks = [*((level, f"{level:g}") for level in levels), (clean, "clean")]
    series = _series(result, measure, places)
    return line_chart(title, "SNR (dB)", measure.label, ticks, series, (levels[-1] + clean) / 2, _extent(measure))


def _extent(measure: Measure) -> tuple[float, float]:
    """One scale for all charts of a measure, so that they can be compared at a glance."""
    own = [f for (_, condition), f in measure.figures.items() if not condition.startswith("mean:")]
    return measure.scaled(min(f["low"] for f in own)), measure.scaled(max(f["high"] for f in own))


def _series(result: Result, measure: Measure, places: Sequence[tuple[float, str]]) -> list[Series]:
    series = []
    for model in measure.models:
        points = []
        for place, condition in places:
            figure = measure.get(model, condition)
            if figure:
                value, low, high = (measure.scaled(figure[key]) for key in ("value", "low", "high"))
                points.append((float(place), value, low, high))
        if points:
            series.append(Series(model, result.index(model), points))
    return series


def scatter_chart(result: Result, measure: Measure) -> str | None:
    """Clean against the average of all contaminated conditions; the marker's area grows with the model."""
    sizes = {m["name"]: int(m["num_parameters"]) for m in result.models}
    pairs = [(m, measure.get(m, "clean"), measure.get(m, "mean:contaminated")) for m in measure.models]
    dots = [(model, clean, robust) for model, clean, robust in pairs if clean and robust]
    if not dots:
        return None
    canvas = Canvas(WIDTH, HEIGHT + 30, f"clean against contaminated {measure.label}")
    bottom = HEIGHT + 30 - BOTTOM
    across = [measure.scaled(clean[k]) for _, clean, _ in dots for k in ("low", "high")]
    up = [measure.scaled(robust[k]) for _, _, robust in dots for k in ("low", "high")]
    x_levels, y_levels = nice_ticks(min(across), max(across), 5), nice_ticks(min(up), max(up), 5)
    x = _scale([x_levels[0], x_levels[-1]], LEFT + 8, WIDTH - RIGHT - 12)
    y = _scale([y_levels[0], y_levels[-1]], bottom, TOP)
    canvas.text((LEFT, 14), "clean against contaminated", css="title")
    _levels(canvas, y_levels, y)
    for level in x_levels:
        canvas.line((x(level), bottom), (x(level), bottom + 4))
        canvas.text((x(level), bottom + 16), f"{level:g}", "middle")
    low, high = max(x_levels[0], y_levels[0]), min(x_levels[-1], y_levels[-1])
    if low < high:  # the line of no loss, where both axes have it
        canvas.line((x(low), y(low)), (x(high), y(high)), style="stroke-dasharray:3 3")
        canvas.text((x(high) - 4, y(high) + 12), "no loss", "end", css="soft")
    canvas.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT + 22), f"clean {measure.label}", "middle", css="soft")
    canvas.text((11, (TOP + bottom) / 2), "mean of all contaminated", "middle", css="soft", turn=-90)
    taken: list[tuple[float, float]] = []
    for model, clean, robust in dots:
        at = (x(measure.scaled(clean["value"])), y(measure.scaled(robust["value"])))
        colour = PALETTE[result.index(model) % len(PALETTE)]
        for figure, horizontal in ((clean, True), (robust, False)):
            ends = [measure.scaled(figure[key]) for key in ("low", "high")]
            points = [(x(end), at[1]) if horizontal else (at[0], y(end)) for end in ends]
            canvas.line(points[0], points[1], css="whisker", style=f"stroke:{colour}")
        canvas.marker(at, result.index(model), 4 + 1.1 * math.sqrt(sizes.get(model, 0) / 1e6), model)
        words = f"{model}, {size_text(sizes[model])}" if sizes.get(model) else model
        _label(canvas, at, words, taken, 4 + 1.1 * math.sqrt(sizes.get(model, 0) / 1e6))
    return canvas.render()


def _label(canvas: Canvas, at: tuple[float, float], words: str, taken: list[tuple[float, float]], clear: float) -> None:
    """Write beside a marker, on the side where there is room, below or above what is already written."""
    right = at[0] + clear + 6.2 * len(words) < WIDTH - 2
    x = at[0] + clear + 4 if right else at[0] - clear - 4
    y = at[1] - 6
    while any(abs(y - other) < 12 and abs(x - ox) < 150 for ox, other in taken):
        y += 12
    taken.append((x, y))
    canvas.text((x, y), words, "start" if right else "end", css="tag")


def bar_chart(title: str, names: Sequence[str], values: Sequence[float], index: int) -> str:
    """Horizontal bars of shares that sum to one."""
    row, left = 17.0, 118.0
    canvas = Canvas(WIDTH, 26 + row * len(names) + 4, title)
    canvas.text((4, 14), title, css="title")
    longest = max(values) or 1.0
    for k, (name, value) in enumerate(zip(names, values, strict=True)):
        y = 26 + row * k
        canvas.text((left - 6, y + 11), name, "end")
        canvas.box(left, y + 2, (WIDTH - left - 46) * value / longest, row - 5, PALETTE[index % len(PALETTE)])
        canvas.text((left + (WIDTH - left - 46) * value / longest + 5, y + 11), f"{value:.2f}")
    return canvas.render()


def similarity_chart(title: str, states: Sequence[str], lines: dict[str, list[float]]) -> str:
    """Similarity of clean and contaminated features per state, a line for each kind of contamination."""
    series = [
        Series(kind, k, [(float(i), value, value, value) for i, value in enumerate(values)])
        for k, (kind, values) in enumerate(lines.items())
    ]
    short = [_short(state) for state in states]
    stride = -(-len(short) // 9)
    ticks = [(float(i), name if i % stride == 0 else "") for i, name in enumerate(short)]
    return line_chart(title, "state", "similarity", ticks, series)


def confusion_chart(title: str, classes: Sequence[str], counts: Sequence[Sequence[float]]) -> str:
    """Rows are what was said, columns what was answered; shades and numbers are per cent of the row."""
    longest = max(len(name) for name in classes)
    left = min(110.0, 12 + 6.0 * longest)
    cell = (WIDTH - left - 4) / len(classes)
    top = 22 + min(80.0, 12 + 5.2 * longest)
    canvas = Canvas(WIDTH, top + cell * len(classes) + 6, title)
    canvas.text((4, 14), title, css="title")
    small = f"font-size:{min(10.0, 0.42 * cell):.1f}px"
    for k, name in enumerate(classes):
        word = name if len(name) <= 17 else name[:16] + "…"
        canvas.text((left - 4, top + cell * (k + 0.5) + 3.5), word, "end", style="font-size:10px")
        canvas.text((left + cell * (k + 0.5) + 3, top - 5), word, turn=-60, style="font-size:10px")
    for row, line in enumerate(counts):
        total = sum(line)
        for column, count in enumerate(line):
            share = count / total if total else 0.0
            background, ink = shade(share)
            place = (left + cell * column, top + cell * row)
            canvas.box(*place, cell - 0.6, cell - 0.6, background)
            if share >= 0.005 and len(classes) <= 16:
                centre = (place[0] + cell / 2, place[1] + cell / 2 + 3)
                canvas.text(centre, f"{100 * share:.0f}", "middle", style=f"{small};fill:{ink}")
    return canvas.render()


def _levels(canvas: Canvas, levels: Sequence[float], y: Callable[[float], float]) -> None:
    """Horizontal grid lines with their values."""
    for level in levels:
        canvas.line((LEFT, y(level)), (canvas.width - RIGHT, y(level)), css="grid")
        canvas.text((LEFT - 5, y(level) + 4), f"{level:g}", "end")


def _scale(domain: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    low, high = min(domain), max(domain)
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _short(state: str) -> str:
    return state.replace("layer ", "").replace("prediction of ", "p")
