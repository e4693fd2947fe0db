"""What the loader's workers are doing: which recording each was reading when it died, and how they are told to leave."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.utils.data import get_worker_info

from ..errors import UserError

MOST = 64  # workers whose activity is known
TOLD_SECONDS = 5.0  # until a signal tells of a worker's death


class WorkerActivity:
    """Which recording each worker reads, in memory that outlives it."""

    def __init__(self) -> None:
        self._rows = multiprocessing.RawArray(ctypes.c_longlong, 3 * MOST)  # process, recording + 1, is it its noise?
        self._dismissed = multiprocessing.RawValue(ctypes.c_bool, False)

    def begin(self, worker: int) -> None:
        """Called in a worker when it starts: one thread, and of signals only what `dismiss` asks for.

        Schedulers and terminals send SIGTERM, SIGHUP and SIGINT to every process of a job. Only the main one answers, by
        saving; its workers must live until then.
        """
        torch.set_num_threads(1)
        self._put(0, os.getpid())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0) if self._dismissed.value else None)

    def reading(self, recording: int | None, noise: bool = False) -> None:
        """Called in a worker before it reads; None: it is done."""
        self._put(1, 0 if recording is None else recording + 1)
        self._put(2, int(noise))

    def find(self, process: int) -> tuple[int, bool] | None:
        """The recording (and whether it was its noise) that the worker `process` read last; None: nothing."""
        for place in range(MOST):
            pid, recording, noise = self._rows[3 * place : 3 * place + 3]
            if pid == process and recording:
                return recording - 1, bool(noise)
        return None

    def dismiss(self) -> None:
        """Called in the main process: end the workers."""
        self._dismissed.value = True
        pids = {self._rows[3 * place] for place in range(MOST)}
        for process in multiprocessing.active_children():
            if process.pid in pids:
                process.terminate()
                process.join(5)
                if process.exitcode is None:
                    process.kill()

    def _put(self, column: int, value: int) -> None:
        worker = get_worker_info()
        if worker is not None and worker.id < MOST:
            self._rows[3 * worker.id + column] = value


@contextmanager
def name_dead_worker(activity: WorkerActivity, name: Callable[[int], str], advice: str) -> Iterator[None]:
    """Say in one sentence which loader worker died over which recording, by its `name`; `advice` ends it.

    The system may tell of the death at any moment, so the whole loop runs inside.
    """
    try:
        try:
            yield
        except (
            ConnectionError,
            EOFError,
        ):  # a worker died while it handed over a batch: the system is about to tell which
            time.sleep(TOLD_SECONDS)
            raise
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        how = re.search(r"killed by signal: (\w[\w ]*)", str(error))
        last = [found for pid in re.findall(r"\d+", str(error)) if (found := activity.find(int(pid)))]
        what = ", ".join(f"{'noise for ' if noise else ''}{name(number)}" for number, noise in last[:3])
        raise UserError(
            f"A process that reads the speech died ({how[1].lower() if how else 'it left without a word'}) "
            f"{f'over {what}' if what else 'between two recordings'}: look at that file and at the free memory; {advice}"
        ) from error
