"""Laws of a run in trouble: what is not finite is not learnt from, and whoever dies is named."""

import json
import math
import os
import pickle
import select
import shutil
import signal
import threading
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import make_recipe, make_speech

from robustdistiller.audio.sharding import write_shards
from robustdistiller.distributed import Distributed
from robustdistiller.errors import UserError
from robustdistiller.evaluation.benchmark import evaluate
from robustdistiller.files import exclusive
from robustdistiller.training import checkpoint as checkpoints
from robustdistiller.training import dataset as data
from robustdistiller.training import distill as task
from robustdistiller.training.distill import distill
from robustdistiller.training.metrics_log import validation_at
from robustdistiller.training.step_guard import FiniteGuard
from robustdistiller.training.worker_activity import WorkerActivity, name_dead_worker


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return make_speech(tmp_path_factory.mktemp("speech"))


@pytest.fixture
def recipe(checkpoint, speech):
    """recipe(*overrides) → a `Recipe` of the tiny run."""
    return lambda *overrides: make_recipe(checkpoint("hubert"), speech, *overrides)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def tensors(run, name="model.safetensors"):
    return load_file(checkpoints.available(run)[-1] / name)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def poison(monkeypatch, which, value=math.nan):
    """Make the L1 term of every utterance for which `which(clean row)` holds `value`."""
    sound = task.total_loss

    def total(config, output, target, clean):
        loss = sound(config, output, target, clean)
        factor = torch.tensor([value if which(row) else 1.0 for row in clean])
        loss.terms["l1"] = loss.terms["l1"] * factor[:, None]
        loss.total = loss.total * factor
        return loss

    monkeypatch.setattr(task, "total_loss", total)
    return sound


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_skipped_counted_and_written_down(recipe, tmp_path, monkeypatch, precision, value):
    poison(monkeypatch, lambda row: row.abs().max() > 0.9, value)
    result = distill(recipe(f"training.precision={precision}"), tmp_path / "run")
    rows = lines(tmp_path / "run" / "non_finite.jsonl")
    assert result.progress.step == 8 and 0 < result.progress.skipped_steps == len(rows) < 8
    assert all(row["utterances"] == ["3"] and row["terms"] == ["l1"] and not row["source"] for row in rows)
    for name in checkpoints.TENSORS:
        assert all(torch.isfinite(value).all() for value in tensors(tmp_path / "run", name).values())
    metrics = [row for row in lines(tmp_path / "run" / "metrics.jsonl") if "train/skipped_steps" in row]
    assert metrics[-1]["train/skipped_steps"] == len(rows)
    assert all(math.isfinite(value) for row in metrics for value in row.values())
    assert sum("train/loss" not in row for row in metrics) == len(rows)


def test_several_in_a_row_stop_with_utterances_and_terms_and_the_run_can_go_on(recipe, tmp_path, monkeypatch):
    sound = poison(monkeypatch, lambda row: True)
    monkeypatch.setattr(task, "total_loss", sound)
    distill(recipe("training.steps=2"), tmp_path / "run")
    before = tensors(tmp_path / "run")
    poison(monkeypatch, lambda row: True)
    with pytest.raises(
        UserError, match=r"loss was not finite 5 steps in a row.*terms l1 of .*goes on from step 2"
    ) as caught:
        distill(recipe(), tmp_path / "run", resume=True)
    assert (
        "input and targets are finite, so the student overflows" in str(caught.value)
        and str(caught.value).isprintable()
    )
    assert_same(tensors(tmp_path / "run"), before)
    monkeypatch.setattr(task, "total_loss", sound)
    assert distill(recipe(), tmp_path / "run", resume=True).progress.step == 8


def test_a_gradient_that_overflows_alone_names_its_parameters(recipe, tmp_path, monkeypatch):
    build = task.build_student

    def built(*arguments):
        student, report = build(*arguments)
        student.heads.shared.weight.register_hook(lambda gradient: gradient * math.inf)
        return student, report

    monkeypatch.setattr(task, "build_student", built)
    with pytest.raises(UserError, match=r"gradient was not finite 5 steps.*such as heads\.shared\.weight"):
        distill(recipe(), tmp_path / "run")
    assert lines(tmp_path / "run" / "non_finite.jsonl")[0]["terms"] == []


def test_a_teacher_that_overflows_is_to_blame(recipe, tmp_path, monkeypatch):
    forward = task.Teacher.forward

    def overflow(self, *arguments):
        output = forward(self, *arguments)
        output.hidden = output.hidden * math.inf
        return output

    monkeypatch.setattr(task.Teacher, "forward", overflow)
    with pytest.raises(UserError, match="already in the teacher's targets"):
        distill(recipe(), tmp_path / "run")


def test_a_spike_is_seen_in_the_metrics_however_rarely_they_are_written(recipe, tmp_path, monkeypatch):
    poison(monkeypatch, lambda row: row.abs().max() > 0.9, 1000.0)
    distill(recipe("training.log_every=8"), tmp_path / "run")
    row = lines(tmp_path / "run" / "metrics.jsonl")[0]
    assert row["train/loss_peak"] > 1.5 * row["train/loss"] and row["train/grad_norm_peak"] > row["train/grad_norm"]


def test_a_validation_that_is_not_finite_is_never_the_best(recipe, tmp_path, monkeypatch):
    judged = iter([math.nan, 2.0, math.nan, 3.0])
    measure = task.Validator.__call__
    monkeypatch.setattr(
        task.Validator, "__call__", lambda self, *a: measure(self, *a) | {"loss/contaminated": next(judged)}
    )
    result = distill(recipe("training.valid_every=2"), tmp_path / "run")
    assert (result.progress.best, result.progress.best_step) == (2.0, 4)
    assert validation_at(tmp_path / "run", 4)["loss/contaminated"] == 2.0


def test_what_a_worker_sends_fits_into_a_pipe_at_once():
    """Else one that is killed leaves a part there, and who reads waits for the rest for ever."""
    sound = torch.randn(2, 40, 16_000, generator=torch.Generator().manual_seed(0))
    rooms = {str(k): np.full(16_000, k, np.float32) for k in range(40)}
    batch = data.Batch(sound[0], torch.arange(40), sound[1], ["scene" * 40] * 40, 40.0, responses=rooms)
    parcel = data.Parcel.of(batch)
    assert len(ForkingPickler.dumps(parcel)) < select.PIPE_BUF < len(pickle.dumps(rooms))
    opened = parcel.open()
    assert torch.equal(opened.clean, batch.clean) and torch.equal(opened.noise, batch.noise)
    assert torch.equal(opened.lengths, batch.lengths) and opened.scenes == batch.scenes
    assert all(np.array_equal(opened.responses[k], rooms[k]) for k in rooms)


@pytest.mark.parametrize("death", ["kill", "exit"])
def test_a_loader_worker_that_dies_is_named_with_its_file_and_nothing_is_lost(recipe, tmp_path, monkeypatch, death):
    read = data.load_crop
    step = {"left": 3}

    def fatal(recording, crop):
        # The workers are copies of this process, each with a count of its own.
        step["left"] -= recording.id == "3" and torch.utils.data.get_worker_info() is not None
        if step["left"] < 0:
            os.kill(os.getpid(), signal.SIGKILL) if death == "kill" else os._exit(3)
        return read(recording, crop)

    monkeypatch.setattr(data, "load_crop", fatal)
    more = "training.steps=40"  # longer than a worker lives
    with pytest.raises(UserError, match=r"A process that reads the speech died .*over .*3\.wav: .*--resume") as caught:
        distill(recipe("data.workers=2", more), tmp_path / "run")
    assert str(caught.value).isprintable()
    monkeypatch.setattr(data, "load_crop", read)
    distill(recipe("data.workers=2", more), tmp_path / "run", resume=True)
    distill(recipe(more), tmp_path / "long")
    assert_same(tensors(tmp_path / "run"), tensors(tmp_path / "long"))


@pytest.mark.parametrize("lost", [ConnectionResetError, EOFError])
def test_a_worker_that_dies_while_it_hands_over_a_batch_is_told_as_dead(lost):
    def told(number, frame):  # as PyTorch does, a little later
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    before = signal.signal(signal.SIGUSR1, told)
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    try:
        with (
            pytest.raises(UserError, match=r"A process that reads the speech died .killed.*go on"),
            name_dead_worker(WorkerActivity(), str, "go on"),
        ):
            timer.start()
            raise lost
    finally:
        timer.cancel()
        signal.signal(signal.SIGUSR1, before)


def test_what_a_worker_refuses_is_one_sentence(recipe, tmp_path, monkeypatch):
    def gone(recording, crop):
        raise data.AudioError(f"{recording.path} does not exist: check the path.", "missing")

    monkeypatch.setattr(data, "load_crop", gone)
    with pytest.raises(UserError, match="Twenty recordings in a row cannot be read") as caught:
        distill(recipe("data.workers=2"), tmp_path / "run")
    assert "Traceback" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("name", checkpoints.TENSORS)
def test_one_flipped_bit_in_a_checkpoint_is_noticed(recipe, tmp_path, name):
    distill(recipe("training.steps=2"), tmp_path / "run")
    file = checkpoints.available(tmp_path / "run")[-1] / name
    content = bytearray(file.read_bytes())
    content[-10] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is not what was saved.*delete that folder"):
        distill(recipe(), tmp_path / "run", resume=True)


def test_a_disk_that_fills_while_saving_keeps_the_last_good_checkpoint(recipe, tmp_path, monkeypatch):
    save = checkpoints.save_file
    saved = []

    def full(values, path, **more):
        saved.append(path)
        if len(saved) == 4:
            raise RuntimeError("I/O error: No space left on device (os error 28)")  # as safetensors words it
        save(values, path, **more)

    distill(recipe(), tmp_path / "straight")
    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(UserError, match="disk is full"):
        distill(recipe(), tmp_path / "run")
    names = sorted(os.listdir(tmp_path / "run" / "checkpoints"))
    assert names == ["step-00000002"]
    monkeypatch.setattr(checkpoints, "save_file", save)
    distill(recipe(), tmp_path / "run", resume=True)
    assert_same(tensors(tmp_path / "run"), tensors(tmp_path / "straight"))


def test_what_a_killed_save_left_behind_is_removed_on_resume(recipe, tmp_path):
    distill(recipe("training.steps=2"), tmp_path / "run")
    left = tmp_path / "run" / "checkpoints" / ".step-00000004-abc"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    distill(recipe(), tmp_path / "run", resume=True)
    assert not left.exists()


def test_a_changed_recipe_is_listed_with_what_it_means(recipe, tmp_path, caplog):
    distill(recipe("training.steps=2"), tmp_path / "run")
    distill(recipe("training.learning_rate=5e-4", "environment.snr_db=[5, 10]"), tmp_path / "run", resume=True)
    for text in (
        "training.learning_rate=0.0005 instead of 0.001 (another optimisation from here on)",
        "environment.snr_db=[5.0, 10.0] instead of [0.0, 20.0] (other contaminations from here on)",
        "training.steps=8 instead of 2 (another end",
        "the run is no longer one recipe",
    ):
        assert text in caplog.text


def test_a_run_folder_records_what_it_was_made_of(recipe, tmp_path, speech):
    distill(recipe("training.steps=2", "training.seed=7"), tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["seed"] == 7 and record["data"].keys() >= {
        "speech-train",
        "speech-valid",
        "noise-train",
        "rooms-train",
    }
    start = record["starts"][0]
    assert start["versions"].keys() >= {"robustdistiller", "python", "torch", "transformers"}
    assert start.keys() >= {"time", "command", "step", "processes", "precision", "commit", "machine"}
    assert (tmp_path / "run" / "recipe.yaml").is_file() and (
        tmp_path / "run" / "manifests" / "speech-train.jsonl"
    ).is_file()


def test_a_run_whose_weights_explode_ends_with_an_error_and_leaves_no_student(recipe, tmp_path):
    huge = ["training.weight_decay=1000", "training.learning_rate=1000", "training.warmup=0"]
    with pytest.raises(UserError, match=r"lower training\.learning_rate"):
        distill(recipe(*huge, "training.valid_every=4", "training.steps=20"), tmp_path / "run")
    for folder in [*checkpoints.available(tmp_path / "run"), tmp_path / "run" / "student"]:
        if folder.is_dir():
            assert all(bool(x.isfinite().all()) for x in load_file(folder / "model.safetensors").values())


def test_weights_that_a_sound_step_spoilt_are_never_saved(recipe, tmp_path, monkeypatch):
    saved = []
    step = torch.optim.AdamW.step

    def spoiling(self, *arguments):
        step(self, *arguments)
        saved.append(1)
        if len(saved) == 4:
            self.param_groups[0]["params"][0].data.fill_(math.inf)

    monkeypatch.setattr(torch.optim.AdamW, "step", spoiling)
    with pytest.raises(UserError, match=r"weights after step 4 are not finite \(such as .*goes on from step 2"):
        distill(recipe(), tmp_path / "run")
    assert [checkpoints.step_of(path) for path in checkpoints.available(tmp_path / "run")] == [2]


def test_a_folder_is_held_by_one_process_whose_death_lets_go(recipe, speech, tmp_path):
    run, ready, asked = tmp_path / "run", os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with exclusive(run):
            os.write(ready[1], b"x")
            os.read(asked[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    for work in (
        lambda: distill(recipe(), run),
        lambda: write_shards([str(speech)], run, workers=1),
        lambda: evaluate(["log-mel"], [], "quick", run, speech=str(speech)),
    ):
        with pytest.raises(UserError, match=r"Another process works in .*run: wait for its end"):
            work()
    assert not (run / "checkpoints").exists() and not (run / "features").exists()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    distill(recipe("training.steps=1"), run)


def test_a_copy_of_a_checkpoint_is_no_newer_one(recipe, tmp_path):
    distill(recipe("training.steps=4"), tmp_path / "run")
    place = tmp_path / "run" / "checkpoints"
    shutil.copytree(place / "step-00000002", place / "step-backup")
    result = distill(recipe(), tmp_path / "run", resume=True)
    assert result.progress.step == 8
    starts = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 4] and (place / "step-backup").is_dir()


def test_a_finished_run_whose_student_is_gone_writes_it_again(recipe, tmp_path, caplog):
    result = distill(recipe(), tmp_path / "run")
    before = load_file(result.student / "model.safetensors")
    shutil.rmtree(result.student)
    again = distill(recipe(), tmp_path / "run", resume=True)
    assert "the weights of step 8, the best so far, are gone" in caplog.text
    assert_same(load_file(again.student / "model.safetensors"), before)
    assert again.metrics == result.metrics


def test_faults_in_any_process_are_gathered(tmp_path):
    """What rank 1 cannot use is written down by rank 0."""

    class Two(Distributed):
        def gather(self, value):
            return [{**value, "utterances": [], "terms": []}, {**value, "batch": ["theirs"]}]

    bad = torch.tensor([math.nan])
    model = SimpleNamespace(
        module=torch.nn.Linear(1, 1), precision="fp32", ids=lambda batch: ["a"], sources=lambda b: {}
    )
    guard = FiniteGuard(tmp_path, Two(0, 2), torch.device("cpu"), model, lambda: "…")
    guard.record(None, bad, {"l1": bad})
    assert guard.finish(1, torch.tensor(False)) == 1
    row = lines(tmp_path / "non_finite.jsonl")[0]
    assert row["utterances"] == ["a"] and row["terms"] == ["l1"] and row["batch"] == ["a", "theirs"]


def test_what_was_listed_in_mid_run_stays_listed_on_resume(recipe, tmp_path):
    distill(recipe("training.steps=4"), tmp_path / "run")
    rows = [{"id": "a", "reason": "missing", "step": 1}, {"id": "b", "reason": "missing", "step": 5}]
    (tmp_path / "run" / "skipped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    distill(recipe(), tmp_path / "run", resume=True)
    assert lines(tmp_path / "run" / "skipped.jsonl") == rows[:1]  # step 5 was taken again
