"""lhotse cuts are heard as lhotse would hear them."""

import json
import sys

import numpy as np
import pytest

from robustdistiller.audio.io import read_audio, write_audio
from robustdistiller.audio.lhotse_adapter import cuts_to_manifest, is_cuts, read_cuts, shar_to_manifest
from robustdistiller.audio.manifest import read_manifest
from robustdistiller.audio.prepare import prepare
from robustdistiller.errors import UserError

pytest.importorskip("lhotse")


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """The second from 0.5 s of a stereo file, its right channel."""
    import soundfile
    from lhotse import MonoCut, Recording, SupervisionSegment

    path = tmp_path_factory.mktemp("cuts") / "a.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, (32000, 2)), 16000)
    spoken = SupervisionSegment("s", "a", 0, 1.0, 1, "hello", speaker="anna")
    custom = {"split": "dev", "take": 3}
    return MonoCut("c1", 0.5, 1.0, 1, [spoken], recording=Recording.from_file(path), custom=custom)


def save(path, *cuts):
    from lhotse import CutSet

    CutSet.from_cuts(cuts).to_file(path)
    return path


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_cuts_of_files_are_read_in_place(tmp_path, cut, name):
    path = save(tmp_path / name, cut)
    assert is_cuts(path)
    (found,) = read_cuts(path)
    assert (found.id, found.start, found.seconds, found.speaker, found.split) == ("c1", 0.5, 1.0, "anna", "valid")
    assert found.extra == {"text": "hello", "take": 3, "use_channel": 1}
    np.testing.assert_allclose(found.load(), cut.load_audio()[0], atol=1e-6)
    assert prepare(path, "speech").recordings == [found]


def test_other_cuts_must_be_written_out_and_can_be(tmp_path, cut):
    mixed = [cut.mix(cut.with_id("x"), snr=5).with_id("mix"), cut.perturb_speed(0.9).with_id("slow")]
    for other in mixed:
        with pytest.raises(UserError, match="cuts_to_manifest"):
            read_cuts(save(tmp_path / "cuts.jsonl", other))
    source = save(tmp_path / "both.jsonl", *mixed)
    done = []
    manifest = cuts_to_manifest(source, tmp_path / "out", lambda n, total: done.append(n))
    found = read_manifest(manifest, check_files=True)
    assert [r.id for r in found] == ["mix", "slow"] and done == [1, 2]
    for recording, original in zip(found, mixed, strict=True):
        np.testing.assert_allclose(recording.load(), original.load_audio()[0].clip(-1, 1), atol=1e-4)


def test_cuts_that_were_only_resampled_are_read_in_place(tmp_path, cut):
    from lhotse import CutSet

    path = tmp_path / "cuts.jsonl"
    CutSet.from_cuts([cut.resample(8000)]).to_file(str(path))
    (found,) = read_cuts(path)
    (plain,) = read_cuts(save(tmp_path / "plain.jsonl", cut))
    assert (found.path, found.start, found.seconds) == (plain.path, plain.start, plain.seconds)
    CutSet.from_cuts([cut.perturb_speed(1.1)]).to_file(str(path))
    with pytest.raises(UserError, match="not a part of one audio file"):
        read_cuts(path)


def test_shar_archives_become_files(tmp_path, cut):
    from lhotse import CutSet

    (tmp_path / "shar").mkdir()
    cuts = [cut.with_id(name) for name in ("one", "a/b", "three")]
    CutSet.from_cuts(cuts).to_shar(str(tmp_path / "shar"), fields={"recording": "flac"}, shard_size=2)
    found = read_manifest(shar_to_manifest(tmp_path / "shar", tmp_path / "out"), check_files=True)
    assert sorted(r.id for r in found) == ["a/b", "one", "three"] and {r.speaker for r in found} == {"anna"}
    for recording in found:
        np.testing.assert_allclose(read_audio(recording.path), cut.load_audio()[0], atol=1e-4)
    with pytest.raises(UserError, match="no Shar folder"):
        shar_to_manifest(tmp_path / "out", tmp_path / "again")


def test_mistakes_with_cuts_are_told(tmp_path, cut, monkeypatch):
    assert not is_cuts(tmp_path / "none.jsonl")
    (tmp_path / "m.jsonl").write_text('{"path": "a.wav", "duration": 1}\n')
    assert not is_cuts(tmp_path / "m.jsonl")
    with pytest.raises(UserError, match=r"Line 1 .*not a lhotse cut"):
        read_cuts(tmp_path / "m.jsonl")
    with pytest.raises(UserError, match="repeats 1 cut ids"):
        path = save(tmp_path / "one.jsonl", cut)
        path.write_text(path.read_text() * 2)
        read_cuts(path)
    write_audio(tmp_path / "gone.wav", np.zeros(16000))
    row = json.loads(save(tmp_path / "gone.jsonl", cut).read_text())
    row["recording"]["sources"][0]["source"] = "nowhere.wav"
    (tmp_path / "gone.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="1 of 1 files"):
        prepare(tmp_path / "gone.jsonl", "speech")
    monkeypatch.setitem(sys.modules, "lhotse", None)
    with pytest.raises(UserError, match=r"robustdistiller\[lhotse\]"):
        read_cuts(tmp_path / "gone.jsonl")
