"""Laws of names: whatever files and folders are called, nothing is written elsewhere, and one sentence stays one."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import shared

from robustdistiller.acoustics.contamination import contaminate_file
from robustdistiller.apply import enhance_files, extract_features
from robustdistiller.audio import checking
from robustdistiller.audio.io import SAMPLE_RATE, write_audio
from robustdistiller.audio.manifest import read_manifest, write_manifest
from robustdistiller.audio.prepare import prepare
from robustdistiller.config import EnhancementConfig, StudentConfig, load_recipe
from robustdistiller.deployment.task_head import read_head
from robustdistiller.errors import UserError, printable
from robustdistiller.evaluation.conditions import load_conditions
from robustdistiller.evaluation.evaluated import open_models
from robustdistiller.evaluation.sources import read_source
from robustdistiller.evaluation.tasks import load_task
from robustdistiller.models.building import build_student
from robustdistiller.models.student import load_student
from robustdistiller.models.teacher import load_teacher
from robustdistiller.runtime import describe
from robustdistiller.runtime.sound import read_wave

linux = pytest.mark.skipif(sys.platform != "linux", reason="names that only Linux allows")
WAVE = shared().speech_like(0.3, 0)
ODD = [
    "two\nlines.wav",
    "..wav",
    "...wav",
    "-rf.wav",
    "a\x1b[2Jb.wav",
    "%s{0}.wav",
    "ä 語.wav",
    "x" * 250 + ".wav",
    "con:.wav",
]


@pytest.fixture(scope="module")
def student(checkpoint):
    teacher = load_teacher(str(checkpoint("hubert")), precision="fp32")
    made, _ = build_student(teacher, StudentConfig(layers=1), EnhancementConfig(hidden=8, layers=1))
    return made.eval()


def everything(folder: Path) -> set[str]:
    return {os.fsdecode(p) for p in map(os.fsencode, folder.rglob("*")) if os.path.isfile(p)}


@linux
def test_odd_names_are_read_and_written_only_under_out(student, tmp_path):
    speech = tmp_path / "speech"
    (speech / "deep" / "inner..").mkdir(parents=True)
    for name in ODD:
        write_audio(speech / name, WAVE)
    write_audio(speech / "deep" / "inner.." / "a.wav", WAVE)
    (tmp_path / "elsewhere").mkdir()
    write_audio(tmp_path / "elsewhere" / "b.wav", WAVE)
    (speech / "link").symlink_to(tmp_path / "elsewhere")
    before = everything(tmp_path)
    done = extract_features(student, [speech], tmp_path / "out" / "features")
    done += enhance_files(student, [speech], tmp_path / "out" / "enhanced")
    assert len(done) == 2 * (len(ODD) - 2 + 2) and all(
        item.target for item in done
    )  # names that begin with a dot are hidden
    new = everything(tmp_path) - before
    assert len(new) == len(done) and all(path.startswith(str(tmp_path / "out") + os.sep) for path in new)


@linux
def test_a_name_that_is_no_text_is_one_line_and_harms_nothing(student, tmp_path):
    bad = tmp_path / os.fsdecode(b"caf\xe9.wav")
    good = tmp_path / "good.wav"
    for path in (bad, good):
        write_audio(good, WAVE)
        os.replace(good, path) if path is bad else None
    done = extract_features(student, [tmp_path], tmp_path / "out")
    assert {item.source.name for item in done if item.target} >= {"good.wav"}
    prepared = prepare(str(tmp_path), "speech", workers=1)
    assert [row.reason for row in prepared.skipped] == ["name"] and len(prepared.recordings) == 1
    try:
        contaminate_file(bad, tmp_path / "heard.wav", ["white"], snr_db=5)
    except UserError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize("name", ["\0", "a" * 5000, "a\nb", "\ud800", "~nobody/x", "..", "/dev/null"])
def test_a_strange_name_is_one_sentence_wherever_it_is_given(name, student, tmp_path, monkeypatch):
    (tmp_path / "here" / "inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "inside")
    attempts = [
        lambda: load_recipe(name), lambda: load_student(name), lambda: load_teacher(name), lambda: prepare(name, "speech"),
        lambda: read_manifest(name), lambda: load_task(name), lambda: load_conditions(name),
        lambda: contaminate_file(name, tmp_path / "o.wav", ["white"]),
        lambda: extract_features(student, [name], tmp_path / "out"), lambda: read_head(name), lambda: describe(name),
        lambda: read_wave(name), lambda: open_models([name], False), lambda: read_source(name, "speech"),
    ]  # fmt: skip
    for number, attempt in enumerate(attempts):
        with pytest.raises(UserError) as caught:
            attempt()
        assert str(caught.value).isprintable(), number
    assert [p.name for p in tmp_path.rglob("*")] == ["here", "inside"]


@pytest.mark.parametrize("name", ["../outside.wav", "a/../../outside.wav", "./../outside.wav"])
def test_a_manifest_with_a_root_reads_nothing_outside_it(tmp_path, name):
    (tmp_path / "root" / "a").mkdir(parents=True)
    write_audio(tmp_path / "outside.wav", WAVE)
    (tmp_path / "m.jsonl").write_text(f'{{"path": "{name}", "duration": 0.3}}\n')
    with pytest.raises(UserError, match="leaves its root"):
        prepare(f"{tmp_path / 'm.jsonl'}::{tmp_path / 'root'}", "speech")


def test_an_output_never_replaces_its_input(student, tmp_path):
    path = tmp_path / "a.wav"
    write_audio(path, WAVE)
    content = path.read_bytes()
    for attempt in (
        lambda: enhance_files(student, [path], path),
        lambda: enhance_files(student, [path], tmp_path),
        lambda: contaminate_file(path, path, ["white"], snr_db=5),
        lambda: contaminate_file(path, tmp_path / "x" / ".." / "a.wav", ["white"], snr_db=5),
    ):
        with pytest.raises(UserError, match="would replace the input"):
            attempt()
    assert path.read_bytes() == content


def test_a_manifest_from_odd_names_is_read_back(tmp_path):
    for name in ("ä 語.wav", "two words.wav", "100%.wav"):
        write_audio(tmp_path / name, WAVE)
    prepared = prepare(str(tmp_path), "speech", workers=1)
    write_manifest(tmp_path / "m.jsonl", prepared.recordings)
    assert read_manifest(tmp_path / "m.jsonl") == prepared.recordings


def test_the_scan_does_not_depend_on_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "_IN_PROCESS", 0)
    rng = np.random.default_rng(0)
    for number in range(12):
        write_audio(tmp_path / f"{number}.wav", 0.1 * rng.standard_normal(2000 + 100 * number) * (number != 5))
    scans = [prepare(str(tmp_path), "speech", workers=workers) for workers in (1, 2, 4)]
    assert scans[0] == scans[1] == scans[2] and len(scans[0].skipped) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_scanning_process_that_dies_is_named_with_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "_IN_PROCESS", 0)
    for number in range(6):
        write_audio(tmp_path / f"{number}.wav", WAVE)
    check = checking._decoded

    def fatal(recording, *rest):
        return os._exit(9) if recording.id.startswith("4") else check(recording, *rest)

    monkeypatch.setattr(checking, "_decoded", fatal)
    with pytest.raises(UserError, match=r"process that checked the audio died .*next comes .*\.wav"):
        prepare(str(tmp_path), "speech", workers=2)


def test_what_is_printed_is_one_line():
    assert printable("plain ä 語 text") == "plain ä 語 text"
    assert printable("a\nb\x1b[2J\udcff") == "a\\nb\\x1b[2J\\udcff"
    assert str(UserError("a\nb")) == "a\\nb"


def test_a_student_of_a_stranger_keeps_its_wave_length(student):
    wave = torch.from_numpy(WAVE)[None]
    assert student.enhance(wave).shape == (1, round(0.3 * SAMPLE_RATE))
