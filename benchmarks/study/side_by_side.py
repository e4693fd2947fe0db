"""Many commands side by side on one machine, each with a log of its own, until they are done or the time is up."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

GRACE = 60.0  # seconds that a run has for its checkpoint after SIGTERM


@dataclass(frozen=True)
class Job:
    """Arguments of ``robustdistiller``, and the file that takes what it prints."""

    command: list[str]
    log: Path


def run_all(jobs: Iterator[Job | None], at_once: Callable[[], int], until: float = float("inf")) -> list[Job]:
    """Run every job, at most `at_once()` at a time; those that failed or were stopped are returned.

    Args:
        jobs: In the order of their value; None where the next one cannot start yet.
        at_once: How many may run now.
        until: A value of `time.monotonic()`; then nothing starts any more, and what runs is told to save and end.
    """
    running: dict[subprocess.Popen[bytes], Job] = {}
    failed: list[Job] = []
    more = True
    try:
        while more or running:
            late = time.monotonic() >= until
            while more and not late and len(running) < at_once():
                try:
                    job = next(jobs)
                except StopIteration:
                    more = False
                    break
                if job is None:
                    break
                running[_start(job)] = job
            if late:
                more = False
                for process in running:
                    process.send_signal(signal.SIGTERM)
                _wait(running, time.monotonic() + GRACE)
            for process in [p for p in running if p.poll() is not None]:
                job = running.pop(process)
                print(f"{job.log.stem}: {'done' if process.returncode == 0 else 'stopped, see its log'}", flush=True)
                if process.returncode:
                    failed.append(job)
            time.sleep(0.1)
    finally:
        for process in running:
            process.kill()
    return failed


def _start(job: Job) -> subprocess.Popen[bytes]:
    print("robustdistiller " + shlex.join(job.command), flush=True)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with job.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "robustdistiller", *job.command],
            stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env={**quiet, **os.environ},
        )  # fmt: skip


def _wait(running: dict[subprocess.Popen[bytes], Job], until: float) -> None:
    while time.monotonic() < until and any(process.poll() is None for process in running):
        time.sleep(0.1)
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()
