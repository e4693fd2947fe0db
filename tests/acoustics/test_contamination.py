"""The verb `contaminate`: one file in, what is heard and what was drawn out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from acoustics_material import RATE, decibels, power, speechlike, synthetic_response

from robustdistiller.acoustics.contamination import contaminate_file
from robustdistiller.acoustics.scene import Scene
from robustdistiller.errors import AudioError, UserError


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, wave in (
        ("speech.wav", speechlike(rng, 2 * RATE)),
        ("cafe/one.wav", 0.1 * rng.standard_normal(3 * RATE)),
        ("cafe/two.wav", 0.1 * rng.standard_normal(RATE)),
        ("rirs/a.wav", 0.5 * synthetic_response(rng, 300, 0.4)),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, wave, RATE, subtype="FLOAT")
    return tmp_path


def test_a_file_is_heard_at_the_snr_asked_and_the_same_way_again(folders: Path) -> None:
    speech, out = folders / "speech.wav", folders / "heard.wav"
    scene = contaminate_file(speech, out, [str(folders / "cafe")], [str(folders / "rirs")], snr_db=5, seed=1)
    assert scene.kind == "both" and scene.snr_db == 5 and scene.t60
    assert Scene.from_dict(json.loads(out.with_suffix(".json").read_text())) == scene
    heard, _ = soundfile.read(out)
    contaminate_file(speech, folders / "wet.wav", rooms=[str(folders / "rirs")], seed=1)
    wet, _ = soundfile.read(folders / "wet.wav")
    assert decibels(power(wet) / power(heard - wet)) == pytest.approx(5, abs=0.05)
    first = out.read_bytes()
    contaminate_file(speech, out, [str(folders / "cafe")], [str(folders / "rirs")], snr_db=5, seed=1, overwrite=True)
    assert out.read_bytes() == first
    contaminate_file(speech, out, [str(folders / "cafe")], [str(folders / "rirs")], snr_db=5, seed=2, overwrite=True)
    assert out.read_bytes() != first


def test_made_noise_and_simulated_rooms_need_no_files(folders: Path) -> None:
    scene = contaminate_file(folders / "speech.wav", folders / "out.flac", ["pink"], ["simulated"])
    assert scene.noises[0].kind == "pink" and scene.room.startswith("simulated") and 0 <= scene.snr_db <= 20
    scene = contaminate_file(
        folders / "speech.wav", folders / "out.flac", ["white", str(folders / "cafe")], snr_db=0, overwrite=True
    )
    assert [noise.kind for noise in scene.noises] == ["white", "recorded"] and scene.room is None


def test_synthetic_noise_takes_no_share_of_recordings(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = contaminate_file(folders / "speech.wav", folders / "out.wav", ["rain", "music"], snr_db=0)
    assert [noise.kind for noise in scene.noises] == ["rain", "music"] and "share" not in caplog.text


def test_recorded_and_simulated_rooms_are_both_drawn(folders: Path) -> None:
    rooms = [
        contaminate_file(
            folders / "speech.wav",
            folders / "o.wav",
            (),
            [str(folders / "rirs"), "simulated"],
            seed=seed,
            overwrite=True,
        ).room
        for seed in range(12)
    ]
    assert {str(room).startswith("simulated") for room in rooms} == {True, False}


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems have names of text only")
def test_names_that_are_no_text_are_taken(folders: Path) -> None:
    strange = folders / os.fsdecode(b"sp\xff ech\n.wav")
    (folders / "speech.wav").rename(strange)
    scene = contaminate_file(strange, folders / "out.wav", ["white"], snr_db=0)
    assert Scene.from_dict(json.loads((folders / "out.json").read_text(encoding="utf-8"))) == scene
    (folders / "cafe" / "one.wav").rename(folders / "cafe" / os.fsdecode(b"on\xe9.wav"))
    scene = contaminate_file(strange, folders / "more.wav", [str(folders / "cafe")], snr_db=0)
    assert scene.noises[0].source == "two"


def test_mistakes_are_named_before_anything_is_written(folders: Path) -> None:
    speech, out = folders / "speech.wav", folders / "none.wav"
    long = folders / "long.wav"
    with soundfile.SoundFile(long, "w", 8000, 1, "PCM_U8") as file:
        file.write(np.zeros(8000 * 3601, np.int16))
    for arguments, word in (
        (dict(speech=speech), "--noise, --rooms"),
        (dict(speech=speech, rooms=["simulated"], snr_db=3), "--noise"),
        (dict(speech=long, noise=["white"]), "hour"),
        (dict(speech=speech, noise=["babble"]), "Babble is mixed"),
        (dict(speech=speech, noise=["rian"]), "Did you mean 'rain'?"),
        (dict(speech=speech, rooms=["simulatd"]), "Did you mean 'simulated'?"),
        (dict(speech=folders / "missing.wav", noise=["white"]), "missing"),
        (dict(speech=speech, noise=[str(folders / "nowhere")]), "nowhere"),
    ):
        with pytest.raises(UserError, match=word):
            contaminate_file(out=out, **arguments)
    (folders / "empty.wav").write_bytes(b"")
    with pytest.raises(AudioError):
        contaminate_file(folders / "empty.wav", out, ["white"])
    assert not out.exists()
