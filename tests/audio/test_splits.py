"""The laws of splitting: nobody is in two parts, the same everywhere, and manifests have the first word."""

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustdistiller.audio.manifest import Recording
from robustdistiller.audio.splits import hold_out_stretch, split_by_group


def recording(n: int, speaker=None, group=None, split=None, seconds=1.0, path=None) -> Recording:
    return Recording(str(n), path or f"/{n}.wav", seconds, speaker=speaker, group=group, split=split)


units = st.lists(st.integers(0, 12), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(units, st.sampled_from([0.05, 0.3, 0.6]), st.integers(0, 5), st.booleans())
def test_no_unit_is_in_two_splits_and_all_recordings_are_in_one(owners, valid, seed, as_group):
    field = "group" if as_group else "speaker"
    given = [recording(n, **{field: f"u{owner}"}) for n, owner in enumerate(owners)]
    parts = split_by_group(given, valid, seed)
    assert parts == split_by_group(given, valid, seed)
    assert sorted(r.id for part in parts.values() for r in part) == sorted(r.id for r in given)
    assert all(r.split == name for name, part in parts.items() for r in part)
    names = [{getattr(r, field) for r in part} for part in parts.values()]
    if len(set(owners)) > 1:
        assert sum(map(len, names)) == len(set(owners))
        assert parts["train"] and parts["valid"]


def test_a_unit_keeps_its_split_when_others_come_and_go():
    given = [recording(n, speaker=f"s{n // 3}") for n in range(600)]
    whole = {r.speaker: name for name, part in split_by_group(given, 0.1).items() for r in part}
    half = {r.speaker: name for name, part in split_by_group(given[:300], 0.1).items() for r in part}
    assert all(whole[speaker] == split for speaker, split in half.items())
    assert 0.05 < sum(split == "valid" for split in whole.values()) / len(whole) < 0.15
    assert whole != {r.speaker: name for name, part in split_by_group(given, 0.1, seed=1).items() for r in part}


def test_named_splits_are_honoured_and_draw_the_rest_of_their_unit_along():
    given = [
        recording(0, "a", split="valid"), recording(1, "a"), recording(2, "b", split="test"), recording(3, "b"),
        *(recording(n, f"c{n}", split="train") for n in range(4, 30)),
    ]  # fmt: skip
    parts = split_by_group(given, 0.3)
    assert {r.id for r in parts["valid"]} == {"0", "1"} and {r.id for r in parts["test"]} == {"2", "3"}
    assert len(parts["train"]) == 26


def test_where_no_valid_part_is_named_some_of_train_is_held_out():
    given = [recording(n, f"s{n}", split="train") for n in range(40)] + [recording(40, "t", split="test")]
    parts = split_by_group(given, 0.1)
    assert parts["valid"] and {r.id for r in parts["test"]} == {"40"}
    assert split_by_group(given, 0.0) == {"train": given[:40], "valid": [], "test": [given[40]]}


def test_speech_of_one_speaker_is_split_by_recording_and_said_so(caplog):
    given = [recording(n, "alone") for n in range(20)]
    with caplog.at_level(logging.WARNING):
        parts = split_by_group(given, 0.1)
    assert parts["valid"] and parts["train"] and "alone" in caplog.text
    segments = [recording(n, "alone", path=f"/{n // 5}.wav") for n in range(20)]
    parts = split_by_group(segments, 0.1)
    assert parts["valid"] and not {r.path for r in parts["valid"]} & {r.path for r in parts["train"]}


@pytest.mark.parametrize("count", [1, 7])
def test_one_noise_recording_is_never_torn(count):
    given = [recording(n, group="the only one") for n in range(count)]
    assert split_by_group(given, 0.5)["train"] and not split_by_group(given, 0.5)["valid"]


def test_the_end_of_a_single_recording_is_held_out():
    parts = hold_out_stretch(recording(0, seconds=154.0), 0.05)
    (train,), (valid,) = parts["train"], parts["valid"]
    assert train.split == "train" and valid.split == "valid" and train.id != valid.id
    assert train.start + train.seconds == valid.start and train.seconds + valid.seconds == pytest.approx(154.0)
    assert valid.seconds == pytest.approx(7.7, abs=1e-3)


def test_most_of_the_corpus_stays_in_train():
    for seed in range(20):
        given = [recording(0, "big", seconds=100), *(recording(n, f"s{n}") for n in range(1, 5))]
        assert "0" in {r.id for r in split_by_group(given, 0.5, seed=seed)["train"]}


def test_parts_of_a_file_without_speaker_stay_together():
    given = [recording(n, path=f"/{n // 4}.wav") for n in range(40)]
    parts = split_by_group(given, 0.3)
    assert not {r.path for r in parts["valid"]} & {r.path for r in parts["train"]}


def test_a_manifest_that_tears_a_speaker_apart_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        parts = split_by_group([recording(0, "a", split="train"), recording(1, "a", split="valid")], 0.1)
    assert "several splits" in caplog.text and len(parts["valid"]) == 1
