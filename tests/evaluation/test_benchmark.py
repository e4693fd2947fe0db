"""Laws of the benchmark: repeatable, resumable, checkable from its files, and never a test of what was trained on."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from robustdistiller.config import EnhancementConfig, StudentConfig
from robustdistiller.errors import UserError
from robustdistiller.evaluation.baselines import LogMel
from robustdistiller.evaluation.benchmark import Settings, _Benchmark, evaluate
from robustdistiller.evaluation.evaluated import open_models
from robustdistiller.evaluation.features import FeatureStream, reduce_states
from robustdistiller.evaluation.task_heads import HeadConfig
from robustdistiller.evaluation.tasks import TaskConfig, load_folds
from robustdistiller.files import read_jsonl
from robustdistiller.models.building import build_student
from robustdistiller.models.teacher import load_teacher

FAST = Settings(
    seeds=2, replicates=300, similarity=4,
    heads=HeadConfig(learning_rates=(1e-3,), weight_decays=(1e-2,), epochs=4, steps=60),
)  # fmt: skip
CONDITIONS = {
    "name": "small",
    "noise": {
        "sources": [{"name": "white", "kind": "white"}, {"name": "recorded", "kind": "recorded"}],
        "snr_db": [0, 20],
    },
    "rooms": {"sources": [{"name": "simulated", "simulated": 2}], "t60": [[0.2, 0.5]]},
}


@pytest.fixture(scope="module")
def conditions(tmp_path_factory):
    file = tmp_path_factory.mktemp("conditions") / "small.yaml"
    file.write_text(yaml.safe_dump(CONDITIONS))
    return file


@pytest.fixture
def config(words):
    return TaskConfig(name="words", kind="classification", source=str(words / "manifest.jsonl"))


@pytest.fixture(scope="module")
def student(checkpoint, tmp_path_factory):
    """A function that writes the folder of a tiny student with the provenance asked."""
    teacher = load_teacher(str(checkpoint("hubert")), precision="fp32")
    made, _ = build_student(teacher, StudentConfig(), EnhancementConfig(hidden=16, layers=1))

    def write(**exposure):
        folder = tmp_path_factory.mktemp("run") / "tiny" / "student"
        provenance = {"speakers": [], "noise_groups": [], "room_groups": [], **exposure}
        made.eval().save(folder, {"provenance.json": json.dumps(provenance)})
        return str(folder)

    return write


def figures(result, metric="accuracy"):
    return {(f["model"], f["condition"]): f for t in result["tasks"] for f in t["figures"] if f["metric"] == metric}


def files_below(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_command_gives_the_same_files_from_scratch_and_again(config, conditions, noises, tmp_path):
    runs = []
    for out in ("one", "two", "one"):
        result = evaluate(["log-mel", "mfcc"], [config], conditions, tmp_path / out, noise=[str(noises)], settings=FAST)
        runs.append((result, files_below(tmp_path / out)))
    assert runs[0][0] == runs[1][0] == runs[2][0]
    assert runs[0][1] == runs[1][1] == runs[2][1]


def test_every_figure_can_be_recomputed_from_the_predictions(config, conditions, noises, tmp_path):
    result = evaluate(["log-mel", "mfcc"], [config], conditions, tmp_path, noise=[str(noises)], settings=FAST)
    found = figures(result)
    assert found["log-mel", "clean"]["value"] > 0.8
    for model in ("log-mel", "mfcc"):
        for condition in ("clean", "white_0dB", "simulated_0.2-0.5s"):
            lines = (tmp_path / "predictions" / "words" / model / f"{condition}.jsonl").read_text().splitlines()
            rows = [json.loads(line) for line in lines]
            right = np.mean([[answer == row["target"] for answer in row["predictions"]] for row in rows])
            assert found[model, condition]["value"] == pytest.approx(right)
            assert found[model, condition]["low"] <= right <= found[model, condition]["high"]
        parts = [c["name"] for c in result["conditions"] if c["kind"] == "noise"]
        mean = np.mean([found[model, name]["value"] for name in parts])
        assert found[model, "mean:noise"]["value"] == pytest.approx(mean)
    confusion = next(c for c in result["tasks"][0]["confusion"] if (c["model"], c["condition"]) == ("log-mel", "clean"))
    trace = np.trace(confusion["counts"]) / np.sum(confusion["counts"])
    assert trace == pytest.approx(found["log-mel", "clean"]["value"], abs=1e-3)


def test_predictions_follow_from_the_stored_features_and_heads_alone(config, conditions, tmp_path):
    """Computed anew with NumPy: standardise, mix the states, project, answer."""
    evaluate(["log-mel"], [config], conditions, tmp_path, settings=replace(FAST, similarity=0, save_audio=0))
    heads = load_file(tmp_path / "heads" / "words" / "log-mel.safetensors")
    for name, about in (("clean", "test, clean"), ("white_0dB", "test, white 0 dB")):
        keys = [(file.parent, json.loads(file.read_text())) for file in (tmp_path / "features").glob("*/key.json")]
        (states,) = (np.load(folder / "features.npy") for folder, key in keys if key["about"].endswith(about))
        rows = [row for _, row in read_jsonl(tmp_path / "predictions" / "words" / "log-mel" / f"{name}.jsonl")]
        for k in range(FAST.seeds):
            part = {key.partition(".")[2]: value.numpy() for key, value in heads.items() if key.startswith(f"{k}.")}
            shares = np.exp(part["mix.weights"]) / np.exp(part["mix.weights"]).sum()
            mixed = np.einsum("nsd,s->nd", (states - part["mix.mean"]) / part["mix.deviation"], shares)
            hidden = mixed @ part["project.weight"].T + part["project.bias"]
            best = (hidden @ part["answers.0.weight"].T + part["answers.0.bias"]).argmax(1)
            assert [row["predictions"][k][0] for row in rows] == [("high", "low", "middle")[code] for code in best]


def test_an_interrupted_benchmark_goes_on_and_ends_the_same(config, conditions, tmp_path, monkeypatch):
    straight = evaluate(["log-mel"], [config], conditions, tmp_path / "straight", settings=FAST)
    finish = FeatureStream.finish
    calls = []

    def failing(self, plan):
        calls.append(self)
        if len(calls) == 4:
            raise KeyboardInterrupt
        finish(self, plan)

    monkeypatch.setattr(FeatureStream, "finish", failing)
    with pytest.raises(KeyboardInterrupt):
        evaluate(["log-mel"], [config], conditions, tmp_path / "broken", settings=FAST)
    monkeypatch.undo()
    assert evaluate(["log-mel"], [config], conditions, tmp_path / "broken", settings=FAST) == straight
    assert files_below(tmp_path / "straight") == files_below(tmp_path / "broken")


def test_a_model_joins_later_without_repeating_the_others(config, conditions, tmp_path, monkeypatch):
    evaluate(["log-mel"], [config], conditions, tmp_path, settings=FAST)
    heard = []
    states = type(open_models(["log-mel"])[0]).states
    monkeypatch.setattr(
        "robustdistiller.evaluation.evaluated.EvaluatedModel.states",
        lambda self, wave, lengths: heard.append(self.name) or states(self, wave, lengths),
    )
    result = evaluate(["log-mel", "mfcc"], [config], conditions, tmp_path, settings=FAST, reference="mfcc")
    assert heard.count("log-mel") == 1  # when it is opened
    assert figures(result)["log-mel", "clean"]["against"] == "mfcc"


def test_a_folder_that_was_copied_is_not_measured_anew(config, conditions, words, tmp_path, monkeypatch):
    few = replace(FAST, seeds=1, similarity=2)
    wanted = evaluate(["log-mel"], [config], conditions, tmp_path / "first", settings=few)
    shutil.copytree(words, tmp_path / "second" / "words", copy_function=shutil.copyfile)
    shutil.copytree(tmp_path / "first", tmp_path / "second" / "results", copy_function=shutil.copyfile)
    moved = config.model_copy(update={"source": str(tmp_path / "second" / "words" / "manifest.jsonl")})
    monkeypatch.setattr(FeatureStream, "finish", lambda *arguments: pytest.fail("computed anew"))
    found = evaluate(["log-mel"], [moved], conditions, tmp_path / "second" / "results", settings=few)
    assert figures(found) == figures(wanted)


def test_progress_ends_where_it_said(config, conditions, tmp_path):
    for _ in range(2):  # the second time everything is there already
        seen = []
        evaluate(
            ["log-mel"], [config], conditions, tmp_path, settings=FAST, progress=lambda *x, seen=seen: seen.append(x)
        )
        assert seen[-1][0] == seen[-1][1] and len({total for _, total in seen}) == 1
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_students_teachers_and_baselines_run_side_by_side(
    config, conditions, student, checkpoint, words, tmp_path, monkeypatch
):
    monkeypatch.setattr("robustdistiller.evaluation.benchmark.available_quality", lambda: ["si_sdr"])
    quality = TaskConfig(name="quality", kind="enhancement", source=config.source, measures=("si_sdr", "pesq"))
    models = [student(), f"big={checkpoint('hubert')}", "log-mel"]
    result = evaluate(models, [config, quality], conditions, tmp_path, settings=FAST, predictions=True)
    told = {m["name"]: m for m in result["models"]}
    assert [m["kind"] for m in told.values()] == ["student", "teacher", "baseline"] and list(told)[:2] == [
        "tiny",
        "big",
    ]
    assert told["tiny"]["states"][:2] == ["cnn", "layer 1"] and told["tiny"]["states"][-1].startswith(
        "prediction of layer"
    )
    weights = {head["model"]: head["weights"] for head in result["tasks"][0]["heads"]}
    for name, values in weights.items():
        assert len(values) == len(told[name]["states"]) and sum(values) == pytest.approx(1, abs=1e-3)
    si_sdr = figures(result, "si_sdr")
    assert {model for model, _ in si_sdr} == {"unprocessed", "tiny"}
    assert si_sdr["unprocessed", "white_0dB"]["value"] == pytest.approx(0, abs=0.5)
    assert si_sdr["unprocessed", "clean"]["value"] > 80
    assert "quality: pesq left out, because the package is not installed here." in result["notes"]
    assert any("log-mel cannot enhance" in note or "log-mel" in note for note in result["notes"])
    assert {row["model"] for row in result["tasks"][0]["similarity"]} == set(told)


def test_without_labels_there_is_still_a_score(conditions, words, tmp_path):
    result = evaluate(["log-mel"], [], conditions, tmp_path, speech=str(words / "manifest.jsonl"), settings=FAST)
    rows = {row["condition"]: row for row in result["tasks"][0]["similarity"]}
    assert rows["white_20dB"]["cosine"][0] > rows["white_0dB"]["cosine"][0]
    assert rows["white_20dB"]["cka"][0] > rows["white_0dB"]["cka"][0]


@pytest.mark.parametrize(
    ("kind", "fields", "metric", "limit"),
    [
        ("slots", {"slots": ["slots"]}, "accuracy", None),
        ("verification", {"trials": 60}, "eer", 0.6),
        ("ctc", {"text": "text", "units": "phones"}, "per", None),
    ],
)
def test_every_kind_of_task_is_measured(words, conditions, tmp_path, kind, fields, metric, limit):
    config = TaskConfig.model_validate({"name": kind, "kind": kind, "source": str(words / "manifest.jsonl"), **fields})
    settings = replace(FAST, seeds=1, heads=replace(FAST.heads, epochs=2))
    result = evaluate(["log-mel"], [config], conditions, tmp_path, settings=settings)
    figure = figures(result, metric)["log-mel", "clean"]
    assert figure["low"] <= figure["value"] <= figure["high"] and (limit is None or figure["value"] <= limit)
    if kind == "ctc":  # frames of test conditions do not stay on the disk
        about = [json.loads(p.read_text())["about"] for p in (tmp_path / "features").glob("*/key.json")]
        assert about and not any(" test, " in text for text in about)


def test_folds_are_scored_together(words, conditions, tmp_path):
    config = TaskConfig(name="words", kind="classification", source=str(words / "manifest.jsonl"), folds="split")
    result = evaluate(["log-mel"], [config], conditions, tmp_path, settings=FAST)
    rows = [
        json.loads(line)
        for fold in ("train", "valid", "test")
        for line in (tmp_path / "predictions" / f"words-{fold}" / "log-mel" / "clean.jsonl").read_text().splitlines()
    ]
    assert len(rows) == result["tasks"][0]["utterances"]["test"] == 108
    right = np.mean([[answer == row["target"] for answer in row["predictions"]] for row in rows])
    assert figures(result)["log-mel", "clean"]["value"] == pytest.approx(right)


def test_folds_share_the_clean_features_of_their_utterances(words, conditions, tmp_path, monkeypatch):
    """Each utterance is computed once a condition, and each fold gets those of its own."""
    counted, checked, extract = [], [], _Benchmark._extract

    class Counting(LogMel):
        name, digest, num_parameters, state_names = "counting", "counting", 0, ("mel",)

        def states(self, wave, lengths):
            counted.append(len(wave))
            return super().states(wave, lengths)

    def spy(self, models, task, part, condition, pooled):
        found = extract(self, models, task, part, condition, pooled)
        if task.fold_of and condition.kind == "clean" and found:
            (features,) = found.values()
            assert len(features) == len(task.part(part))
            states, frames = LogMel().states(*self.stage.load(task.part(part)[-3:], task))
            np.testing.assert_allclose(features.rows[-3:], reduce_states(states, frames, True)[0], atol=1e-5)
            checked.append(part)
        return found

    monkeypatch.setattr(_Benchmark, "_extract", spy)
    config = TaskConfig(name="words", kind="classification", source=str(words / "manifest.jsonl"), folds=3)
    result = evaluate([Counting()], [config], conditions, tmp_path, settings=replace(FAST, similarity=0, save_audio=0))
    assert sorted(checked) == sorted(["train", "valid", "test"] * 3)
    assert sum(counted[1:]) == 108 * len(result["conditions"])  # the first was asked when the model was opened


def test_similarity_is_told_beside_the_features_and_afterwards_alike(config, conditions, tmp_path):
    """No utterance is computed twice for it, and what is missing later comes out the same."""
    counted = []

    class Counting(LogMel):
        name, digest, num_parameters, state_names = "counting", "counting", 0, ("mel",)

        def states(self, wave, lengths):
            counted.append(len(wave))
            return super().states(wave, lengths)

    result = evaluate([Counting()], [config], conditions, tmp_path, settings=replace(FAST, save_audio=0))
    parts = result["tasks"][0]["utterances"]
    every = parts["train"] + parts["valid"] + parts["test"] * len(result["conditions"])
    assert sum(counted[1:]) == every + FAST.similarity  # the clean ones that the others are compared with
    shutil.rmtree(tmp_path / "similarity")
    assert evaluate([Counting()], [config], conditions, tmp_path, settings=replace(FAST, save_audio=0)) == result


def test_speakers_are_dealt_into_folds_and_every_sentence_is_tested_once(words, conditions, tmp_path):
    config = TaskConfig(name="words", kind="classification", source=str(words / "manifest.jsonl"), folds=3)
    result = evaluate(["log-mel"], [config], conditions, tmp_path, settings=replace(FAST, similarity=0, save_audio=0))
    folds = []
    for fold in range(3):
        file = tmp_path / "predictions" / f"words-{fold}" / "log-mel" / "clean.jsonl"
        folds.append([json.loads(line) for line in file.read_text().splitlines()])
    ids = [row["id"] for rows in folds for row in rows]
    assert len(ids) == len(set(ids)) == result["tasks"][0]["utterances"]["test"] == 108
    assert all(len({row["speaker"] for row in rows}) == 4 for rows in folds)
    right = np.mean([[answer == row["target"] for answer in row["predictions"]] for rows in folds for row in rows])
    assert figures(result)["log-mel", "clean"]["value"] == pytest.approx(right)


def test_slots_are_told_one_by_one_and_together(words, conditions, tmp_path):
    config = TaskConfig(name="orders", kind="slots", slots=("slots",), source=str(words / "manifest.jsonl"))
    result = evaluate(["log-mel"], [config], conditions, tmp_path, settings=replace(FAST, similarity=0, save_audio=0))
    lines = (tmp_path / "predictions" / "orders" / "log-mel" / "white_0dB.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    right = np.array([[np.equal(found, row["target"]) for found in row["predictions"]] for row in rows])
    value = {name: figures(result, name)["log-mel", "white_0dB"]["value"]
             for name in ("accuracy", "slots", "slot:manner", "slot:word")}  # fmt: skip
    assert value["accuracy"] == pytest.approx(right.all(-1).mean()) and value["slots"] == pytest.approx(right.mean())
    assert [value["slot:manner"], value["slot:word"]] == pytest.approx(right.mean((0, 1)).tolist())


def test_phones_are_told_frame_by_frame(words, conditions, tmp_path):
    rows = [json.loads(line) for line in (words / "manifest.jsonl").read_text().splitlines()]
    for row in rows:  # each half of a word is a tone of its own; the last 50 ms have no phone
        half, end = row["duration"] / 2, row["duration"] - 0.05
        row |= {"path": str(words / row["path"]), "phones": [[0, half, row["label"]], [half, end, f"{row['label']} 2"]]}
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TaskConfig(name="phones", kind="frames", text="phones", source=str(tmp_path / "m.jsonl"))
    result = evaluate(["log-mel"], [config], conditions, tmp_path / "out", settings=FAST)
    found = figures(result, "frame_accuracy")
    assert found["log-mel", "clean"]["value"] > 0.8 > 0.6 > found["log-mel", "white_0dB"]["value"] > 1 / 6
    lines = (tmp_path / "out" / "predictions" / "phones" / "log-mel" / "clean.jsonl").read_text().splitlines()
    one, row = json.loads(lines[0]), next(row for row in rows if row["split"] == "test")
    counted = [unit for unit in one["target"] if unit]
    assert one["id"] == row["id"] and len(counted) == sum(0.02 * f + 0.0125 < row["duration"] - 0.05 for f in range(99))


def test_trainings_of_a_group_are_one_model_with_the_spread_of_its_seeds(config, conditions, student, tmp_path):
    folders = [student(), student()]
    models = [f"tiny-{k}={folder}" for k, folder in enumerate(folders)]
    with torch.no_grad():
        for folder in folders[1:]:
            file = Path(folder) / "model.safetensors"
            weights = load_file(file)
            save_file({name: value + 0.03 * torch.randn_like(value) for name, value in weights.items()}, file,
                      metadata={"format": "pt"})  # fmt: skip
    few = replace(FAST, similarity=2, save_audio=0)
    alone = figures(evaluate(models, [config], conditions, tmp_path, settings=few))
    result = evaluate(["log-mel"], [config], conditions, tmp_path, groups={"tiny": models}, settings=few)
    found = figures(result)
    assert {model for model, _ in found} == {"log-mel", "tiny"} == {m["name"] for m in result["models"]}
    for condition in ("clean", "white_0dB", "mean:contaminated"):
        both = [alone[f"tiny-{k}", condition]["value"] for k in range(2)]
        assert found["tiny", condition]["value"] == pytest.approx(np.mean(both))
        assert found["tiny", condition]["training_std"] == pytest.approx(np.std(both, ddof=1))
        assert found["tiny", condition]["difference_low"] <= found["tiny", condition]["difference_value"]
    assert result["models"][1]["trainings"] == ["tiny-0", "tiny-1"]
    with pytest.raises(UserError, match="No folder fits"):
        evaluate([], [config], conditions, tmp_path, groups={"x": str(tmp_path / "no-*")}, settings=few)
    with pytest.raises(UserError, match="differ in shape"):
        evaluate([], [config], conditions, tmp_path, groups={"x": ["log-mel", "mfcc"]}, settings=few)


def test_rows_that_were_cut_are_made_again(config, conditions, tmp_path):
    first = evaluate(["log-mel"], [config], conditions, tmp_path, settings=FAST)
    for file in (tmp_path / "predictions").rglob("*.jsonl"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert evaluate(["log-mel"], [config], conditions, tmp_path, settings=FAST) == first


def test_strange_names_stay_in_the_folder_and_share_no_file(words, conditions, tmp_path):
    rows = [json.loads(line) for line in (words / "manifest.jsonl").read_text().splitlines()]
    rows = [{**row, "path": str(words / row["path"]), "id": f"../../{row['path']}"} for row in rows]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="'name'"):
        load_folds(_file(tmp_path, {"name": "..", "kind": "classification"}))
    config = TaskConfig(name="words", kind="classification", source=str(tmp_path / "m.jsonl"))
    models = ["a b=log-mel", "a_b=mfcc", "..=log-mel"]
    few = replace(FAST, seeds=1, similarity=0)
    result = evaluate(models, [config], conditions, tmp_path / "deep" / "out", settings=few)
    assert {p.name for p in tmp_path.iterdir()} == {"m.jsonl", "deep", "task.yaml"}
    assert {p.name for p in (tmp_path / "deep").iterdir()} == {"out"}
    assert len(list((tmp_path / "deep" / "out" / "predictions" / "words").iterdir())) == len(models)
    assert figures(result)["a b", "clean"]["value"] == figures(result)["..", "clean"]["value"]


def _file(folder, values):
    (folder / "task.yaml").write_text(yaml.safe_dump(values))
    return folder / "task.yaml"


def test_a_task_may_be_called_speech(config, conditions, words, tmp_path):
    named = config.model_copy(update={"name": "speech"})
    few = replace(FAST, seeds=1, similarity=2, save_audio=0)
    seen = []
    result = evaluate(
        ["log-mel"], [named], conditions, tmp_path, speech=str(words / "manifest.jsonl"), settings=few,
        progress=lambda *counts: seen.append(counts),
    )  # fmt: skip
    assert [task["kind"] for task in result["tasks"]] == ["classification", "unlabelled"] and figures(result)
    assert len({task["name"] for task in result["tasks"]}) == 2
    assert all(note.startswith(("speech: ", "speech-unlabelled: ")) for note in result["notes"] if "speakers" in note)
    assert seen[-1][0] == seen[-1][1]


def test_heads_may_be_trained_on_contaminated_speech(config, conditions, noises, tmp_path):
    settings = replace(FAST, train_on="contaminated")
    result = evaluate(["log-mel"], [config], conditions, tmp_path, noise=[str(noises)], settings=settings)
    clean = evaluate(["log-mel"], [config], conditions, tmp_path, noise=[str(noises)], settings=FAST)
    noisy = ("log-mel", "mean:noise")
    assert figures(result)[noisy]["value"] > figures(clean)[noisy]["value"]


def test_what_a_student_was_trained_on_is_not_tested_as_unseen(config, conditions, noises, student, tmp_path):
    def run(folder, **options):
        return evaluate([folder], [config], conditions, tmp_path, noise=[str(noises)], settings=FAST, **options)

    with pytest.raises(UserError, match=r"tiny was trained on 1 speaker.*\(for example s11\)"):
        run(student(speakers=["s11", "s00"]))
    with pytest.raises(UserError, match=r"1 noise recording.*take4"):
        run(student(noise_groups=["take4", "take0"]))
    result = run(student(speakers=["s11"]), allow_overlap=True)
    assert any(note.startswith("OVERLAP: The student tiny") for note in result["notes"])


def test_kinds_of_noise_that_training_had_are_remarked_where_they_count_as_unseen(config, student, tmp_path):
    file = tmp_path / "made.yaml"
    sources = [{"name": "crowd", "kind": "babble"}, {"name": "hiss", "kind": "white", "seen": True}]
    file.write_text(yaml.safe_dump({"name": "made", "noise": {"sources": sources, "snr_db": [10]}}))
    folder = student(noise_kinds=["babble", "white", "rain"])
    notes = evaluate([folder], [config], file, tmp_path / "out", settings=FAST)["notes"]
    assert any("tiny was trained on babble noise" in note for note in notes)


class Loudness:
    """A model of one's own: a single number per frame."""

    name, digest, num_parameters, state_names = "loudness", "1", 0, ("energy",)

    def states(self, wave, lengths):
        energy = wave.unfold(1, 400, 320).square().mean(-1).add(1e-9).log()
        return energy[:, None, :, None], (lengths - 400) // 320 + 1


def test_an_object_with_states_is_a_model_too(config, conditions, tmp_path):
    result = evaluate([Loudness(), "log-mel"], [config], conditions, tmp_path, settings=FAST)
    found = figures(result)
    assert found["loudness", "clean"]["value"] < found["log-mel", "clean"]["value"]
    assert result["models"][0]["states"] == ["energy"]


def test_models_that_cannot_be_compared_are_refused(config, conditions, tmp_path, monkeypatch):
    def run(*models, **options):
        evaluate(list(models), [config], conditions, tmp_path, settings=FAST, **options)

    with pytest.raises(UserError, match=r"There is no model log-mell.*Did you mean 'log-mel'"):
        run("log-mell")
    with pytest.raises(UserError, match="Two models are called log-mel"):
        run("log-mel", "log-mel")
    with pytest.raises(UserError, match="reference mffc is none of log-mel"):
        run("log-mel", reference="mffc")
    with pytest.raises(UserError, match="no model to evaluate"):
        run()
    from robustdistiller.evaluation.baselines import LogMel

    states = LogMel.states
    monkeypatch.setattr(
        LogMel, "states", lambda *a: tuple(x[..., ::2, :] if x.dim() == 4 else x // 2 for x in states(*a))
    )
    with pytest.raises(UserError, match=r"gives 24\.5 frames per second where the benchmark needs 50"):
        run("log-mel")


def test_a_missing_file_is_told_before_any_work(words, conditions, tmp_path):
    rows = [json.loads(line) for line in (words / "manifest.jsonl").read_text().splitlines()]
    rows = [{**row, "path": str(words / row["path"])} for row in rows]
    rows[5]["path"] = "/nowhere/else.wav"
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TaskConfig(name="words", kind="classification", source=str(tmp_path / "m.jsonl"))
    with pytest.raises(UserError, match=r"1 of 108 files .* do not exist \(first: /nowhere/else.wav\)"):
        evaluate(["log-mel"], [config], conditions, tmp_path / "out", settings=FAST)
    assert not (tmp_path / "out").exists()


def test_a_task_without_anything_to_measure_is_refused(conditions, tmp_path, config):
    with pytest.raises(UserError, match="nothing to evaluate on"):
        evaluate(["log-mel"], [], conditions, tmp_path)
    with pytest.raises(UserError, match="Two tasks have the same name"):
        evaluate(["log-mel"], [config, config], conditions, tmp_path)


def test_audio_of_every_condition_is_written(config, conditions, tmp_path):
    from robustdistiller.audio.io import read_audio

    result = evaluate(["log-mel"], [config], conditions, tmp_path, settings=replace(FAST, save_audio=2))
    clips = result["tasks"][0]["audio"]
    assert len({c["utterance"] for c in clips}) == 2 and len(clips) == 2 * len(result["conditions"])
    clean, noisy = (read_audio(tmp_path / c["file"]) for c in clips[:2])
    assert len(clean) == len(noisy) and not np.allclose(clean, noisy, atol=1e-3)


def test_the_digest_of_a_model_follows_its_weights(student):
    folder = student()
    first, again = open_models([folder])[0], open_models([folder])[0]
    assert first.digest == again.digest
    with torch.no_grad():
        next(first.network.encoder.parameters()).add_(1e-3)
    from robustdistiller.evaluation.evaluated import _digest

    assert _digest(first.network, first.state_names) != again.digest


SHARED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_benchmark import FAST
from robustdistiller.evaluation.benchmark import evaluate
from robustdistiller.distributed import Distributed
_, _, tasks, conditions, noise, student, out = sys.argv
models = ["log-mel", "mfcc", f"tiny={student}"]
result = evaluate(
    models, tasks.split(","), conditions, out, noise=[noise], settings=FAST, ranks=Distributed.launched()
)
assert len(result["tasks"]) == 3
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_leave_the_files_of_one(words, conditions, noises, student, tmp_path):
    tasks = []
    for name, kind in (("words", "classification"), ("again", "classification"), ("cleaner", "enhancement")):
        measures = {"measures": ["si_sdr"]} if kind == "enhancement" else {}
        config = {"name": name, "kind": kind, "source": str(words / "manifest.jsonl"), **measures}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
        tasks.append(str(tmp_path / f"{name}.yaml"))
    (tmp_path / "shared.py").write_text(SHARED)
    material = [str(Path(__file__).parent), ",".join(tasks), str(conditions), str(noises), student()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for processes in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if processes == 2 else []
        command = [sys.executable, *launcher, str(tmp_path / "shared.py"), *material, str(tmp_path / f"by{processes}")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=290)
        assert done.returncode == 0, done.stderr[-3000:]
    alone, shared = (files_below(tmp_path / f"by{processes}") for processes in (1, 2))
    assert alone.keys() == shared.keys() and any(name.startswith("heads/") for name in alone)
    assert [name for name in alone if alone[name] != shared[name]] == []
