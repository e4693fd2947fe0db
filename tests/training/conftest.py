"""What the tests of training share: a little speech."""

from __future__ import annotations

import json

import pytest

from robustdistiller.audio.io import write_audio


@pytest.fixture(scope="session")
def record(voice):
    """record(folder, seconds, takes) → a manifest of recordings of so many seconds, `takes` of them by each speaker."""

    def make(folder, seconds, takes):
        rows = []
        for number, length in enumerate(seconds):
            write_audio(folder / f"{number}.wav", voice(length, number))
            rows.append({"path": f"{number}.wav", "duration": length, "speaker": f"s{number // takes}"})
        (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder / "manifest.jsonl"

    return make


@pytest.fixture(scope="module")
def speech(tmp_path_factory, record):
    """Eight recordings of four speakers as a manifest."""
    return record(tmp_path_factory.mktemp("speech"), [1.0 + 0.2 * number for number in range(8)], 2)
