"""Open thousands of spoilt files: audio, manifests, recipes, checkpoints, student folders, ONNX and the rest.

    python benchmarks/fuzz.py --cases 1000            # so many for a cheap target, fewer where a case takes longer
    python benchmarks/fuzz.py --only student --first 5000

Each target runs in a process of its own, so that a crash of a C library is a finding too. A finding names its target and seed,
and `--only TARGET --first SEED --cases 1` repeats it. The targets are those of the tests (tests/reliability/fuzz_targets.py).
"""

from __future__ import annotations

from robustdistiller.process import prepare_process

prepare_process()  # before torch is imported

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "reliability"))

MEMORY = 16 << 30


def main() -> None:
    """Run every target and print a table; the exit code is 1 when there is a finding."""
    from fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=10_000, help="the first seed")
    parser.add_argument("--only", help="one target by name")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    total = findings = 0
    print(f"{'target':<14} {'cases':>6} {'results':>8} {'sentences':>10} {'findings':>9} {'seconds':>8}")
    for target in TARGETS:
        if options.only in (None, target.name):
            cases = max(1, int(options.cases / target.cost))
            begin = time.monotonic()
            counts = run(context, target.name, options.first, cases)
            findings += counts["findings"]
            total += cases
            print(
                f"{target.name:<14} {cases:>6} {counts['results']:>8} {counts['sentences']:>10} {counts['findings']:>9} "
                f"{time.monotonic() - begin:>8.0f}",
                flush=True,
            )
    print(f"{total} spoilt files, {findings} findings")
    sys.exit(1 if findings else 0)


def run(context: Any, name: str, first: int, cases: int) -> dict[str, int]:
    """Work through seeds in a process; one that dies is a finding, and the next process goes on after it."""
    shared = context.Array("q", [first, 0, 0, 0])  # next seed, results, sentences, findings
    while shared[0] < first + cases:
        process = context.Process(target=work, args=(name, first + cases, shared))
        process.start()
        process.join()
        if process.exitcode != 0:
            print(f"FINDING: {name}, seed {shared[0]}: the process died with {process.exitcode}", flush=True)
            shared[3] += 1
            shared[0] += 1
    return {"results": shared[1], "sentences": shared[2], "findings": shared[3]}


def work(name: str, end: int, shared: Any) -> None:
    """In the process: one seed after the other, the count kept where it outlives a crash."""
    import logging

    import torch
    from fuzz_targets import TARGETS, try_seed

    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    target = next(t for t in TARGETS if t.name == name)
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder) / "sound"
        sound.mkdir()
        target.make(sound)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        while shared[0] < end:
            try:
                outcome = try_seed(target, sound, Path(folder) / "work", shared[0])
                shared[1 if outcome is None else 2] += 1
            except AssertionError as error:
                shared[3] += 1
                print(f"FINDING: {error}", flush=True)
            shared[0] += 1


if __name__ == "__main__":
    main()
