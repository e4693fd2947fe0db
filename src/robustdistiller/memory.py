"""Keeping freed memory: a network asks for the same large blocks again in every step."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep what it frees instead of giving it back to the system; whether that could be set.

    By default the GNU C library maps every block above 32 MB anew, and the system then fills it with zeros page by page: a
    tenth of the time of a forward pass on a processor. The memory at the peak stays the same. For whole programs, not for a
    library to do behind its user's back. Elsewhere than on Linux with that library, nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))
