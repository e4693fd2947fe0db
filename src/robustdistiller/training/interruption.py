"""Signals: a run that is asked to end saves first."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import UserError

logger = logging.getLogger(__name__)


class Interrupted(UserError):
    """The run was stopped by a signal after saving; the message says how to go on."""


@contextmanager
def graceful_shutdown() -> Iterator[threading.Event]:
    """An event that SIGTERM, SIGHUP and Ctrl-C set, so that a run ends after saving; a second one ends it at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        logger.warning("stopping after this step; everything will be saved")

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
    heeded = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # nohup means it
    before = {number: signal.signal(number, ask) for number in heeded}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
