"""One self-contained HTML page for people (page.html): no network, no script, readable on a phone and by the colour-blind."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from ..audio.io import SAMPLE_RATE, read_audio
from ..files import write_text
from . import charts
from .reading import BenchmarkResult, read_result, size_text, unique

SECONDS = 6.0  # of an utterance that the page plays, at most
MOST = 24  # conditions per task that it plays; the folder `audio` has them all


def write_page(folder: str | Path, out: str | Path | None = None, sections: Sequence[str] = (), lead: str = "") -> Path:
    """Write the page of the benchmark in `folder`, by default as its `report.html`.

    Args:
        folder: What `evaluate` wrote.
        out: Another place for the page.
        sections: Further HTML after the tasks.
        lead: A sentence of plain text at the top.
    """
    result = read_result(folder)
    path = Path(out) if out else result.folder / "report.html"
    write_text(path, render_page(result, sections, lead))
    return path


def render_page(result: BenchmarkResult, sections: Sequence[str] = (), lead: str = "") -> str:
    tasks = [_task(result, task) for task in result.tasks]
    overview = [(task, task["measures"][0]) for task in tasks if task["measures"]]
    return render_template(
        __package__, "page.html", result=result, settings=result.values["settings"],
        style=resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8"), charts=charts, tasks=tasks,
        overview=overview, overview_models=unique(model for _, measure in overview for model in measure.models),
        loud=[note for note in result.values["notes"] if note.startswith("OVERLAP")], kinds=charts.KINDS,
        size=size_text, states=_states, sections=sections, lead=lead,
    )  # fmt: skip


def render_template(package: str, name: str, **values: Any) -> str:
    """The template `name` beside a package's modules, filled; texts are escaped, a missing value is an error."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(resources.files(package).joinpath(name).read_text(encoding="utf-8")).render(values)


def _task(result: BenchmarkResult, task: dict[str, Any]) -> dict[str, Any]:
    """A task as the page shows it."""
    own = [note for note in result.values["notes"] if note.startswith(f"{task['name']}: ")]
    return {
        "similarity": [], "detection": [], "folds": 1, **task,
        "anchor": "task-" + "".join(c if c.isalnum() else "-" for c in task["name"]),
        "notes": [note.partition(": ")[2] for note in own], "measures": result.measures(task),
        "classes": dict(zip(task["slots"], task["classes"], strict=False)), "clips": _clips(result, task),
    }  # fmt: skip


def _states(names: Sequence[str]) -> str:
    return f"{len(names)}: {names[0]}, {names[1]} … {names[-1]}" if len(names) > 4 else ", ".join(names)


def _clips(result: BenchmarkResult, task: dict[str, Any]) -> list[dict[str, str]]:
    """The first utterance that was written out, under (some of) the conditions, embedded as compressed audio."""
    clips = [clip for clip in task.get("audio") or [] if (result.folder / clip["file"]).is_file()]
    first = [clip for clip in clips if clip["utterance"] == clips[0]["utterance"]]
    titles = {c["name"]: c["title"] for c in result.conditions}
    return [
        {"title": titles.get(clip["condition"], clip["condition"]), "answer": clip.get("answer") or "",
         "address": embedded_audio(read_audio(result.folder / clip["file"], 0.0, SECONDS))}
        for clip in first[:: -(-len(first) // MOST) or 1]
    ]  # fmt: skip


def embedded_audio(wave: NDArray[np.float32]) -> str:
    """A data address with MP3, which every browser plays, or WAV where libsndfile cannot write MP3."""
    import soundfile

    stream = io.BytesIO()
    mp3 = "MP3" in soundfile.available_formats()
    kind = {"format": "MP3", "subtype": "MPEG_LAYER_III"} if mp3 else {"format": "WAV", "subtype": "PCM_16"}
    soundfile.write(stream, wave, SAMPLE_RATE, **kind)
    return f"data:audio/{'mpeg' if mp3 else 'wav'};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
