"""Laws of the runs of the study: never more at once than asked, the next when one can start, and an end when the time is up."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "study"))
import side_by_side
import study
from side_by_side import Job, run_all


@pytest.fixture
def commands(monkeypatch):
    """Jobs run their command in a shell; the list has what was started."""
    started = []

    def start(job):
        started.append(job.log.stem)
        return subprocess.Popen(["sh", "-c", *job.command])

    monkeypatch.setattr(side_by_side, "_start", start)
    return started


def job(name, command):
    return Job([command], Path(f"{name}.log"))


def test_a_job_that_cannot_start_yet_is_asked_for_again(commands):
    waits = iter([job("first", "true"), None, None, job("second", "exit 3")])
    failed = run_all(waits, lambda: 1)
    assert commands == ["first", "second"] and [one.log.stem for one in failed] == ["second"]


def test_when_the_time_is_up_runs_are_told_to_save_and_no_other_starts(commands, tmp_path):
    saving = f"trap 'touch {tmp_path}/saved; exit 1' TERM; touch {tmp_path}/begun; while :; do sleep 0.05; done"
    deadline = side_by_side.time.monotonic()
    jobs = iter([job("long", saving), job("never", "true")])
    failed = run_all(jobs, lambda: 1, deadline + 1.0)
    assert commands == ["long"] and [one.log.stem for one in failed] == ["long"]
    assert (tmp_path / "saved").exists()


def test_a_command_that_fails_has_said_why(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(
        sys, "argv", ["study.py", "evaluate", "--rows", "robust", "--part", "valid", "--out", str(tmp_path)]
    )
    with pytest.raises(SystemExit) as leaving:
        study.main()
    assert leaving.value.code == 2 and "Traceback" not in capfd.readouterr().err
