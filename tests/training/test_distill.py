"""Laws of a run: resume equals a straight run, the same seed gives the same weights, validation is the same for everyone."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from robustdistiller.acoustics.environment import Environment
from robustdistiller.audio.batching import Crop
from robustdistiller.audio.manifest import Recording, read_manifest
from robustdistiller.config import EnvironmentConfig, load_recipe
from robustdistiller.errors import UserError
from robustdistiller.models.student import load_student
from robustdistiller.provenance import read_provenance
from robustdistiller.training import checkpoint as checkpoints
from robustdistiller.training.dataset import CropDataset
from robustdistiller.training.distill import distill
from robustdistiller.training.metrics_log import MetricsLog, append_rows, replaced_noises, validation_at
from robustdistiller.training.observer import Observer

FIELDS = [
    "student.feature_grad_mult=1.0", "data.crop_seconds=1.0", "data.batch_seconds=5.0", "data.valid_seconds=6",
    "data.workers=0", "data.valid_fraction=0.25", "environment.simulated_rooms=3",
    "objectives.enhancement.hidden=16", "objectives.enhancement.layers=1", "training.learning_rate=1e-3",
    "training.precision=fp32", "training.log_every=1", "training.valid_every=4", "training.save_every=3",
]  # fmt: skip


def make_recipe(checkpoint, speech, *overrides, kind="hubert"):
    values = [*FIELDS, "training.steps=6", *overrides]
    return load_recipe(None, values, teacher__model=str(checkpoint(kind)), data__speech=[str(speech)])


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints.available(run)[-1] / "model.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit; on a GPU to rounding, where cuDNN's LSTM adds its gradients in no fixed order."""
    assert one.keys() == other.keys()
    rounding = {"rtol": 1e-3, "atol": 1e-5} if torch.cuda.is_available() else {"rtol": 0.0, "atol": 0.0}
    for name in one:
        torch.testing.assert_close(one[name], other[name], **rounding, msg=name)


class StopAt(Observer):
    """An accident at a step."""

    def __init__(self, step: int):
        self.at = step

    def step(self, step, metrics):
        if step == self.at:
            raise RuntimeError("accident")


@pytest.fixture(scope="module")
def straight(checkpoint, speech, tmp_path_factory):
    run = tmp_path_factory.mktemp("straight") / "run"
    result = distill(make_recipe(checkpoint, speech), run)
    return run, result


@pytest.mark.parametrize("at", [1, 4, 5])
def test_resume_equals_a_straight_run(checkpoint, speech, straight, tmp_path, at):
    recipe = make_recipe(checkpoint, speech)
    with pytest.raises(RuntimeError, match="accident"):
        distill(recipe, tmp_path / "run", observer=StopAt(at))
    distill(recipe, tmp_path / "run", resume=True)
    assert_same(weights(tmp_path / "run"), weights(straight[0]))
    moments = [
        load_file(checkpoints.available(run)[-1] / "optimiser.safetensors") for run in (tmp_path / "run", straight[0])
    ]
    assert_same(*moments)
    assert_same(
        load_file(tmp_path / "run" / "student" / "model.safetensors"),
        load_file(straight[0] / "student" / "model.safetensors"),
    )
    changing = ("time", "train/seconds_per_step")
    curves = [
        [{k: v for k, v in row.items() if k not in changing} for row in lines(run / "metrics.jsonl")]
        for run in (tmp_path / "run", straight[0])
    ]
    close = 1e-3 if torch.cuda.is_available() else 0.0
    assert len(curves[0]) == len(curves[1])
    for row, other in zip(*curves, strict=True):
        assert row == pytest.approx(other, rel=close, abs=0.0)


def test_the_result_does_not_depend_on_the_loader_workers(checkpoint, speech, straight, tmp_path):
    distill(make_recipe(checkpoint, speech, "data.workers=2"), tmp_path / "run")
    assert_same(weights(tmp_path / "run"), weights(straight[0]))


def test_gradient_accumulation_is_a_larger_batch(checkpoint, speech, tmp_path):
    off = ["student.dropout=0", "objectives.enhancement.dropout=0", "training.steps=3"]
    distill(make_recipe(checkpoint, speech, *off, "data.batch_seconds=6"), tmp_path / "whole")
    distill(
        make_recipe(checkpoint, speech, *off, "data.batch_seconds=6", "data.microbatch_seconds=3"), tmp_path / "parts"
    )
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=2e-5, rtol=1e-3, msg=name)


def test_a_run_leaves_what_a_user_needs(straight, voice):
    run, result = straight
    assert result.student == run / "student" and result.progress.step == 6
    names = {path.name for path in (run / "student").iterdir()}
    assert names == {
        "config.json", "model.safetensors", "preprocessor_config.json", "heads.json", "heads.safetensors", "recipe.yaml",
        "provenance.json", "README.md",
    }  # fmt: skip
    assert (run / "recipe.yaml").is_file()
    assert json.loads((run / "run.json").read_text())["starts"][0]["teacher"].endswith(" (model.safetensors)")
    assert "model.safetensors; " in (run / "student" / "README.md").read_text()
    provenance = json.loads((run / "student" / "provenance.json").read_text())
    rows = lines(run / "manifests" / "speech-valid.jsonl")
    assert provenance["speakers"] and not {row["speaker"] for row in rows} & set(provenance["speakers"])
    wave = torch.tensor(voice(1.0))[None]
    plain = AutoModel.from_pretrained(run / "student").eval()
    ours = load_student(run / "student")
    with torch.no_grad():
        torch.testing.assert_close(ours.states(wave)[0][:, -1], plain(wave).last_hidden_state, atol=1e-5, rtol=0)
    assert result.metrics == validation_at(run, result.progress.best_step)
    assert {"si_sdr/in", "si_sdr/out", "distillation/clean", "l1/contaminated/layer3"} <= result.metrics.keys()


def test_a_student_was_trained_on_what_its_first_weights_were_too(checkpoint, speech, straight, tmp_path, record):
    """Else a test on speakers of the first training would pass for unseen."""
    other = record(tmp_path / "other", [1.0, 1.2, 1.1, 1.3], 1)
    other.write_text(re.sub(r'"s(\d)"', r'"t\1"', other.read_text()))
    first = straight[1].student
    recipe = make_recipe(checkpoint, other, f"student.init={first}", "training.steps=1", "environment.noise_kinds.white=0",
                         "environment.noise_kinds.recorded=0", "environment.noise_kinds.hum=1")  # fmt: skip
    again = distill(recipe, tmp_path / "run")
    before, after = read_provenance(first), read_provenance(again.student)
    assert before.speakers and before.speakers < after.speakers
    assert any(name.startswith("t") for name in after.speakers)
    assert "First weights: `run`," in (again.student / "README.md").read_text()  # not "student", which all are called
    assert after.noise_kinds == before.noise_kinds | {"hum"}
    assert str(first.name) in (again.student / "README.md").read_text()


def test_distillation_learns(checkpoint, speech, tmp_path):
    recipe = make_recipe(
        checkpoint,
        speech,
        "training.steps=60",
        "training.valid_every=30",
        "training.save_every=60",
        "student.init=random",
        "objectives.enhancement.tap=last",  # so that every term of the loss teaches every layer
    )
    distill(recipe, tmp_path / "run")
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert np.mean(losses[-10:]) < 0.85 * np.mean(losses[:5])
    held_out = [row["valid/distillation/contaminated"] for row in rows if "valid/distillation/contaminated" in row]
    assert held_out[-1] < held_out[0]


def test_validation_hears_the_same_whatever_a_recipe_trains_on(checkpoint, speech, tmp_path):
    plain = [
        "environment.noise=0",
        "environment.reverb=0",
        "environment.both=0",
        "objectives.enhancement.enabled=false",
    ]
    losses = []
    for name, overrides in (("robust", []), ("plain", plain)):
        # A learning rate of nothing leaves both students as they were initialised.
        recipe = make_recipe(checkpoint, speech, "training.steps=1", "training.learning_rate=1e-12", *overrides)
        losses.append(distill(recipe, tmp_path / name).metrics)
    for name in ("distillation/clean", "distillation/contaminated"):
        assert losses[0][name] == pytest.approx(losses[1][name], abs=1e-5)
    assert losses[0]["distillation/contaminated"] != pytest.approx(losses[0]["distillation/clean"], abs=1e-4)


@pytest.mark.parametrize("kind", ["wavlm", "wav2vec2", "data2vec-audio", "unispeech-sat", "whisper"])
def test_every_family_of_teachers_can_be_distilled(checkpoint, speech, tmp_path, kind):
    result = distill(make_recipe(checkpoint, speech, "training.steps=2", kind=kind), tmp_path / "run")
    assert np.isfinite(result.metrics["loss/contaminated"])


def test_mistakes_stop_before_any_work_with_one_sentence(checkpoint, speech, straight, tmp_path):
    recipe = make_recipe(checkpoint, speech)
    with pytest.raises(UserError, match="already holds a run"):
        distill(recipe, straight[0])
    with pytest.raises(UserError, match="no speech to learn from"):
        distill(recipe.model_copy(update={"data": recipe.data.model_copy(update={"speech": ()})}), tmp_path / "a")
    with pytest.raises(UserError, match="names no teacher"):
        distill(
            recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"model": None})}), tmp_path / "b"
        )
    with pytest.raises(UserError, match="3 layers, not 9"):
        distill(make_recipe(checkpoint, speech, "teacher.layers=[9]"), tmp_path / "c")
    with pytest.raises(UserError, match="layers=2, now 1"):
        distill(make_recipe(checkpoint, speech, "student.layers=1"), straight[0], resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        distill(recipe, tmp_path / "file")


def test_a_harmless_change_on_resume_is_named_and_accepted(checkpoint, speech, straight, caplog):
    before = weights(straight[0])
    changed = "training.log_every=2", "objectives.enhancement.window_seconds=0"
    distill(make_recipe(checkpoint, speech, *changed), straight[0], resume=True)
    assert "objectives.enhancement.window_seconds=0.0 instead of 1.28 (another loss" in caplog.text
    assert "training.log_every=2 instead of 1 (does not touch the result)" in caplog.text
    assert_same(weights(straight[0]), before)


def test_a_damaged_checkpoint_is_named(checkpoint, speech, tmp_path):
    recipe = make_recipe(checkpoint, speech, "training.steps=3")
    distill(recipe, tmp_path / "run")
    newest = checkpoints.available(tmp_path / "run")[-1]
    model = newest / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-100])
    with pytest.raises(UserError, match="delete that folder"):
        distill(recipe, tmp_path / "run", resume=True)


def test_recordings_that_vanish_in_mid_run_are_replaced_and_listed(checkpoint, speech, tmp_path):
    import shutil

    folder = shutil.copytree(speech.parent, tmp_path / "speech")

    class Vanish(Observer):
        def step(self, step, metrics):
            (folder / "6.wav").unlink(missing_ok=True)

    recipe = make_recipe(checkpoint, folder / "manifest.jsonl", "data.valid_fraction=0.01", "training.steps=8")
    distill(recipe, tmp_path / "run", observer=Vanish())
    rows = lines(tmp_path / "run" / "skipped.jsonl")
    assert rows and all(row["reason"] == "missing" and row["path"].endswith("6.wav") for row in rows)


def test_noise_that_white_noise_replaces_is_counted(speech, tmp_path):
    recordings = read_manifest(speech)
    gone = Recording("gone", str(tmp_path / "gone.wav"), 3.0)
    config = EnvironmentConfig(clean=0, reverb=0, both=0, noise=1, noise_kinds={"recorded": 1, "white": 0})
    dataset = CropDataset(recordings, Environment.build(config, [gone]))
    log = MetricsLog(tmp_path, 0)
    assert replaced_noises(tmp_path) == 0
    for number in range(3):
        _, scene, *_, rows = dataset._read(7, Crop(number, 0, 0, 8000))
        assert scene.noises[0].kind == "white"
        append_rows(tmp_path / "skipped.jsonl", rows)
    log.close()
    assert replaced_noises(tmp_path) == 3
    assert [row["id"] for row in lines(tmp_path / "skipped.jsonl")] == [r.id for r in recordings[:3]]


def test_rows_after_the_checkpoint_are_dropped_on_resume(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, {"train/loss": step})
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 4, "tra')  # cut by a kill
    MetricsLog(tmp_path, 2).close()
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [1, 2]


def test_what_a_student_was_trained_on_is_told_by_its_provenance_whatever_recipe_made_it(straight, tmp_path):
    folder = tmp_path / "student"
    shutil.copytree(straight[0] / "student", folder)
    (folder / "recipe.yaml").write_text("objectives: {of another version: 1}\n")
    assert read_provenance(folder) == read_provenance(straight[0] / "student")
    assert read_provenance(folder).noise_kinds
