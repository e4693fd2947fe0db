"""A small least-recently-used cache that is bounded by bytes, not by entries."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """Keep recently used values while their `nbytes` sum to at most `limit`; a copy in another process starts empty."""

    def __init__(self, limit: float) -> None:
        self.limit = int(limit)
        self._clear()

    def _clear(self) -> None:
        self._entries: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = Lock()
        self.nbytes = 0

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of `key`, made now if it is not there. `make` runs unlocked, so two threads may both make it."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        value = make()
        size = _size(value)
        with self._lock:
            if key not in self._entries and size <= self.limit:
                self._entries[key] = value
                self.nbytes += size
                while self.nbytes > self.limit:
                    self.nbytes -= _size(self._entries.popitem(last=False)[1])
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.limit = state["limit"]
        self._clear()


def _size(value: Any) -> int:
    return sum(int(part.nbytes) for part in value) if isinstance(value, tuple) else int(value.nbytes)
