"""Players for the page: a few short utterances under every condition, embedded as compressed audio."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

from ..audio.io import SAMPLE_RATE, read_audio
from .reading import Result

SECONDS = 6.0  # of an utterance, at most
MOST = 24  # conditions per task in the page; the folder `audio` has them all


def players(result: Result, task: dict[str, Any]) -> str:
    """A table of players for the first utterance that was written out, or nothing."""
    clips = [clip for clip in task.get("audio") or [] if (result.folder / clip["file"]).is_file()]
    if not clips:
        return ""
    first = [clip for clip in clips if clip["utterance"] == clips[0]["utterance"]]
    stride = -(-len(first) // MOST)
    titles = {c["name"]: c["title"] for c in result.conditions}
    rows = "".join(
        f"<tr><th>{escape(titles.get(clip['condition'], clip['condition']))}</th>"
        f'<td class="words"><audio controls preload="none" src="{_embedded(result.folder / clip["file"])}"></audio></td></tr>'
        for clip in first[::stride]
    )
    answer = f", “{escape(first[0]['answer'])}”" if first[0].get("answer") else ""
    return (
        f'<details><summary>Hear the conditions</summary><p class="soft small">One test utterance{answer}.</p>'
        f"<table><tbody>{rows}</tbody></table></details>"
    )


def _embedded(path: Path) -> str:
    """A data address with MP3, which every browser plays, or WAV where libsndfile cannot write MP3."""
    import soundfile

    wave = read_audio(path, 0.0, SECONDS)
    stream = io.BytesIO()
    kind = "mpeg" if "MP3" in soundfile.available_formats() else "wav"
    if kind == "mpeg":
        soundfile.write(stream, wave, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III")
    else:
        soundfile.write(stream, wave, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return f"data:audio/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
