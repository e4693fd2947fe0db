"""Laws of a program: a block that is freed and asked for again costs no new pages, and threads that wait sleep."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from robustdistiller.process import keep_freed_memory, usable_cores

BENCHMARKS = ("chaos.py", "fuzz.py", "latency.py", "mini_teacher.py", "preparing.py", "training.py", "study/study.py")
FAULTS = """
import resource, numpy as np
from robustdistiller.process import keep_freed_memory
kept = {keep} and keep_freed_memory()
np.ones(1 << 23)  # 64 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(1 << 23)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep):
    done = subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept == "True", int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library of Linux")
def test_a_block_that_was_freed_is_there_at_once():
    kept, count = faults(True)
    if not kept:
        pytest.skip("another C library than GNU's")
    pages = 5 * (8 << 23) // 4096
    assert count < 0.02 * pages


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()


def test_threads_sleep_while_they_wait_and_follow_the_cores_unless_the_user_said_otherwise(tmp_path):
    code = "from robustdistiller.process import *; import os; prepare_process(); " + (
        "print(os.environ['OMP_WAIT_POLICY'], os.environ['OMP_NUM_THREADS'], len(os.sched_getaffinity(0)))"
    )
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "KMP_"))}

    def told(**more):
        return subprocess.run(
            [sys.executable, "-c", code], env={**plain, **more}, capture_output=True, text=True, check=True
        ).stdout.split()

    policy, threads, cores = told()
    assert policy == "PASSIVE" and 1 <= int(threads) <= int(cores)
    assert told(OMP_WAIT_POLICY="ACTIVE", OMP_NUM_THREADS="7")[:2] == ["ACTIVE", "7"]
    for text, most in (("150000 100000", 2), ("50000 100000", 1), ("max 100000", int(cores)), ("nonsense", int(cores))):
        (tmp_path / "cpu.max").write_text(text)
        assert usable_cores(tmp_path) == min(most, int(cores))


WATCH = """
import builtins, os, runpy, sys
real = builtins.__import__

def watch(name, *rest, **more):
    if name == "torch" and "torch" not in sys.modules:
        assert os.environ.get("OMP_WAIT_POLICY"), "torch came first"
        os._exit(0)
    return real(name, *rest, **more)

builtins.__import__ = watch
sys.argv = ["program", *{arguments}]
sys.path.insert(0, os.path.dirname({program!r}))
runpy.run_{kind}({program!r}, run_name="__main__")
"""


@pytest.mark.parametrize("program", ["robustdistiller", *BENCHMARKS])
def test_every_program_prepares_its_process_before_torch_is_imported(program):
    kind, arguments = "module", ["features", "none", "none", "--out", "none"]
    if program != "robustdistiller":
        kind, arguments, program = "path", ["--help"], str(Path(__file__).parents[1] / "benchmarks" / program)
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "KMP_"))}
    code = WATCH.format(kind=kind, program=program, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
