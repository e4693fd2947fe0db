"""Laws of several processes: a run goes on with another number of them as if nothing had changed, and survives one's death."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robustdistiller.audio.sharding import write_shards
from robustdistiller.config import load_recipe
from robustdistiller.distributed import Distributed
from robustdistiller.errors import UserError
from robustdistiller.training import checkpoint as checkpoints
from robustdistiller.training.distill import distill

# Without GPUs, of which a machine may have fewer than there are processes here.
ENVIRONMENT = {
    **os.environ,
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "300",
}
FIELDS = [
    "data.crop_seconds=1", "data.batch_seconds=3", "data.microbatch_seconds=3",
    "data.valid_seconds=4", "data.valid_fraction=0.25", "data.window_mb=0.1",
    "environment.simulated_rooms=2", "training.precision=fp32", "training.log_every=1", "training.valid_every=100",
    "training.save_every=2", "training.timeout=60",
]  # fmt: skip


def command(processes, checkpoint, speech, out, *fields):
    """A distillation by so many processes, as a command line."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m",
        "robustdistiller", "distill", "smoke", "--teacher", str(checkpoint("hubert")), "--speech", str(speech),
        "--out", str(out), "--resume", *(part for field in (*FIELDS, *fields) for part in ("--set", field)),
    ]  # fmt: skip


def run(processes, checkpoint, speech, out, *fields):
    """The same, to its end; a single process is this one."""
    if processes == 1:
        more = {"teacher__model": str(checkpoint("hubert")), "data__speech": [str(speech)]}
        distill(load_recipe("smoke", [*FIELDS, *fields], **more), out, resume=True)
        return
    arguments = command(processes, checkpoint, speech, out, *fields)
    done = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def losses(out):
    """Every loss, of training and of validation, by step and name."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {(row["step"], name): row[name] for row in rows for name in row if name.endswith(("loss", "contaminated"))}


def assert_same_losses(one, other, steps):
    assert losses(one).keys() == losses(other).keys() >= {(step, "train/loss") for step in range(1, steps + 1)}
    assert len(losses(one)) >= steps + 2  # with validation
    for key, loss in losses(one).items():
        assert losses(other)[key] == pytest.approx(loss, rel=2e-4), key


@pytest.fixture(scope="module")
def shards(tmp_path_factory, speech):
    return write_shards([str(speech)], tmp_path_factory.mktemp("shards"), 0.08, workers=1).folder


def test_more_processes_than_gpus_is_one_sentence(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--nproc_per_node 1"):
        Distributed.launched()


@pytest.mark.parametrize("kind", ["files", pytest.param("shards", marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_processes(kind, checkpoint, speech, shards, tmp_path):
    source = speech if kind == "files" else shards
    two = "data.batch_seconds=6"  # in two microbatches
    run(1, checkpoint, source, tmp_path / "straight", two, "training.steps=6")
    out = tmp_path / "changing"
    # The learning rate follows the planned end: as if killed after two steps, later checkpoints are taken away.
    run(1, checkpoint, source, out, two, "training.steps=6", "training.keep=9")
    for path in checkpoints.available(out):
        if int(path.name[5:]) > 2:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    run(2, checkpoint, source, out, two, "training.steps=6")
    assert_same_losses(tmp_path / "straight", out, 6)
    starts = json.loads((out / "run.json").read_text())["starts"]
    assert [(start["step"], start["processes"]) for start in starts] == [(0, 1), (2, 2)]


def children(process):
    """The processes that torchrun started, by rank."""
    found = {}
    for entry in os.listdir("/proc"):
        try:
            parent = int(Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()[1])
            values = Path(f"/proc/{entry}/environ").read_text().split("\0")
        except (OSError, ValueError, IndexError):
            continue
        rank = next((value for value in values if value.startswith("RANK=")), None)
        if parent == process.pid and rank:
            found[int(rank[5:])] = int(entry)
    return found


TWELVE = ["training.steps=12", "training.timeout=30", "data.workers=1"]


@pytest.fixture(scope="module")
def straight(checkpoint, speech, tmp_path_factory):
    """Two processes, twelve steps, nothing wrong."""
    out = tmp_path_factory.mktemp("straight") / "run"
    run(2, checkpoint, speech, out, *TWELVE)
    return out


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(("victim", "number"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_process_that_dies_or_hangs_ends_the_others_and_the_run_goes_on(
    victim, number, straight, checkpoint, speech, tmp_path
):
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(2, checkpoint, speech, out, *TWELVE), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not checkpoints.available(out):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.kill(children(process)[victim], number)
    begin = time.monotonic()
    error = process.communicate(timeout=150)[1]
    assert process.returncode != 0 and time.monotonic() - begin < 120  # torchrun itself gives a process 30 s to leave
    if victim:  # of the first one's end torchrun may tell the others before they notice it themselves
        assert "Another of the 2 processes died or does not answer" in error, error[-3000:]
        assert "--resume goes on from step" in error
    run(2, checkpoint, speech, out, *TWELVE)
    assert_same_losses(straight, out, 12)
