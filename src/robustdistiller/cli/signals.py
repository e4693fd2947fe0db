"""What concerns the process as a whole: its streams, its signals, and the processes that it starts."""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Any, TextIO

ended_by: int | None = None
"""The signal that asked this process to end."""
_registered = False


class _Stream:
    """A text stream whose reader may go away: work goes on, what cannot be shown is dropped."""

    def __init__(self, stream: TextIO, must_arrive: bool):
        self._stream, self._must_arrive = stream, must_arrive

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._safely(lambda: self._stream.write(text)) or len(text)

    def flush(self) -> None:
        self._safely(self._stream.flush)

    def _safely(self, act: Any) -> Any:
        try:
            return act()
        except OSError as error:
            # `| head` has read enough; a full disk under `> file` must be told, but never by the stream of messages.
            if self._must_arrive and error.errno != errno.EPIPE:
                raise
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())
        return None


def harden_streams() -> None:
    """Let no closed or narrow stream end a run: names that are no text are escaped, absent streams swallow."""
    for name, must_arrive in (("stdout", True), ("stderr", False)):
        stream: Any = getattr(sys, name)
        if isinstance(stream, _Stream):
            continue
        if stream is None:  # closed by the shell
            stream = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, _Stream(stream, must_arrive))


def guard_workers() -> None:
    """Ctrl-C and SIGTERM end this process tidily and its workers at once; these never outlive it.

    Verbs that save before they end (`distill`) set handlers of their own meanwhile.
    """
    global _registered
    if hasattr(os, "register_at_fork") and not _registered:
        os.register_at_fork(after_in_child=_as_worker)
        _registered = True
    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)
    # The exception of a handler may be raised where Python ignores it, aloud.
    sys.unraisablehook = lambda lost: None if ended_by else sys.__unraisablehook__(lost)


def _end(number: int, frame: Any) -> None:
    global ended_by
    ended_by = number
    if "multiprocessing" in sys.modules:
        # Else a pool would first finish all that it was given.
        for worker in sys.modules["multiprocessing"].active_children():
            worker.kill()
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _as_worker() -> None:
    """In a worker: leave Ctrl-C to the process that started it, and die with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
