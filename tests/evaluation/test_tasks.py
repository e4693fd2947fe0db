"""Laws of tasks: what training, selection and test may share, and what is refused in one sentence."""

import json
from pathlib import Path

import pytest

from robustdistiller.audio.manifest import read_manifest, write_manifest
from robustdistiller.errors import UserError
from robustdistiller.evaluation.tasks import PARTS, TaskConfig, build_task, load_folds, load_task
from robustdistiller.schema import validated


def rewritten(words, tmp_path, change):
    """A copy of the manifest with every row passed through `change` (None leaves it out)."""
    rows = [json.loads(line) for line in (words / "manifest.jsonl").read_text().splitlines()]
    kept = [row for row in (change({**row, "path": str(words / row["path"])}) for row in rows) if row]
    file = tmp_path / "manifest.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return file


def task(source, **fields):
    return build_task(
        validated(TaskConfig, {"name": "t", "kind": "classification", "source": str(source), **fields}, "the task")
    )


def test_splits_follow_the_manifest(keywords):
    assert [len(keywords.part(p)) for p in ("train", "valid", "test")] == [72, 18, 18]
    assert keywords.classes == (("high", "low", "middle"),)


def test_held_out_speakers_leave_training(words):
    held = task(words / "manifest.jsonl", valid={"hold_out": 0.25})
    speakers = [{e.recording.speaker for e in held.part(p)} for p in ("train", "valid", "test")]
    assert len(speakers[1]) == 2 and not speakers[0] & speakers[1] and not speakers[1] & speakers[2]
    assert held == task(words / "manifest.jsonl", valid={"hold_out": 0.25})


def test_a_test_set_may_live_in_another_folder(words, tmp_path):
    other = [r for r in read_manifest(words / "manifest.jsonl") if r.split == "test"]
    write_manifest(tmp_path / "elsewhere.jsonl", other)
    split = task(words / "manifest.jsonl", test={"source": str(tmp_path / "elsewhere.jsonl")})
    assert len(split.test) == 18


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_cuts_of_lhotse_are_a_source_as_they_are(words, tmp_path, suffix):
    lhotse = pytest.importorskip("lhotse")
    rows = [r for r in read_manifest(words / "manifest.jsonl")]
    cuts = []
    for row in rows:
        recording = lhotse.Recording.from_file(row.path, recording_id=row.id)
        cut = recording.to_cut()
        about = {"id": row.id, "recording_id": row.id, "start": 0, "duration": cut.duration}
        cut.supervisions = [lhotse.SupervisionSegment(**about, speaker=row.speaker)]
        cut.custom = {"label": row.label, "split": row.split}
        cuts.append(cut)
    lhotse.CutSet.from_cuts(cuts).to_file(str(tmp_path / f"cuts{suffix}"))
    found = task(tmp_path / f"cuts{suffix}")
    assert [len(found.part(p)) for p in ("train", "valid", "test")] == [72, 18, 18]
    assert {e.recording.speaker for e in found.test} == {"s10", "s11"}


def test_a_limit_is_balanced_over_answers_and_always_the_same(words):
    limited = task(words / "manifest.jsonl", train={"where": {"split": "train"}, "limit": 30})
    counts = [sum(e.target == (word,) for e in limited.train) for word in ("low", "middle", "high")]
    assert counts == [10, 10, 10]
    assert limited.train == task(words / "manifest.jsonl", train={"where": {"split": "train"}, "limit": 30}).train


def test_labels_may_be_nested_and_slots_may_be_a_mapping(words):
    nested = task(words / "manifest.jsonl", label="level.deep")
    assert nested.classes == (("high", "low", "middle"),)
    slots = task(words / "manifest.jsonl", kind="slots", slots=["slots"])
    assert slots.slots == ("manner", "word") and slots.train[0].target == ("early", "low")


def test_transcripts_become_units(words):
    characters = task(words / "manifest.jsonl", kind="ctc", units="characters")
    assert "".join(characters.train[0].target) == "low ow" and " " in characters.classes[0]
    phones = task(words / "manifest.jsonl", kind="ctc", units="phones")
    assert phones.train[0].target == ("low", "ow")


def test_punctuation_leaves_single_spaces(words, tmp_path):
    said = rewritten(words, tmp_path, lambda row: {**row, "text": " Well -- it's  (so to say) over_there. "})
    assert "".join(task(said, kind="ctc").test[0].target) == "well it's so to say over there"


def test_splits_may_go_by_any_of_their_names(words):
    named = task(words / "manifest.jsonl", valid={"where": {"split": "dev"}}, test={"where": {"split": ["Eval"]}})
    assert named.valid == task(words / "manifest.jsonl").valid and named.test == task(words / "manifest.jsonl").test


def test_timed_phones_are_folded(words, tmp_path):
    timed = rewritten(words, tmp_path, lambda row: {**row, "text": [[0, 0.1, "h#"], [0.1, 0.2, "ix"], [0.2, 0.3, "q"]]})
    assert task(timed, kind="ctc", units="phones", fold="timit39").test[0].target == ("sil", "ih")


def test_folds_test_everything_once_and_never_on_training_speakers(words, tmp_path):
    sessions = rewritten(words, tmp_path, lambda r: {**r, "session": int(r["speaker"][1:]) % 3})
    folds = load_folds(TaskConfig(name="t", kind="classification", source=str(sessions), folds="session"))
    assert [f.name for f in folds] == ["t-0", "t-1", "t-2"] and {f.report_name for f in folds} == {"t"}
    tested = [e.id for fold in folds for e in fold.test]
    assert len(tested) == len(set(tested)) == 108
    for fold in folds:
        speakers = [{e.recording.speaker for e in fold.part(p)} for p in ("train", "valid", "test")]
        assert not speakers[0] & speakers[1] and not (speakers[0] | speakers[1]) & speakers[2] and speakers[1]


def test_another_field_may_say_who_speaks(words):
    other = task(words / "manifest.jsonl", speaker="id")
    assert other.test[0].cluster == other.test[0].id


@pytest.mark.parametrize(
    ("change", "fields", "words_of_error"),
    [
        (lambda r: {**r, "speaker": "one"}, {}, "speaker of its train split"),
        (lambda r: {**r, "group": "room 1"}, {}, "group of its train split"),
        (lambda r: {**r, "label": "new" if r["split"] == "test" else r["label"]}, {}, "that training never had"),
        (lambda r: {**r, "label": "same"}, {}, "only one class"),
        (lambda r: r if r["split"] != "valid" else None, {}, "valid split of the task t has no utterances"),
        (lambda r: r, {"train": {"where": {"split": "trian"}}}, "has split: test, train, valid. Correct its 'where'"),
        (lambda r: r, {"name": "my task"}, "letters, digits, _, . and - alone"),
        (lambda r: {k: v for k, v in r.items() if k != "label"}, {}, "has no field 'label'"),
        (lambda r: r, {"test": {"where": {"part": "b"}}}, "has the field 'part'"),
        (lambda r: r, {"kind": "verification", "test": {"where": {"speaker": "s10"}}}, "two test speakers"),
    ],
)
def test_unfair_or_impossible_tasks_are_refused_in_one_sentence(words, tmp_path, change, fields, words_of_error):
    with pytest.raises(UserError, match=words_of_error) as error:
        task(rewritten(words, tmp_path, change), **fields)
    assert str(error.value).count("\n") == 0


def test_the_same_file_under_two_names_is_found(words, tmp_path):
    test = [r for r in read_manifest(words / "manifest.jsonl") if r.split == "train"][:9]
    write_manifest(tmp_path / "again.jsonl", test)
    with pytest.raises(UserError, match="recordings of its train split"):
        task(words / "manifest.jsonl", test={"source": str(tmp_path / "again.jsonl")})


def test_an_overlap_can_be_allowed_but_is_said_aloud(words, tmp_path):
    same = rewritten(words, tmp_path, lambda r: {**r, "speaker": "one"})
    config = TaskConfig(name="t", kind="classification", source=str(same))
    assert any(note.startswith("OVERLAP") for note in build_task(config, allow_overlap=True).notes)


def test_speaker_identification_tests_known_speakers(words, tmp_path):
    takes = rewritten(words, tmp_path, lambda r: {**r, "split": "test" if r["path"].endswith("2.wav") else "train"})
    known = task(takes, label="speaker", valid={"hold_out": 0.2})
    assert {e.target for e in known.test} <= {e.target for e in known.train}


def test_mistakes_in_a_task_file_name_the_field(tmp_path, words):
    file = tmp_path / "task.yaml"
    file.write_text("name: t\nkind: classification\nsauce: x\n")
    with pytest.raises(UserError, match=r"Unknown field 'sauce'.*Did you mean 'source'"):
        load_task(file)
    file.write_text("name: t\nkind: classification\ntrain: {were: {}}\n")
    with pytest.raises(UserError, match=r"Unknown field 'train.were'.*Did you mean 'where'"):
        load_task(file)
    file.write_text("name: t\nkind: slots\nsource: x\n")
    with pytest.raises(UserError, match="must list its slots"):
        load_task(file)
    file.write_text("name: t\nkind: classification\nsource: nowhere.jsonl\n")
    with pytest.raises(UserError, match=r"There is no speech at nowhere.jsonl"):
        load_task(file)
    with pytest.raises(UserError, match="There is no task file"):
        load_task(tmp_path / "tusk.yaml")


def test_relative_sources_start_at_the_task_file(words):
    file = words / "task.yaml"
    file.write_text("name: t\nkind: classification\nsource: manifest.jsonl\n")
    assert len(load_task(file).test) == 18


def test_the_fingerprint_changes_with_the_audio(words, tmp_path):
    import shutil

    shutil.copytree(words, tmp_path / "copy")
    first = task(tmp_path / "copy" / "manifest.jsonl").fingerprints
    file = next((tmp_path / "copy").glob("s11-*.wav"))
    file.write_bytes(file.read_bytes()[:-2] + b"\0\0")
    second = task(tmp_path / "copy" / "manifest.jsonl").fingerprints
    assert first["train"] == second["train"] and first["test"] != second["test"]


def test_shipped_task_examples_are_valid():
    from robustdistiller.files import read_mapping
    from robustdistiller.schema import validated

    examples = sorted((Path(__file__).parents[2] / "tasks").glob("*.yaml"))
    assert examples
    for file in examples:
        assert validated(TaskConfig, read_mapping(file, "task"), str(file)).name


def test_the_synthetic_intents_are_made_on_demand_and_share_no_voice(tmp_path, monkeypatch):
    from robustdistiller.synthetic import spoken

    pytest.importorskip("espeakng_loader")
    monkeypatch.setitem(spoken.SIZES, "tasks", spoken.Size((0, 0), (14, 14, 14), (3, 2, 3)))
    task = load_task(Path(__file__).parents[2] / "tasks/spoken-intents.yaml", cache=tmp_path)
    assert task.slots == ("action", "location", "object")
    voices = [{example.recording.extra["voice"].partition("+")[2] for example in task.part(name)} for name in PARTS]
    assert all(len(part) >= 2 for part in voices) and not voices[0] & voices[2] and not voices[0] & voices[1]
    config = TaskConfig.model_validate({"name": "x", "kind": "slots", "slots": ["slots"], "source": "synthetic:intent"})
    with pytest.raises(UserError, match="Did you mean 'intents'"):
        build_task(config, cache=tmp_path)
