"""Laws of a program: a block that is freed and asked for again costs no new pages, and threads that wait sleep."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from robustdistiller.process import keep_freed_memory, usable_cores

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
        older = tmp_path / "older" / "cpu"
        older.mkdir(parents=True, exist_ok=True)
        for name, value in zip(("quota", "period"), text.replace("max", "-1").split(), strict=False):
            (older / f"cpu.cfs_{name}_us").write_text(value)
        assert usable_cores(older.parent) == min(most, int(cores))


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
runpy.run_module("robustdistiller", run_name="__main__")
"""


def test_the_command_prepares_its_process_before_torch_is_imported():
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "KMP_"))}
    code = WATCH.format(arguments=["features", "none", "none", "--out", "none"])
    done = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def imported(node):
    """The modules that a statement imports, in full; relative ones are the package's."""
    if isinstance(node, ast.Import):
        return [name.name for name in node.names]
    if isinstance(node, ast.ImportFrom):
        return ["robustdistiller." * bool(node.level) + (node.module or "")]
    return []


def brings_torch(name):
    light = ("errors", "process", "files", "randomness", "cli", "runtime")
    return name in ("torch", "transformers") or (
        name.startswith(("torch.", "robustdistiller")) and name.split(".")[1:2] not in [[part] for part in light]
    )


ROOT = Path(__file__).parents[1]
PROGRAMS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("src", "benchmarks", "examples", "docs")
    for path in (ROOT / folder).rglob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8") and "cli" not in path.parts  # the test above
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_prepares_its_process_before_it_imports_what_brings_torch(program):
    tree = ast.parse((ROOT / program).read_text(encoding="utf-8"))
    places = sorted((node.lineno, name) for node in ast.walk(tree) for name in imported(node) if brings_torch(name))
    calls = [
        node.lineno for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "prepare_process"
    ]  # fmt: skip
    assert not places or (calls and min(calls) < places[0][0]), f"{program} imports {places[0][1]} first"


def test_the_programs_are_found():
    assert {"benchmarks/training.py", "benchmarks/teacher_sizes.py", "examples/minimal_distill.py",
            "src/robustdistiller/deployment/latency_worker.py"} <= set(PROGRAMS)  # fmt: skip
