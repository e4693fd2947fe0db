"""One self-contained HTML page for people: no network, no script, readable on a phone and by the colour-blind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from ..files import write_text
from . import charts
from .clips import players
from .reading import Figure, Measure, Result, read_result, size_text, unique
from .svg import DASHES, PALETTE, marker, shade

KINDS = {"clean": "Clean", "noise": "Noise", "reverb": "Reverberation", "both": "Noise in rooms"}


def write_page(folder: str | Path, out: str | Path | None = None, sections: Sequence[str] = (), lead: str = "") -> Path:
    """Write the page of the benchmark in `folder`, by default as its `report.html`.

    sections: further HTML after the tasks; lead: a sentence of plain text at the top
    """
    result = read_result(folder)
    path = Path(out) if out else result.folder / "report.html"
    write_text(path, render_page(result, sections, lead))
    return path


def render_page(result: Result, sections: Sequence[str] = (), lead: str = "") -> str:
    """The whole page."""
    style = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    body = [_head(result, lead), *(_task(result, task) for task in result.tasks), *sections, _method(result)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Robustness benchmark</title><style>{style}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


# The top of the page


def _head(result: Result, lead: str) -> str:
    tasks, models, conditions = result.tasks, result.models, result.conditions
    loud = [note for note in result.values["notes"] if note.startswith("OVERLAP")]
    links = "".join(f'<a href="#{_anchor(t["name"])}">{escape(t["title"])}</a>' for t in tasks)
    parts = [
        "<h1>Robustness benchmark</h1>",
        f"<p><b>{escape(lead)}</b></p>" if lead else "",
        f'<p class="soft">{_count(models, "model")} on {_count(tasks, "task")} under {_count(conditions, "condition")} '
        f"({escape(result.values['conditions_name'])}). Frozen encoders, small heads trained on "
        f"{escape(result.values['settings']['train_on'])} speech.</p>",
        f'<nav>{links}<a href="#method">How it was measured</a></nav>',
    ]
    if loud:
        items = "".join(f"<li>{escape(note)}</li>" for note in loud)
        parts.append(f'<div class="warn"><b>Not a fair test.</b><ul>{items}</ul></div>')
    parts.append(_overview(result))
    return "\n".join(parts)


def _overview(result: Result) -> str:
    """Every task in two numbers per model: clean, and the mean of all contaminated conditions."""
    labelled = [(task, measures[0]) for task in result.tasks if (measures := result.measures(task))]
    if not labelled:
        return ""
    top = "".join(
        f'<th colspan="2">{escape(t["title"])}<br><small class="soft">{escape(m.label)}</small></th>'
        for t, m in labelled
    )
    below = "".join("<th>clean</th><th>contaminated</th>" for _ in labelled)
    rows = []
    names = unique(model for _, measure in labelled for model in measure.models)
    for name in names:
        cells = []
        for _, measure in labelled:
            for condition in ("clean", "mean:contaminated"):
                cells.append(_cell(measure, name, condition))
        rows.append(f"<tr><th>{_tag(result, name)}</th>{''.join(cells)}</tr>")
    return (
        f'<h3>At a glance</h3><div class="scroll"><table><thead><tr><th></th>{top}</tr><tr><th></th>{below}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="soft small">Small figures are 95 % intervals over test speakers and head seeds. The best of a column is '
        "underlined, which does not say that it is significantly better.</p>" + "".join(_sentences(labelled))
    )


def _sentences(labelled: Sequence[tuple[dict[str, Any], Measure]]) -> list[str]:
    """What the averages say against the reference, in words."""
    found = []
    for task, measure in labelled:
        lines = []
        for model in measure.models:
            figure = measure.get(model, "mean:contaminated")
            if not figure or "against" not in figure:
                continue
            word = (
                ("better" if measure.better(figure) else "worse") if figure["significant"] else "not clearly different"
            )
            low, high = (measure.scaled(figure[f"difference_{k}"]) for k in ("low", "high"))
            decimals = measure.about["decimals"]
            lines.append(
                f"<li><b>{escape(model)}</b> is {word}: {measure.gain(figure)} [{low:+.{decimals}f}, {high:+.{decimals}f}]"
                f"{_reduction(figure)}</li>"
            )
        if lines:
            against = next(f["against"] for f in measure.figures.values() if "against" in f)
            found.append(
                f"<p>{escape(task['title'])}, mean of all contaminated conditions, against <b>{escape(against)}</b> "
                f"({escape(measure.label)}):</p><ul>{''.join(lines)}</ul>"
            )
    return found


def _reduction(figure: Figure) -> str:
    value = figure.get("error_reduction_value")
    if value is None:
        return ""
    low, high = figure["error_reduction_low"], figure["error_reduction_high"]
    word, (value, low, high) = ("fewer", (value, low, high)) if value >= 0 else ("more", (-value, -high, -low))
    return f", {100 * value:.0f} % {word} errors [{100 * low:.0f}, {100 * high:.0f}]"


# One task


def _task(result: Result, task: dict[str, Any]) -> str:
    counts = task["utterances"]
    parts = [
        f'<h2 id="{_anchor(task["name"])}">{escape(task["title"])}</h2>',
        f'<p class="soft">{counts["test"]} test utterances of {_count_of(task["speakers"], "known speaker")}'
        + (f"; heads trained on {counts['train']}, chosen on {counts['valid']}." if counts["train"] else ".")
        + "</p>",
    ]
    notes = [n for n in result.values["notes"] if n.startswith(f"{task['name']}:")]
    if notes:
        items = "".join(f"<li>{escape(note.partition(': ')[2])}</li>" for note in notes)
        parts.append(f'<div class="note small"><ul>{items}</ul></div>')
    for number, measure in enumerate(result.measures(task)):
        parts.append(_measure(result, measure, full=number == 0))
    parts += [_weights(result, task), _similarity(result, task), _confusions(result, task), players(result, task)]
    return "\n".join(part for part in parts if part)


def _measure(result: Result, measure: Measure, full: bool) -> str:
    better = "higher is better" if measure.higher_is_better else "lower is better"
    lines = [
        *charts.snr_charts(result, measure),
        *charts.t60_charts(result, measure),
        *charts.both_charts(result, measure),
    ]
    scatter = charts.scatter_chart(result, measure)
    drawn = "".join(f"<div>{svg}</div>" for svg in [*lines, *([scatter] if scatter else [])])
    averages = _averages(result, measure)
    heat = f"<h3>{escape(measure.label)} under every condition</h3>{_heat(result, measure)}"
    body = f'{_legend(result, measure)}<div class="charts">{drawn}</div>{averages}{heat}'
    title = f'{escape(measure.label)} <span class="soft">({better})</span>'
    if full:
        return f"<h3>{title}</h3>{body}"
    return f"<details><summary>{title}</summary>{body}</details>"


def _legend(result: Result, measure: Measure) -> str:
    entries = []
    for model in measure.models:
        index = result.index(model)
        dash = DASHES[index % len(DASHES)]
        line = (
            f'<line x1="0" y1="7" x2="34" y2="7" stroke="{PALETTE[index % len(PALETTE)]}" stroke-width="2"'
            + (f' stroke-dasharray="{dash}"' if dash else "")
            + "/>"
        )
        entries.append(
            f'<span><svg viewBox="0 0 34 14" aria-hidden="true">{line}{marker((17, 7), index, 4.5)}</svg>{escape(model)}</span>'
        )
    return f'<div class="legend small">{"".join(entries)}</div>'


def _averages(result: Result, measure: Measure) -> str:
    """Models by averages, with the difference to the reference."""
    names = [name for name in result.averages if any(measure.get(m, f"mean:{name}") for m in measure.models)]
    if not names:
        return ""
    head = "".join(f"<th>{escape(result.average_title(name))}</th>" for name in names)
    rows = []
    for model in measure.models:
        cells = _cell(measure, model, "clean", True) + "".join(_cell(measure, model, f"mean:{n}", True) for n in names)
        rows.append(f"<tr><th>{_tag(result, model)}</th>{cells}</tr>")
    against = next((f["against"] for f in measure.figures.values() if "against" in f), None)
    said = (
        f"Third lines: difference to {escape(against)}; ● significant (p below 0.05 after Holm's correction over the table), "
        "○ not. "
        if against
        else ""
    )
    return (
        f'<h3>Averages</h3><div class="scroll"><table><thead><tr><th></th><th>clean</th>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><p class="soft small">{said}Second lines: 95 % intervals.</p>'
    )


def _cell(measure: Measure, model: str, condition: str, compare: bool = False) -> str:
    figure = measure.get(model, condition)
    if figure is None:
        return "<td>–</td>"
    best = ' class="best"' if model in measure.best(condition) and len(measure.models) > 1 else ""
    range_ = f"<small>{measure.number(figure['low'])} … {measure.number(figure['high'])}</small>"
    third = ""
    if compare and "against" in figure:
        side = "up" if measure.better(figure) else "down"
        third = (
            f'<small><span class="{side}">{measure.gain(figure)}</span> {"●" if figure["significant"] else "○"}</small>'
        )
    return f"<td{best}><b>{measure.number(figure['value'])}</b>{range_}{third}</td>"


def _heat(result: Result, measure: Measure) -> str:
    """Conditions × models; the darker, the better."""
    values = [f["value"] for (_, condition), f in measure.figures.items() if not condition.startswith("mean:")]
    low, high = min(values), max(values)
    head = "".join(f"<th>{escape(model)}</th>" for model in measure.models)
    rows = []
    for kind, title in KINDS.items():
        cells = result.of_kind(kind)
        if cells and kind != "clean":
            rows.append(f'<tr class="group"><th colspan="{len(measure.models) + 1}">{title}</th></tr>')
        for condition in cells:
            mark = f' <span class="soft">({condition["seen"]})</span>' if condition["seen"] else ""
            line = ""
            for model in measure.models:
                figure = measure.get(model, condition["name"])
                if figure is None:
                    line += "<td>–</td>"
                    continue
                share = (figure["value"] - low) / (high - low) if high > low else 1.0
                background, ink = shade(0.05 + 0.9 * (share if measure.higher_is_better else 1 - share))
                hover = escape(f"{model}, {condition['title']}: {measure.interval(figure)}")
                style = f"background:{background};color:{ink}"
                line += f'<td style="{style}" title="{hover}">{measure.number(figure["value"])}</td>'
            rows.append(f"<tr><th>{escape(condition['title'])}{mark}</th>{line}</tr>")
    return (
        f'<div class="scroll"><table class="heat"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="soft small">Darker is better. Intervals of every cell are in results.csv.</p>'
    )


def _weights(result: Result, task: dict[str, Any]) -> str:
    """Which states the heads listen to."""
    drawn = [
        charts.bar_chart(head["model"], head["states"], head["weights"], result.index(head["model"]))
        for head in task["heads"]
        if len(head["states"]) > 1
    ]
    if not drawn:
        return ""
    grid = "".join(f"<div>{svg}</div>" for svg in drawn)
    return (
        "<details><summary>Which layers the heads listen to</summary>"
        '<p class="soft small">Weights of the learned sum over states (first head seed); they sum to 1. States are '
        f'standardised on the training utterances before.</p><div class="charts">{grid}</div></details>'
    )


def _similarity(result: Result, task: dict[str, Any]) -> str:
    """The label-free score: how like the clean features the contaminated ones are."""
    rows = task.get("similarity") or []
    if not rows:
        return ""
    kinds = {c["name"]: c["kind"] for c in result.conditions}
    states = {m["name"]: m["states"] for m in result.models}
    drawn, lines = [], []
    for model in unique(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        by_kind = {
            KINDS[kind].lower(): _mean([row["cosine"] for row in own if kinds[row["condition"]] == kind])
            for kind in ("noise", "reverb", "both")
            if any(kinds[row["condition"]] == kind for row in own)
        }
        cosine, cka = _mean([row["cosine"] for row in own]), _mean([row["cka"] for row in own])
        lines.append(
            f"<tr><th>{_tag(result, model)}</th><td>{sum(cosine) / len(cosine):.3f}</td><td>{cosine[-1]:.3f}</td>"
            f"<td>{sum(cka) / len(cka):.3f}</td><td>{cka[-1]:.3f}</td></tr>"
        )
        if len(states[model]) > 1:
            drawn.append(charts.similarity_chart(f"{model}: cosine per state", states[model], by_kind))
    key = "".join(
        f'<span><svg viewBox="0 0 34 14"><line x1="0" y1="7" x2="34" y2="7" stroke="{PALETTE[k]}" stroke-width="2"/>'
        f"{marker((17, 7), k, 4.5)}</svg>{name.lower()}</span>"
        for k, name in enumerate(KINDS[kind] for kind in ("noise", "reverb", "both") if kind in kinds.values())
    )
    grid = "".join(f"<div>{svg}</div>" for svg in drawn)
    return (
        "<details><summary>Without labels: how much of the features survives</summary>"
        '<p class="soft small">Similarity of the features of clean and contaminated speech, 1 being untouched: cosine of '
        "frames around the model's mean clean frame, and linear CKA, which forgives what a linear head could undo. High is "
        "only good together with accuracy: a constant feature would be perfectly robust.</p>"
        '<div class="scroll"><table><thead><tr><th></th><th>cosine,<br>all states</th><th>cosine,<br>last state</th>'
        f"<th>CKA,<br>all states</th><th>CKA,<br>last state</th></tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        + (f'<div class="legend small">{key}</div><div class="charts">{grid}</div>' if drawn else "")
        + "</details>"
    )


def _confusions(result: Result, task: dict[str, Any]) -> str:
    classes = dict(zip(task["slots"], task["classes"], strict=False))
    blocks = []
    for model in unique(entry["model"] for entry in task["confusion"]):
        drawn = []
        for entry in task["confusion"]:
            if entry["model"] == model:
                which = f"{entry['slot']}, {entry['condition']}" if len(task["slots"]) > 1 else entry["condition"]
                drawn.append(f"<div>{charts.confusion_chart(which, classes[entry['slot']], entry['counts'])}</div>")
        blocks.append(
            f'<details><summary>{_tag(result, model)}</summary><div class="charts">{"".join(drawn)}</div></details>'
        )
    if not blocks:
        return ""
    return (
        "<details><summary>What is taken for what</summary>"
        '<p class="soft small">Rows: the right answer; columns: what the heads answered, in per cent of the row. '
        f"“Contaminated” is all contaminated conditions together.</p>{''.join(blocks)}</details>"
    )


# The bottom of the page


def _method(result: Result) -> str:
    settings = result.values["settings"]
    models = "".join(
        f'<tr><th>{_tag(result, m["name"])}</th><td class="words">{escape(m["kind"])}</td>'
        f"<td>{size_text(m['num_parameters'])}</td>"
        f'<td class="words">{escape(_state_list(m["states"]))}</td><td class="words"><code>{m["digest"]}</code></td></tr>'
        for m in result.models
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in result.values["notes"])
    heads = settings["heads"]
    return (
        '<h2 id="method">How it was measured</h2>'
        '<h3>Models</h3><div class="scroll"><table><thead><tr><th></th><th>kind</th><th>parameters</th>'
        f"<th>states shown to the heads</th><th>weights</th></tr></thead><tbody>{models}</tbody></table></div>"
        "<h3>Protocol</h3>"
        f"<p>The encoder is frozen. A head sees a learned, softmax-weighted sum of its states, averages it over the "
        "utterance, projects it to 256 dimensions and answers linearly. "
        f"Heads are trained on {escape(settings['train_on'])} speech with AdamW; learning rate "
        f"({', '.join(f'{rate:g}' for rate in heads['learning_rates'])}) and weight decay "
        f"({', '.join(f'{rate:g}' for rate in heads['weight_decays'])}) are chosen on the validation part. "
        f"{settings['seeds']} heads with different seeds are averaged.</p>"
        f"<p>Conditions are drawn once from the seed and the utterance, so every model hears the same samples. The SNR refers "
        "to the speech as it arrives, over the whole utterance; T60 is measured on the room response. “Unseen” noise and "
        "rooms were not part of the students' training, as far as their folders tell.</p>"
        f"<p>Intervals: {settings['replicates']} bootstrap replicates that draw test speakers, with all that they say and for "
        "all models alike, and head seeds. Significance: two-sided, corrected for the number of comparisons (Holm).</p>"
        f"<h3>Remarks</h3><ul>{notes or '<li>None.</li>'}</ul>"
        f'<p class="soft small">Made by RobustDistiller {escape(result.values["version"])}.</p>'
    )


def _state_list(states: Sequence[str]) -> str:
    return f"{len(states)}: {states[0]}, {states[1]} … {states[-1]}" if len(states) > 4 else ", ".join(states)


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def _tag(result: Result, model: str) -> str:
    drawn = marker((7, 7), result.index(model), 4.5)
    return f'<svg viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">{drawn}</svg> {escape(model)}'


def _anchor(name: str) -> str:
    return "task-" + "".join(c if c.isalnum() else "-" for c in name)


def _count(items: Iterable[Any], word: str) -> str:
    return _count_of(len(list(items)), word)


def _count_of(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
