"""Small synthetic recordings for the acoustics tests: speech-like bursts, noises, room responses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from acoustics_material import RATE, Make, speechlike, synthetic_response

from robustdistiller.acoustics.environment import Environment
from robustdistiller.acoustics.noise import NoiseBank
from robustdistiller.acoustics.rooms import RoomBank
from robustdistiller.audio.manifest import Recording
from robustdistiller.config import EnvironmentConfig


@pytest.fixture(scope="session")
def make_recording(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """(name, wave, rate=16000, **fields) -> a float WAV on disk and its Recording."""
    folder = tmp_path_factory.mktemp("recordings")

    def make(name: str, wave: np.ndarray, rate: int = RATE, **fields: Any) -> Recording:
        path = Path(folder, f"{name.replace('/', '-')}-{len(list(folder.iterdir()))}.wav")
        soundfile.write(path, wave, rate, subtype="FLOAT")
        return Recording(id=name, path=str(path), seconds=len(wave) / rate, **fields)

    return make


@pytest.fixture(scope="session")
def noises(make_recording: Make) -> list[Recording]:
    rng = np.random.default_rng(1)
    return [
        make_recording("hum", np.sin(np.arange(3 * RATE) * 0.05) * 0.1, label="machine"),
        make_recording("rain", 0.02 * rng.standard_normal(5 * RATE), label="weather"),
        make_recording("drip", 0.3 * rng.standard_normal(RATE // 4), label="weather"),
        make_recording("fan", 0.1 * rng.standard_normal(2 * 44_100), rate=44_100, label="machine"),
    ]


@pytest.fixture(scope="session")
def talk(make_recording: Make) -> list[Recording]:
    rng = np.random.default_rng(2)
    return [
        make_recording(f"{speaker}/{k}", speechlike(rng, int(RATE * rng.uniform(0.6, 1.6))), speaker=speaker)
        for speaker in ("ann", "bob", "cyd", "dan", "eve")
        for k in range(3)
    ]


@pytest.fixture(scope="session")
def responses(make_recording: Make) -> list[Recording]:
    rng = np.random.default_rng(3)
    return [
        make_recording(f"{room}-{place}", synthetic_response(rng, delay, t60, sign), group=room)
        for room, t60 in (("hall", 0.7), ("den", 0.25))
        for place, delay, sign in ((0, 90, 1.0), (1, 400, -1.0), (2, 3, 1.0))
    ]


@pytest.fixture(scope="session")
def environment(noises: list[Recording], talk: list[Recording], responses: list[Recording]) -> Environment:
    """Recorded and simulated rooms, two noises at most, all kinds of noise."""
    config = EnvironmentConfig(
        noise_kinds={"recorded": 1, "white": 1, "pink": 1, "brown": 1, "babble": 1},
        noises=(1, 2),
        simulated_share=0.3,
        simulated_rooms=4,
    )
    return Environment.build(config, noises, responses, talk, seed=5)


@pytest.fixture(scope="session")
def plain(noises: list[Recording], talk: list[Recording], responses: list[Recording]) -> Environment:
    """Banks for fixed scenes."""
    return Environment(EnvironmentConfig(), NoiseBank(noises, speech=talk), RoomBank(responses))
