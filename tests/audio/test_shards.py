"""Laws of shards: nothing is lost or changed in them, writing goes on where it stopped, and damage is one sentence."""

import dataclasses
import io
import json
import resource
import tarfile

import numpy as np
import pytest
import soundfile

from robustdistiller.audio.io import SAMPLE_RATE, read_audio, write_audio
from robustdistiller.audio.manifest import read_manifest
from robustdistiller.audio.prepare import prepare
from robustdistiller.audio.sharding import PIECE, write_shards
from robustdistiller.audio.shards import copy_shard, members, read_shards
from robustdistiller.errors import AudioError, UserError

COUNT = 24


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, voice):
    """24 recordings of six speakers and one broken file, as a manifest."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for number in range(COUNT):
        seconds = 0.5 + 0.05 * number
        write_audio(folder / f"{number:02d}.wav", voice(seconds, number))
        rows.append(
            {"path": f"{number:02d}.wav", "duration": seconds, "speaker": f"s{number % 6}", "text": f"t{number}"}
        )
    (folder / "broken.wav").write_bytes(b"RIFF" + bytes(40))
    rows.append({"path": "broken.wav", "duration": 1.0, "speaker": "s0"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "manifest.jsonl"


@pytest.fixture
def sharded(corpus, tmp_path):
    """The corpus in shards of two speakers each."""
    return write_shards([str(corpus)], tmp_path / "shards", 0.2, workers=1)


def everything(folder, tmp_path):
    """All recordings of a folder of shards: id → (member, wave)."""
    found = {}
    for number, shard in enumerate(read_shards(folder)):
        target = tmp_path / f"copy-{number}.tar"
        copy_shard(shard, target)
        found |= {member.id: (member, member.load()) for member in members(target, shard)}
    return found


@pytest.mark.parametrize("audio", ["flac", "wav"])
def test_every_recording_comes_back_to_the_bit_with_what_is_known_of_it(corpus, tmp_path, audio):
    done = write_shards([str(corpus)], tmp_path / "shards", 0.2, audio, workers=1)
    found = everything(tmp_path / "shards", tmp_path)
    sound = [r for r in read_manifest(corpus) if "broken" not in r.path]
    assert found.keys() == {r.id for r in sound} and len({member.path for member, _ in found.values()}) == len(sound)
    for recording in sound:
        member, wave = found[recording.id]
        assert np.array_equal(wave, recording.load()) and member.speaker == recording.speaker
        assert np.array_equal(member.load(0.1, 0.2), recording.load(0.1, 0.2))
    assert [row.path.endswith("broken.wav") for row in done.skipped] == [True]
    assert len((tmp_path / "shards" / "skipped.jsonl").read_text().splitlines()) == 1


def test_a_speaker_is_in_one_shard_and_the_index_tells_the_truth(sharded):
    shards = read_shards(sharded.folder)
    assert len(shards) > 2
    names = [name for shard in shards for name in shard.speakers]
    assert len(names) == len(set(names)) == 6
    for shard in shards:
        lengths = shard.samples() / SAMPLE_RATE
        assert len(lengths) == shard.recordings and lengths.sum() == pytest.approx(shard.seconds, abs=1e-3)
        assert shard.usable_seconds(1.0, 0.0) == pytest.approx(np.minimum(lengths, 1.0).sum(), rel=0.05)
        assert shard.usable_seconds(99.0, 1.0) == pytest.approx(lengths[lengths >= 1.0].sum(), rel=1e-3)
        assert shard.longest >= lengths.max()


def test_the_layout_is_that_of_webdataset_and_the_bytes_are_a_function_of_the_speech(sharded, corpus, tmp_path):
    with tarfile.open(read_shards(sharded.folder)[0].path) as tar:
        names = tar.getnames()
        first = tar.extractfile(names[0])
        assert soundfile.info(first).samplerate == SAMPLE_RATE
        assert json.loads(tar.extractfile(names[1]).read()).keys() >= {"id", "speaker", "text", "samples", "duration"}
    assert names[:4] == ["000000.flac", "000000.json", "000001.flac", "000001.json"]
    write_shards([str(corpus)], tmp_path / "again", 0.2, workers=2)
    for file in sharded.folder.glob("shard*"):
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_writing_goes_on_where_it_was_and_mends_what_was_lost(sharded, corpus):
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in sharded.folder.glob("shard*")}
    (sharded.folder / "shards.json").unlink()
    (sharded.folder / "shard-000000.json").unlink()  # killed before it was sealed
    cut = sharded.folder / "shard-000001.tar"
    cut.write_bytes(cut.read_bytes()[:-100])
    done = write_shards([str(corpus)], sharded.folder, 0.2, workers=1)
    after = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in sharded.folder.glob("shard*")}
    assert {name: content for name, (content, _) in before.items()} == {name: c for name, (c, _) in after.items()}
    assert done.kept == len(before) // 2 - 2 and after["shard-000002.tar"] == before["shard-000002.tar"]
    with pytest.raises(UserError, match="holds shards of other sources"):
        write_shards([str(corpus)], sharded.folder, 0.1, workers=1)


def test_long_recordings_are_cut_into_pieces_that_join_to_the_whole(tmp_path, voice):
    wave = np.tile(voice(5.0, 1), 25)[: round(2.1 * PIECE * SAMPLE_RATE)]
    write_audio(tmp_path / "in" / "long.flac", wave)
    done = write_shards([str(tmp_path / "in")], tmp_path / "shards", workers=1)
    found = everything(tmp_path / "shards", tmp_path)
    assert done.total("recordings") == 3 and sorted(found) == ["long@0", "long@1", "long@2"]
    joined = np.concatenate([found[name][1] for name in sorted(found)])
    assert np.array_equal(joined, read_audio(tmp_path / "in" / "long.flac"))


def test_splits_that_a_manifest_names_are_kept_apart(corpus, tmp_path):
    rows = [json.loads(line) for line in corpus.read_text().splitlines()[:COUNT]]
    for row in rows:
        row |= {"path": str(corpus.parent / row["path"]), "split": "valid" if row["speaker"] == "s5" else "train"}
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_shards([str(tmp_path / "m.jsonl")], tmp_path / "shards", 100, workers=1)
    assert [(s.split, s.recordings) for s in read_shards(tmp_path / "shards")] == [("train", 20), ("valid", 4)]


def test_damage_is_one_sentence(sharded, tmp_path):
    index = sharded.folder / "shards.json"
    shard = read_shards(sharded.folder)[1]
    tar = sharded.folder / "shard-000001.tar"
    content, values = tar.read_bytes(), json.loads(index.read_text())

    flipped = bytearray(content)
    flipped[1000] ^= 1
    tar.write_bytes(flipped)
    with pytest.raises(AudioError, match=r"shard-000001\.tar is not what was written"):
        copy_shard(shard, tmp_path / "copy.tar")
    tar.write_bytes(content[:-512])
    with pytest.raises(UserError, match=r"shard-000001\.tar has \d+ bytes where its index says \d+.*which mends it"):
        read_shards(sharded.folder)
    with pytest.raises(AudioError, match=r"has \d+ bytes, by its index") as caught:
        copy_shard(shard, tmp_path / "copy.tar")
    assert caught.value.reason == "truncated" and not (tmp_path / "copy.tar").exists()
    tar.unlink()
    with pytest.raises(UserError, match=r"shard-000001\.tar is missing"):
        read_shards(sharded.folder)
    with pytest.raises(AudioError, match="is missing"):
        copy_shard(shard, tmp_path / "copy.tar")
    tar.write_bytes(content)

    lengths = sharded.folder / "shard-000001.json"
    lengths.write_text(lengths.read_text().replace('"samples": [', '"samples": [17,'))
    with pytest.raises(UserError, match="does not belong to the index"):
        shard.samples()
    for wrong, sentence in (
        ({**values, "format": 2}, "has format 2, this version reads 1"),
        ({**values, "shards": []}, "lists no shards"),
        ({**values, "shards": [{"name": "../x.tar"}]}, "is damaged"),
        ([], "has format None"),
    ):
        index.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=sentence) as told:
            read_shards(sharded.folder)
        assert str(told.value).isprintable()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bytes", 10**13 * 10**6), ("bytes", None), ("recordings", 10**400), ("recordings", -1), ("seconds", float("nan")),
        ("seconds", float("inf")), ("digest", "\0" * 32), ("digest", "../" * 9), ("digest", None), ("lengths", 5),
        ("speakers", [["a"]]), ("speakers", None), ("split", []), ("split", "elsewhere"), ("histogram", {}),
        ("histogram", {"99999999999": [1, 1.0]}), ("histogram", {"3": [10**400, 1.0]}), ("histogram", {"3": [0, 0.0]}),
        ("name", "../x.tar"), ("name", "a\0.tar"), ("name", 7),
    ],
)  # fmt: skip
def test_what_an_index_claims_is_checked_before_it_is_used(sharded, key, value):
    index = sharded.folder / "shards.json"
    values = json.loads(index.read_text())
    values["shards"][1][key] = value
    index.write_text(json.dumps(values))
    with pytest.raises(UserError, match="is damaged") as told:
        read_shards(sharded.folder)
    assert str(told.value).isprintable()


def hostile_tars(shard, audio):
    """Tar files of strangers, by what is wrong with them: (name, bytes)."""

    def tar(*entries, format=tarfile.PAX_FORMAT, lengthen=None):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=format) as archive:
            for name, content, more in entries:
                info = tarfile.TarInfo(name)
                info.size, info.pax_headers = len(content), more
                archive.addfile(info, io.BytesIO(content))
        content = bytearray(stream.getvalue())
        if lengthen is not None:  # the size in the header of that entry, in base 256, and the checksum again
            at = content.index(lengthen.encode())
            content[at + 124 : at + 136] = b"\x80" + (10**13).to_bytes(11, "big")
            content[at + 148 : at + 156] = b" " * 8
            content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
        return bytes(content)

    def row(**more):
        return json.dumps({"id": "a", "samples": 8000, "speaker": "s"} | more).encode()

    sound = ("a.flac", audio, {})
    yield "sound", tar(sound, ("a.json", row(), {}))
    yield "10 TB of audio", tar(sound, ("a.json", row(), {}), lengthen="a.flac")
    yield "10 TB of JSON", tar(sound, ("a.json", row(), {}), lengthen="a.json")
    for size in ("10000000000000", "1" + 40 * "0", "-5", "many"):
        yield f"PAX size {size}", tar(sound, ("a.json", row(), {"size": size}))
        yield f"PAX size {size} of audio", tar(("a.flac", audio, {"size": size}), ("a.json", row(), {}))
    yield "PAX sparse", tar(sound, ("a.json", row(), {"GNU.sparse.size": "10000000000000", "GNU.sparse.map": "0,1"}))
    yield (
        "a long name of 10 TB",
        tar(("a" * 300 + ".flac", audio, {}), format=tarfile.GNU_FORMAT, lengthen="././@LongLink"),
    )
    yield "deep", tar(sound, ("a.json", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, {}))
    yield "digits", tar(sound, ("a.json", b'{"samples": ' + b"9" * 10_000 + b"}", {}))
    yield "no text", tar(sound, ("a.json", b"\xff\xfe", {}))
    yield "a list", tar(sound, ("a.json", b"[1]", {}))
    yield "JSON alone", tar(("a.json", row(), {}))
    yield "other names", tar(sound, ("b.json", row(), {}))
    for value in (None, "many", [], 10**400, float("inf"), float("nan"), -1, 0):
        yield f"samples {str(value)[:9]}", tar(sound, ("a.json", row(samples=value), {}))
    for value in ([["a"]], {"a": 1}):
        yield f"speaker {value}", tar(sound, ("a.json", row(speaker=value), {}))


def test_tar_files_of_strangers_are_recordings_or_a_sentence(sharded, tmp_path):
    shard = dataclasses.replace(read_shards(sharded.folder)[0], bytes=1 << 20)
    with tarfile.open(shard.path) as tar:
        audio = tar.extractfile(tar.getnames()[0]).read()
    before, found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, {}
    for name, content in hostile_tars(shard, audio):
        (tmp_path / "x.tar").write_bytes(content)
        try:
            found[name] = [len(member.load()) for member in members(tmp_path / "x.tar", shard)]
        except AudioError as error:
            assert str(error).isprintable(), name

    assert found.keys() == {"sound"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_shards_are_no_source_of_files(sharded, tmp_path):
    with pytest.raises(UserError, match="holds shards"):
        prepare(str(sharded.folder), "speech")
    with pytest.raises(UserError, match="a folder of shards already"):
        write_shards([str(sharded.folder)], tmp_path / "other")


def test_what_a_killed_call_left_and_what_strangers_wrote_does_no_harm(corpus, sharded):
    folder = sharded.folder
    (folder / ".shard-000000-abc.tar").write_bytes(b"half")
    beside = folder / "shard-000000.json"
    row = json.loads(beside.read_text())
    for spoilt in ({**row, "foreign": 1}, {k: v for k, v in row.items() if k != "digest"}, {**row, "speakers": [[]]}):
        beside.write_text(json.dumps(spoilt))
        (folder / "shards.json").unlink()
        again = write_shards([str(corpus)], folder, 0.2, workers=1)
        assert again.index == sharded.index
    assert not list(folder.glob(".shard*"))
