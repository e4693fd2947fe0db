"""A tiny run to be disturbed: eight recordings of four speakers, a teacher of three layers, eight steps."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from robustdistiller.audio.io import write_audio
from robustdistiller.config import Recipe, load_recipe

FIELDS = [
    "student.feature_grad_mult=1.0", "student.layers=1", "data.crop_seconds=0.6", "data.batch_seconds=1.2",
    "data.valid_seconds=2", "data.min_seconds=0.05", "data.workers=0", "data.valid_fraction=0.25",
    "environment.simulated_rooms=2", "objectives.enhancement.hidden=8", "objectives.enhancement.layers=1",
    "training.learning_rate=1e-3", "training.precision=fp32", "training.log_every=1", "training.valid_every=100",
    "training.save_every=2", "training.steps=8",
]  # fmt: skip


def shared() -> Any:
    """The module tests/conftest.py, by its path: several folders have a module of that name."""
    spec = importlib.util.spec_from_file_location("shared_conftest", Path(__file__).parents[1] / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_speech(folder: Path) -> Path:
    """Eight recordings of four speakers as a manifest; number 3 holds clicks, by which tests know it."""
    rows = []
    for number in range(8):
        wave = shared().speech_like(0.6, number).clip(-0.8, 0.8)
        if number == 3:
            wave[::2000] = 0.95
        write_audio(folder / f"{number}.wav", wave)
        split = "valid" if number > 5 else "train"
        rows.append({"path": f"{number}.wav", "duration": 0.6, "speaker": f"s{number // 2}", "split": split})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "manifest.jsonl"


def make_recipe(teacher: Path, speech: Path, *overrides: str) -> Recipe:
    """The recipe of the tiny run."""
    return load_recipe(None, [*FIELDS, *overrides], teacher__model=str(teacher), data__speech=[str(speech)])
