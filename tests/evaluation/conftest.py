"""A keyword task small enough for a test: three "words" of two tones each, said by speakers of different pitch."""

from __future__ import annotations

import numpy as np
import pytest

from robustdistiller.audio.io import write_audio
from robustdistiller.audio.manifest import Recording, write_manifest
from robustdistiller.evaluation.tasks import TaskConfig, build_task

WORDS = {"low": (300.0, 420.0), "middle": (900.0, 1200.0), "high": (2200.0, 2900.0)}


def say(word: str, speaker: int, take: int) -> np.ndarray:
    """One utterance (T,) of 0.5 to 0.7 s."""
    rng = np.random.default_rng([speaker, take, *word.encode()])
    time = np.arange(int(16_000 * rng.uniform(0.5, 0.7))) / 16_000
    first, second = (hertz * (1 + 0.02 * speaker) * rng.uniform(0.97, 1.03) for hertz in WORDS[word])
    half = time < time[-1] / 2
    tone = np.sin(2 * np.pi * np.where(half, first, second) * time) * np.sin(np.pi * time / time[-1])
    return (0.1 * tone + 0.02 * rng.standard_normal(len(time))).astype(np.float32)


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """A folder with the manifest of 12 speakers: 8 train, 2 valid, 2 test."""
    folder = tmp_path_factory.mktemp("words")
    recordings = []
    for speaker in range(12):
        split = "train" if speaker < 8 else "valid" if speaker < 10 else "test"
        for word in WORDS:
            for take in range(3):
                wave = say(word, speaker, take)
                name = f"s{speaker:02d}-{word}-{take}"
                write_audio(folder / f"{name}.wav", wave)
                slots = {"word": word, "manner": "early" if take == 0 else "late"}
                recordings.append(
                    Recording(
                        name, str(folder / f"{name}.wav"), len(wave) / 16_000, speaker=f"s{speaker:02d}", label=word,
                        split=split, extra={"slots": slots, "text": f"{word[:3]} {word[-2:]}", "level": {"deep": word}},
                    )
                )  # fmt: skip
    write_manifest(folder / "manifest.jsonl", recordings)
    return folder


@pytest.fixture(scope="session")
def noises(tmp_path_factory):
    """A folder with two noise recordings per split, of two classes."""
    folder = tmp_path_factory.mktemp("noises")
    recordings = []
    for k, (split, label) in enumerate((s, c) for s in ("train", "valid", "test") for c in ("rumble", "hiss")):
        rng = np.random.default_rng(k)
        wave = np.cumsum(rng.standard_normal(32_000)) if label == "rumble" else rng.standard_normal(32_000)
        wave = (0.1 * wave / np.abs(wave).max()).astype(np.float32)
        write_audio(folder / f"n{k}.wav", wave)
        recordings.append(
            Recording(f"n{k}", str(folder / f"n{k}.wav"), 2.0, label=label, split=split, group=f"take{k}")
        )
    write_manifest(folder / "noise.jsonl", recordings)
    return folder / "noise.jsonl"


@pytest.fixture
def keywords(words):
    """The task of telling the three words apart."""
    return build_task(TaskConfig(name="words", kind="classification", source=str(words / "manifest.jsonl")))
