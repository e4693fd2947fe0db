"""Functions that a caller passes to follow long work."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (units done, units in all)."""

PartProgress = Callable[[str, int, int], None]
"""Called with (what is done, units done, units in all)."""
