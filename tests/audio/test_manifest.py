"""The laws of manifests: written and read they are the same, and a wrong line is named."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustdistiller.audio.io import write_audio
from robustdistiller.audio.manifest import Recording, read_manifest, write_manifest
from robustdistiller.errors import AudioError, UserError

text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
maybe = st.none() | text
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))
own = {"id", "path", "duration", "start", "speaker", "label", "split", "group"}
extras = st.dictionaries(text | st.sampled_from(["room", "recording", "speaker_cluster", "text"]), values, max_size=4)
recordings = st.builds(
    Recording,
    id=text,
    path=st.sampled_from(["/corpus/a.wav", "/corpus/b/c é.flac"]),
    seconds=st.floats(1e-3, 1e6),
    start=st.floats(0, 1e6),
    speaker=maybe,
    label=maybe,
    split=st.sampled_from([None, "train", "valid", "test"]),
    group=maybe,
    extra=extras.map(lambda extra: {k: v for k, v in extra.items() if k not in own}),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(recordings, min_size=1, max_size=5, unique_by=lambda r: r.id))
def test_what_is_written_is_read_back_exactly(tmp_path, given):
    write_manifest(tmp_path / "m.jsonl", given)
    assert read_manifest(tmp_path / "m.jsonl") == given


def lines(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_paths_count_from_the_root_the_manifest_or_the_first_folder_that_fits(tmp_path):
    wave = np.full(800, 0.1, np.float32)
    for name in ("corpus/speech/a.wav", "elsewhere/speech/a.wav"):
        write_audio(tmp_path / name, wave)
    row = {"path": "speech/a.wav", "duration": 0.05}
    beside = lines(tmp_path / "corpus" / "m.jsonl", row)
    above = lines(tmp_path / "corpus" / "speech" / "m.jsonl", row)
    for manifest in (beside, above):
        (found,) = read_manifest(manifest, check_files=True)
        assert found.path == str(tmp_path / "corpus/speech/a.wav") and found.id == "speech/a"
    (found,) = read_manifest(beside, tmp_path / "elsewhere")
    assert found.path == str(tmp_path / "elsewhere/speech/a.wav")
    absolute = lines(tmp_path / "abs.jsonl", {**row, "path": str(tmp_path / "corpus/speech/a.wav")})
    assert read_manifest(absolute, tmp_path / "elsewhere", check_files=True)[0].path.endswith("corpus/speech/a.wav")
    np.testing.assert_allclose(found.load(0.01, 0.02), wave[:320], atol=1e-4)


def test_a_manifest_and_its_files_can_be_moved_together(tmp_path):
    write_audio(tmp_path / "one" / "audio" / "a.wav", np.zeros(400))
    write_manifest(tmp_path / "one" / "m.jsonl", [Recording("a", str(tmp_path / "one" / "audio" / "a.wav"), 0.025)])
    (tmp_path / "one").rename(tmp_path / "two")
    assert read_manifest(tmp_path / "two" / "m.jsonl", check_files=True)[0].path.startswith(str(tmp_path / "two"))


def test_fields_of_other_corpora_fill_ours_and_the_rest_is_kept(tmp_path):
    path = lines(
        tmp_path / "m.jsonl",
        {"path": "a.wav", "duration": 1, "speaker_cluster": 7, "recording": "clip", "split": "dev", "rt60": 0.3},
        {"path": "b.wav", "duration": 1, "room": "hall", "sample_rate": 16000, "label": 3},
        {"path": "c.wav", "duration": 1, "speaker": "x", "speaker_cluster": "y", "group": "g", "room": "h"},
    )
    a, b, c = read_manifest(path)
    assert (a.speaker, a.group, a.split, a.extra) == ("7", "clip", "valid", {"rt60": 0.3})
    assert (b.group, b.label, b.extra) == ("hall", "3", {"sample_rate": 16000})
    assert (c.speaker, c.group, c.extra) == ("x", "g", {"speaker_cluster": "y", "room": "h"})


GOOD = {"path": "a.wav", "duration": 1.5}


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ("{not json", "Line 2 .*no valid JSON"),
        ("[1]", "Line 2 .*not a JSON object"),
        ({"duration": 1}, "Line 2 .*no 'path'"),
        ({"path": 3, "duration": 1}, "Line 2 .*no 'path'"),
        ({"path": "b.wav"}, "Line 2 .*no 'duration'"),
        ({"path": "b.wav", "duration": "1.5"}, "Line 2 .*not a number"),
        ({"path": "b.wav", "duration": True}, "Line 2 .*not a number"),
        ({"path": "b.wav", "duration": -1}, "Line 2 .*above 0"),
        ('{"path": "b.wav", "duration": NaN}', "Line 2 .*not a number"),
        ({"path": "b.wav", "duration": 1, "start": -1}, "Line 2 .*start must not be negative"),
        ({"path": "b.wav", "duration": 1, "split": "tran"}, "Line 2 .*Did you mean 'train'"),
        ({"path": "b.wav", "duration": 1, "speaker": ["x"]}, "Line 2 .*speaker must be text"),
        ({"path": "a.flac", "duration": 1}, "Line 2 .*repeats the id 'a' of line 1"),
    ],
)
def test_a_wrong_line_is_named_with_its_fault(tmp_path, bad, complaint):
    with pytest.raises(UserError, match=complaint):
        read_manifest(lines(tmp_path / "m.jsonl", GOOD, bad))


def test_what_is_no_manifest_is_said_in_a_sentence(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b'{"path": "\xe9.wav", "duration": 1}\n')
    for name, content, complaint in (("latin.jsonl", None, "UTF-8"), ("empty.jsonl", "", "is empty")):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=complaint):
            read_manifest(tmp_path / name)
    with pytest.raises(UserError, match="Cannot read"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="root"):
        read_manifest(lines(tmp_path / "m.jsonl", GOOD), tmp_path / "nowhere")


def test_a_path_may_not_climb_out_of_a_given_root(tmp_path):
    (tmp_path / "root").mkdir()
    manifest = lines(tmp_path / "m.jsonl", {"path": "../secret.wav", "duration": 1})
    with pytest.raises(UserError, match="leaves its root"):
        read_manifest(manifest, tmp_path / "root")
    inside = lines(tmp_path / "n.jsonl", {"path": "x/../a.wav", "duration": 1})
    assert read_manifest(inside, tmp_path / "root")[0].path == str(tmp_path / "root" / "a.wav")


def test_missing_files_are_counted_and_the_first_is_named(tmp_path):
    write_audio(tmp_path / "a.wav", np.zeros(400))
    rows = [GOOD, {"path": "b.wav", "duration": 1}, {"path": "c.wav", "duration": 1}]
    with pytest.raises(UserError, match=r"2 of 3 files .*b\.wav"):
        read_manifest(lines(tmp_path / "m.jsonl", *rows), check_files=True)


def test_a_recording_ends_where_it_says(tmp_path):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 16000).astype(np.float32)
    write_audio(tmp_path / "a.wav", wave)
    part = Recording("a", str(tmp_path / "a.wav"), seconds=0.25, start=0.5)
    np.testing.assert_allclose(part.load(), wave[8000:12000], atol=1e-4)
    np.testing.assert_allclose(part.load(0.2, 9.0), wave[11200:12000], atol=1e-4)
    with pytest.raises(AudioError) as caught:
        part.load(0.25)
    assert caught.value.reason == "too-short"
