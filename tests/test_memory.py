"""The law of kept memory: a large block that is freed and asked for again costs no new pages."""

import subprocess
import sys

import pytest

from robustdistiller.memory import keep_freed_memory

FAULTS = """
import resource, numpy as np
from robustdistiller.memory import keep_freed_memory
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
