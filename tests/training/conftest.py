"""What the tests of training share: a little speech."""

from __future__ import annotations

import json

import pytest

from robustdistiller.audio.io import write_audio


@pytest.fixture(scope="module")
def speech(tmp_path_factory, voice):
    """Eight recordings of four speakers as a manifest."""
    folder = tmp_path_factory.mktemp("speech")
    rows = []
    for number in range(8):
        seconds = 1.0 + 0.2 * number
        write_audio(folder / f"{number}.wav", voice(seconds, number))
        rows.append({"path": f"{number}.wav", "duration": seconds, "speaker": f"s{number // 2}"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "manifest.jsonl"
