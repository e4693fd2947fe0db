"""What a whole program sets for itself before it computes: threads that wait asleep, memory that it keeps, few collections.

For programs, not for a library to do behind its user's back. Call `prepare_process` before torch is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import sys
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h


def prepare_process() -> None:
    """Set all of it; what the user has set stays."""
    quiet_threads()
    keep_freed_memory()
    # Importing PyTorch and transformers makes a million objects and no garbage; looking for some takes a seventh of the time.
    gc.set_threshold(50_000, 10, 10)


def quiet_threads() -> None:
    """Let OpenMP's threads sleep while they wait, and be no more of them than cores that this process may use.

    By default they spin: beside another busy process each step of a network then waits for threads that wait for each other.
    The settings are read when torch is imported, and inherited by processes that are started.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # the same for Intel's OpenMP
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The cores that this process may use: of its affinity, and of the share that its container was given."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # of cgroups 2 and 1
        with contextlib.suppress(OSError, ValueError):  # no container, or no share
            quota, period = (int(x) for name in names for x in (cgroup / name).read_text(encoding="ascii").split())
            if quota > 0:
                cores = max(1, min(cores, math.ceil(quota / period)))
    return cores


def keep_freed_memory() -> bool:
    """Let this process keep what it frees instead of giving it back to the system; whether that could be set.

    By default the GNU C library maps every block above 32 MB anew, and the system then fills it with zeros page by page: a
    tenth of the time of a forward pass on a processor. The memory at the peak stays the same. Elsewhere than on Linux with
    that library, nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))
