"""The laws of preparation: what is not sound is left out with its reason, and a scan is made once."""

import gzip
import json
import logging
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import warnings

import numpy as np
import pytest
import soundfile

from robustdistiller.audio import prepare as module
from robustdistiller.audio.checking import check_all, write_skipped
from robustdistiller.audio.io import read_audio, write_audio
from robustdistiller.audio.manifest import Recording, read_manifest, write_manifest
from robustdistiller.audio.prepare import prepare, prepare_all
from robustdistiller.errors import UserError


def noise(seconds: float, rate: int = 16000, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))).astype(np.float32)


def folder_of(path, *names: str, seconds: float = 0.3):
    for seed, name in enumerate(names):
        write_audio(path / name, noise(seconds, seed=seed))
    return path


@pytest.fixture
def mixed(tmp_path):
    """A folder with one file of every kind of fault."""
    folder = folder_of(tmp_path / "mixed", "good.wav", "sub/good.flac")
    write_audio(folder / "long.flac", noise(2))
    raw = (folder / "long.flac").read_bytes()
    (folder / "cut.flac").write_bytes(raw[: len(raw) // 2])
    (folder / "zero.wav").write_bytes(b"")
    soundfile.write(folder / "none.wav", np.zeros(0), 16000)
    (folder / "text.wav").write_text("this is no audio")
    write_audio(folder / "one.wav", np.ones(1))
    write_audio(folder / "silent.wav", np.zeros(16000))
    soundfile.write(folder / "offset.wav", np.full(16000, 0.25), 16000)
    bad = noise(30)
    bad[-1] = np.nan  # found only by whoever decodes to the end
    soundfile.write(folder / "nan.wav", bad, 16000, "FLOAT")
    soundfile.write(folder / "stereo.wav", np.stack([noise(1, 44100), noise(1, 44100, 1)], axis=1), 44100)
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_unsound_files_are_left_out_with_their_reason(mixed, tmp_path, monkeypatch, workers):
    monkeypatch.setattr("robustdistiller.audio.checking._IN_PROCESS", 0)
    seen = []
    found = prepare(mixed, "speech", workers=workers, progress=lambda done, total: seen.append((done, total)))
    assert {recording.id for recording in found.recordings} == {"good", "sub/good", "long", "stereo"}
    assert {os.path.basename(row.path): row.reason for row in found.skipped} == {
        "cut.flac": "corrupt", "zero.wav": "empty", "none.wav": "empty", "text.wav": "corrupt", "one.wav": "too-short",
        "silent.wav": "silent", "offset.wav": "silent", "nan.wav": "nan",
    }  # fmt: skip
    assert seen == [(n, 12) for n in range(1, 13)]
    seconds = {recording.id: recording.seconds for recording in found.recordings}
    assert seconds["stereo"] == 1.0 and seconds["long"] == 2.0 and found.seconds == pytest.approx(3.6)
    write_skipped(tmp_path / "skipped.jsonl", found.skipped)
    rows = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and all(set(row) == {"path", "reason", "detail"} for row in rows)


def test_heavy_clipping_is_kept_and_counted(tmp_path):
    hum = np.sin(2 * np.pi * 200 * np.arange(16000) / 16000).astype(np.float32)
    write_audio(tmp_path / "clipped.wav", (1.5 * hum).clip(-1, 1))
    write_audio(tmp_path / "loud.wav", hum)  # reaches full scale, but is whole
    found = prepare(tmp_path, "speech")
    share = {recording.id: recording.extra.get("clipped") for recording in found.recordings}
    assert found.clipped == 1 and share["loud"] is None
    assert share["clipped"] == pytest.approx(np.mean(1.5 * np.abs(hum) >= 1), abs=0.05)


def test_samples_beyond_every_scale_are_summed_without_a_warning(tmp_path):
    """A float file may hold numbers whose squares single precision does not have."""
    soundfile.write(tmp_path / "absurd.wav", np.float32([1e37, -1e37] * 8000), 16000, "FLOAT")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [found] = check_all([Recording("absurd", str(tmp_path / "absurd.wav"), 1.0)], "speech", 1)
    assert isinstance(found, Recording) and found.seconds == 1


def test_a_response_of_several_microphones_is_heard_by_one(mixed):
    found = {recording.id: recording for recording in prepare(mixed, "rooms").recordings}
    assert found["stereo"].extra["use_channel"] == 0 and "use_channel" not in found["good"].extra
    np.testing.assert_array_equal(found["stereo"].load(), read_audio(mixed / "stereo.wav", channel=0))
    assert "use_channel" not in prepare(mixed, "speech").recordings[-1].extra


def test_long_recordings_are_checked_in_bounded_memory(tmp_path):
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 16000, 1, "PCM_16") as file:
        for _ in range(20):
            file.write((noise(30) * 32767).astype(np.int16))
    tracemalloc.start()
    assert prepare(tmp_path / "long.flac", "noise").seconds == 600
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()


def test_manifests_are_checked_as_folders_are(mixed, tmp_path):
    rows = [
        Recording("part", str(mixed / "long.flac"), 0.5, 1.0, speaker="a"),
        Recording("beyond", str(mixed / "long.flac"), 5.0, 1.0),
        Recording("nan", str(mixed / "nan.wav"), 30.0),
        Recording("before", str(mixed / "nan.wav"), 10.0),
    ]
    write_manifest(tmp_path / "m.jsonl", rows)
    found = prepare(tmp_path / "m.jsonl", "speech")
    assert found.recordings == [rows[0], rows[3]]
    assert [row.reason for row in found.skipped] == ["too-short", "nan"]


def test_a_source_is_whatever_the_user_has(tmp_path):
    folder = folder_of(tmp_path / "mine", "a.wav", "b.wav")
    rows = [{"path": "a.wav", "duration": 0.3, "speaker": "x"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [r.speaker for r in prepare(f"{tmp_path / 'm.jsonl'}::{folder}", "speech").recordings] == ["x"]
    assert [r.id for r in prepare(folder / "b.wav", "noise").recordings] == ["b"]
    assert len(prepare(folder, "noise").recordings) == 2
    (folder / "manifest.jsonl").write_text((tmp_path / "m.jsonl").read_text())
    assert len(prepare(folder, "noise").recordings) == 1
    assert len(prepare(f"folder:{folder}", "noise").recordings) == 2


def test_mistakes_are_told_before_any_work(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "mine", "a.wav")
    (tmp_path / "empty").mkdir()
    write_audio(tmp_path / "silent" / "a.wav", np.zeros(16000))
    (tmp_path / "m.jsonl").write_text('{"path": "gone.wav", "duration": 1}\n')
    (tmp_path / "shar").mkdir()
    (tmp_path / "shar" / "cuts.000000.jsonl.gz").touch()
    (tmp_path / "notes.txt").touch()
    for source, complaint in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "empty", "no audio files"),
        (tmp_path / "silent", "1 silent"),
        (tmp_path / "m.jsonl", "1 of 1 files"),
        (tmp_path / "shar", "shar_to_manifest"),
        (tmp_path / "notes.txt", "no folder, audio file or .jsonl"),
        (f"muscan:{folder}", "Did you mean 'musan'"),
        ("https://example.org/speech.tar", "address"),
    ):
        with pytest.raises(UserError, match=complaint):
            prepare(source, "speech")
    monkeypatch.setattr(module, "check_all", lambda *_: pytest.fail("scanned before all sources were looked at"))
    with pytest.raises(UserError, match="does not exist"):
        prepare_all([folder, tmp_path / "nowhere"], "speech")
    with pytest.raises(UserError, match="no source of noise"):
        prepare_all([], "noise")


def test_a_scan_is_made_once_until_the_files_change(tmp_path, monkeypatch):
    folder, cache = folder_of(tmp_path / "mine", "a.wav", "b.wav"), tmp_path / "cache"
    (folder / "c.wav").write_bytes(b"")
    first = prepare_all([folder], "speech", cache)
    real = module.check_all
    monkeypatch.setattr(module, "check_all", lambda *_: pytest.fail("scanned again"))
    assert prepare_all([folder], "speech", cache) == first and len(first.skipped) == 1
    scans = []
    monkeypatch.setattr(module, "check_all", lambda *args: scans.append(1) or real(*args))
    folder_of(folder, "d.wav")
    assert len(prepare_all([folder], "speech", cache).recordings) == 3 and len(scans) == 1
    assert len(prepare_all([folder], "noise", cache).recordings) == 3 and len(scans) == 2  # other rules
    for file in cache.iterdir():
        file.write_text("spoilt")
    assert len(prepare_all([folder], "speech", cache).recordings) == 3 and len(scans) == 3
    (folder / "a.wav").unlink()
    assert len(prepare_all([folder], "speech", cache).recordings) == 2


def test_joined_sources_have_unique_ids_and_no_file_twice(tmp_path):
    one, two = folder_of(tmp_path / "one", "a.wav", "b.wav"), folder_of(tmp_path / "two", "a.wav", "c.wav")
    joined = prepare_all([one, two], "speech")
    assert [r.id for r in joined.recordings] == ["one/a", "b", "two/a", "c"]
    same_name = folder_of(tmp_path / "x" / "one", "a.wav")
    assert len({r.id for r in prepare_all([one, two, same_name], "speech").recordings}) == 5
    (tmp_path / "link").symlink_to(one)
    with pytest.raises(UserError, match="part of both"):
        prepare_all([one, tmp_path / "link" / "b.wav"], "speech")
    write_manifest(tmp_path / "m.jsonl", joined.recordings)
    assert read_manifest(tmp_path / "m.jsonl") == joined.recordings


def test_a_name_that_is_no_text_is_skipped(tmp_path, caplog):
    folder = folder_of(tmp_path / "mine", "a.wav")
    try:
        os.rename(folder / "a.wav", os.fsencode(folder) + b"/\xe9.wav")
    except OSError:
        pytest.skip("this file system takes no such names")
    folder_of(folder, "b.wav")
    with caplog.at_level(logging.WARNING):
        found = prepare(folder, "speech")
    assert [row.reason for row in found.skipped] == ["name"] and "1 of 2" in caplog.text
    write_skipped(tmp_path / "skipped.jsonl", found.skipped)


def test_two_lists_may_share_a_recording_but_not_a_part_of_it(tmp_path):
    write_audio(tmp_path / "long.wav", noise(3))
    for name, start in (("a", 0.0), ("b", 1.0), ("c", 1.5)):
        write_manifest(tmp_path / f"{name}.jsonl", [Recording(name, str(tmp_path / "long.wav"), 1.0, start)])
    both = prepare_all([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], "speech")
    assert [(r.id, r.start) for r in both.recordings] == [("a", 0.0), ("b", 1.0)]
    with pytest.raises(UserError, match=r"part of both .*b\.jsonl and .*c\.jsonl"):
        prepare_all([tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.jsonl"], "speech")


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_source_is_not_the_current_folder(text):
    with pytest.raises(UserError, match="empty"):
        prepare(text, "speech")


def test_folders_that_cannot_be_entered_have_a_row(tmp_path, monkeypatch, caplog):
    folder_of(tmp_path, "a.wav", "closed/b.wav")
    scan = os.scandir

    def closed(path):
        if os.fspath(path).endswith("closed"):  # root may enter any folder
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    found = prepare(tmp_path, "speech", workers=1)
    assert [r.id for r in found.recordings] == ["a"]
    assert [(os.path.basename(row.path), row.reason) for row in found.skipped] == [("closed", "folder")]
    assert "Permission denied" in caplog.text


def test_a_manifest_with_a_byte_order_mark_or_gzipped_is_read(tmp_path):
    folder_of(tmp_path, "a.wav")
    line = json.dumps({"path": "a.wav", "duration": 0.3}) + "\n"
    (tmp_path / "bom.jsonl").write_text(line, encoding="utf-8-sig")
    (tmp_path / "m.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    for name in ("bom.jsonl", "m.jsonl.gz"):
        assert [r.id for r in prepare(tmp_path / name, "speech").recordings] == ["a"]


def test_lists_without_an_end_are_refused_in_bounded_memory(tmp_path):
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b"[" * (200 << 20), 1))
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    (tmp_path / "self.jsonl").symlink_to("self.jsonl")
    tracemalloc.start()
    for name in ("bomb.jsonl.gz", "zero.jsonl", "self.jsonl"):
        with pytest.raises(UserError):
            prepare(tmp_path / name, "speech")
    assert tracemalloc.get_traced_memory()[1] < 150e6
    tracemalloc.stop()


def test_inaudible_recordings_are_silent(tmp_path):
    time = np.arange(4 * 16000) / 16000
    rumble = 0.3 * np.sin(2 * np.pi * 5 * time)
    soundfile.write(tmp_path / "rumble.wav", rumble, 16000, "FLOAT")
    soundfile.write(tmp_path / "hiss.wav", rumble + 0.002 * np.random.default_rng(0).standard_normal(len(time)), 16000)
    write_audio(tmp_path / "low.wav", 0.3 * np.sin(2 * np.pi * 50 * time))
    found = prepare(tmp_path, "noise")
    assert {r.id for r in found.recordings} == {"hiss", "low"}
    assert [(os.path.basename(row.path), row.reason) for row in found.skipped] == [("rumble.wav", "silent")]


def test_a_scan_of_rooms_measures_their_reverberation(tmp_path):
    rng = np.random.default_rng(0)
    tail = rng.standard_normal(8000) * 10 ** (-3 * np.arange(8000) / 16000 / 0.4)
    write_audio(tmp_path / "room.wav", np.concatenate([np.zeros(100), [1.0], 0.1 * tail]))
    write_audio(tmp_path / "dry.wav", np.eye(1, 400, 10)[0])
    found = {r.id: r.extra["t60"] for r in prepare(tmp_path, "rooms").recordings}
    assert found["room"] == pytest.approx(0.4, rel=0.1) and found["dry"] is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes of POSIX")
@pytest.mark.parametrize("way", ["kill the parent", "interrupt the group"])
def test_workers_end_with_their_parent_and_say_nothing(tmp_path, way):
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background inherits that it is ignored
        "from robustdistiller.audio import checking, prepare\n"
        "def slow(recording, role):\n"
        "    open(recording.path + '.seen', 'w').close()\n"
        "    time.sleep(60)\n"
        "checking._check, checking._IN_PROCESS = slow, 0\n"
        "try:\n"
        "    prepare.prepare(sys.argv[1], 'speech', workers=2)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    folder = folder_of(tmp_path / "s", "a.wav", "b.wav", "c.wav", "d.wav")
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stderr=subprocess.PIPE, start_new_session=True
    )
    while len(list(folder.glob("*.seen"))) < 2 and process.poll() is None:
        time.sleep(0.05)
    if way == "kill the parent":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=40)[1] == b""  # the pipe ends when the last worker has: they hold it too
