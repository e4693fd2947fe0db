"""The law of polite signals: whoever else in the process group hears them, the run saves before it ends."""

import os
import signal
import subprocess
import sys
import time

import pytest
from small_runs import FIELDS, make_speech

from robustdistiller.training import checkpoint as checkpoints


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
def test_a_signal_to_the_whole_group_saves_with_loader_workers_alive(checkpoint, tmp_path):
    """Schedulers and terminals signal every process of a job: the workers must outlive the step that is being finished."""
    sets = [
        f"--set={field}" for field in (*FIELDS, "data.workers=2", "training.steps=100000", "training.save_every=100000")
    ]
    command = [
        sys.executable, "-m", "robustdistiller", "distill", "smoke", "--teacher", str(checkpoint("hubert")),
        "--speech", str(make_speech(tmp_path)), "--out", str(tmp_path / "run"), *sets,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
    )  # fmt: skip
    deadline = time.monotonic() + 240
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    error = process.communicate(timeout=240)[1]
    assert process.returncode == 130, error[-2000:]
    assert "--resume" in error and "Traceback" not in error
    assert len(checkpoints.available(tmp_path / "run")) == 1
