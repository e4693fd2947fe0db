"""The processes of a run: they start together, hear that one of them is lost, and stop after saving when asked to."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from . import checkpoint

logger = logging.getLogger(__name__)


class Interrupted(UserError):
    """The run was stopped by a signal after saving; the message says how to go on."""


class ProcessLost(UserError):
    """Another process of the run died or hangs; the message says how to go on."""


def start_engine(timeout: float) -> Any:
    """The engine of this process, an `accelerate.Accelerator`; `timeout`: seconds to wait for the other processes.

    Raises `UserError` where torchrun started more processes than there are GPUs, or some that do not know of each other.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs

    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if 0 < gpus < here:
        raise UserError(
            f"{here} processes were launched on a machine with {gpus} GPU{'s' * (gpus > 1)}: start at most one for each "
            f"(--nproc_per_node {gpus}), or set CUDA_VISIBLE_DEVICES= to use the processors."
        )
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no", kwargs_handlers=[patience])
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        # Without this check, torchrun on a machine without a GPU can start several whole trainings over each other.
        raise UserError(
            f"{launched} processes were launched but only {accelerator.num_processes} joined: start with torchrun "
            "--nproc_per_node N -m robustdistiller …"
        )
    return accelerator


@contextmanager
def company(run: Path) -> Iterator[None]:
    """Say in one sentence that another of several processes is gone, which each of the others meets in its next exchange."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        yield
    except RuntimeError as error:
        if world == 1 or not _LOST.search(f"{type(error).__name__}: {error}"):
            raise
        found = checkpoint.available(run)
        where = f"from step {int(found[-1].name[5:])}" if found else "from the start"
        raise ProcessLost(
            f"Another of the {world} processes of this run died or does not answer ({str(error).splitlines()[0][:160]}): see "
            f"what it said last; nothing that was saved is lost, and the same command with --resume goes on {where}."
        ) from error


_LOST = re.compile(
    r"gloo|nccl|Dist\w*Error|connection (closed|reset|refused)|broken pipe|timed out|timeout", re.IGNORECASE
)


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set, so that a run ends after saving; a second Ctrl-C ends it at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        logger.warning("stopping after this step; everything will be saved")
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
