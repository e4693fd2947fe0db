"""Laws of a run on shards: it is the same run however it is stopped, read or shared, and a lost shard does not end it."""

import json
import multiprocessing
import shutil

import pytest
import torch
from safetensors.torch import load_file

from robustdistiller.audio.io import write_audio
from robustdistiller.audio.sharding import write_shards
from robustdistiller.config import load_recipe
from robustdistiller.errors import UserError
from robustdistiller.training import checkpoint as checkpoints
from robustdistiller.training.distill import distill
from robustdistiller.training.observer import Observer

FIELDS = [
    "student.feature_grad_mult=1.0", "student.layers=1", "student.dropout=0", "data.crop_seconds=0.8",
    "data.batch_seconds=1.6", "data.valid_seconds=2", "data.min_seconds=0.05", "data.workers=0", "data.window_mb=0.05",
    "environment.simulated_rooms=2", "environment.noise_kinds={recorded: 0, white: 1, babble: 1}",
    "objectives.enhancement.hidden=8", "objectives.enhancement.layers=1", "objectives.enhancement.dropout=0",
    "training.learning_rate=1e-3", "training.precision=fp32", "training.log_every=1", "training.valid_every=100",
    "training.save_every=4", "training.steps=10",
]  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory, record):
    """Eighteen recordings of six speakers in about six shards."""
    folder = tmp_path_factory.mktemp("shards")
    record(folder, [0.6 + 0.03 * number for number in range(18)], 3)
    write_shards([str(folder)], folder / "out", 0.065, workers=1)
    return folder / "out"


@pytest.fixture
def recipe(checkpoint, shards, tmp_path):
    """recipe(*overrides, speech=the shards) → a `Recipe` of the tiny run."""

    def make(*overrides, speech=shards):
        values = [*FIELDS, f"data.spool={tmp_path / 'spool'}", *overrides]
        return load_recipe(None, values, teacher__model=str(checkpoint("hubert")), data__speech=[str(speech)])

    return make


def weights(run):
    return load_file(checkpoints.available(run)[-1] / "model.safetensors")


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Act(Observer):
    """Does something after a step."""

    def __init__(self, at, action):
        self.at, self.action = at, action

    def step(self, step, metrics):
        if step == self.at:
            self.action()


def accident():
    raise RuntimeError("accident")


def test_resume_equals_a_straight_run_whatever_the_loader_workers(recipe, shards, tmp_path):
    result = distill(recipe(), tmp_path / "straight")
    for workers, at in ((0, 5), (2, 7)):
        run = tmp_path / f"run{workers}"
        with pytest.raises(RuntimeError, match="accident"):
            distill(recipe(f"data.workers={workers}"), run, observer=Act(at, accident))
        assert not multiprocessing.active_children()  # or the exit would wait for them
        distill(recipe(f"data.workers={workers}"), run, resume=True)
        assert_same(weights(run), weights(tmp_path / "straight"))
    assert not list((tmp_path / "spool").iterdir())
    told = json.loads((tmp_path / "straight" / "manifests" / "speech-shards.json").read_text())
    assert told["train"] and told["valid"] and not set(told["train"]) & set(told["valid"])
    provenance = json.loads((result.student / "provenance.json").read_text())
    assert 3 <= len(provenance["speakers"]) < 6
    assert {"si_sdr/out", "distillation/clean"} <= result.metrics.keys()


def test_targets_are_cached_for_shards_too(recipe, tmp_path):
    options = [f"teacher.cache={tmp_path / 'cache'}", "data.fixed_crops=1", "training.steps=6"]
    cold = distill(recipe(*options), tmp_path / "cold")
    warm = distill(recipe(*options), tmp_path / "warm")
    assert cold.cache["computed"] > 0 and warm.cache["computed"] == 0
    assert_same(weights(tmp_path / "cold"), weights(tmp_path / "warm"))


def test_a_shard_lost_in_mid_run_is_replaced_and_recorded(recipe, shards, tmp_path, caplog):
    mine = shutil.copytree(shards, tmp_path / "mine")

    def lose():
        for tar in sorted(mine.glob("*.tar"))[:2]:
            tar.unlink()

    distill(recipe("training.steps=30", speech=mine), tmp_path / "run", observer=Act(1, lose))
    rows = lines(tmp_path / "run" / "skipped.jsonl")
    assert rows and all(row["reason"] == "missing" and row["path"].endswith(".tar") and row["step"] > 0 for row in rows)
    assert "Another shard takes its place" in caplog.text
    with pytest.raises(UserError, match=r"\.tar is missing: copy it again, or run robustdistiller shard"):
        distill(recipe(speech=mine), tmp_path / "other")


def test_mistakes_with_shards_are_one_sentence(recipe, shards, tmp_path, voice):
    write_audio(tmp_path / "in" / "a.wav", voice(1.0, 1))
    mixed = recipe().model_copy(
        update={"data": recipe().data.model_copy(update={"speech": (str(shards), str(tmp_path / "in"))})}
    )
    with pytest.raises(UserError, match="cannot be mixed"):
        distill(mixed, tmp_path / "a")
    write_shards([str(tmp_path / "in")], tmp_path / "single", workers=1)
    with pytest.raises(UserError, match=r"one shard and whole ones are held out .*--shard-mb"):
        distill(recipe(speech=tmp_path / "single"), tmp_path / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name another as data"):
        distill(recipe(f"data.spool={tmp_path / 'file'}"), tmp_path / "c")
