"""The processes of one job: which of them this is, waiting for each other, sums over all, and shared gradients.

Started by ``torchrun`` or ``accelerate launch``. In a process that nothing launched, everything here does nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .errors import UserError

WEEK = 7 * 24 * 3600.0  # seconds; a process that dies is noticed at once all the same
T = TypeVar("T")


class ProcessLost(UserError):
    """Another process of the job died or hangs; the message says how to go on."""


@dataclass(frozen=True)
class Distributed:
    """This process: its number among the `world` of a job, and its number on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def launched(cls, timeout: float = WEEK) -> Distributed:
        """As a launcher says, if one started this process; every process that it started must call this.

        Args:
            timeout: seconds to wait for the others in any exchange.

        Raises:
            UserError: more processes were started than there are GPUs, or some that do not know of each other.
        """
        here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if 0 < gpus < here:
            raise UserError(
                f"{here} processes were launched on a machine with {gpus} GPU{'s' * (gpus > 1)}: start at most one for each "
                f"(--nproc_per_node {gpus}), or set CUDA_VISIBLE_DEVICES= to use the processors."
            )
        defaults = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
        found = cls(*(int(os.environ.get(name, default)) for name, default in defaults.items()))
        if found.world > 1 and not dist.is_initialized():
            if not all(name in os.environ for name in ("RANK", "MASTER_ADDR", "MASTER_PORT")):
                # Without this check several whole jobs could run over each other.
                raise UserError(
                    f"{found.world} processes cannot find each other: start with torchrun --nproc_per_node N …"
                )
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=timedelta(seconds=timeout))
        if gpus:
            torch.cuda.set_device(found.local_rank)
        return found

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The GPU of this process, or the processor."""
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    def wait(self) -> None:
        """Go on when all have come here. Raises `ProcessLost` when one never will."""
        if self.world > 1:
            with self.reporting_lost(lambda: "run the same command again; what was done stays"):
                dist.all_reduce(torch.zeros(1))  # unlike a barrier, never an exchange of the GPUs

    @contextmanager
    def first(self) -> Iterator[None]:
        """The main process goes through this block alone, then the others, who find what it has made."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def share(self, items: Sequence[T], offset: int = 0) -> list[T]:
        """This process's part of `items`; `offset` so that the short ends of many lists go to different ones."""
        return [item for k, item in enumerate(items) if (k + offset) % self.world == self.rank]

    def reduce(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """What every process gave, by rank."""
        found: list[Any] = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(found, value)
        return found

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module`, whose gradients become the means over all processes."""
        if self.world == 1:
            return module
        device = next(module.parameters()).device
        return DistributedDataParallel(module, [device] if device.type == "cuda" else None, broadcast_buffers=False)

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        """Gradients of a `wrap`ped module are only added up in here, not exchanged."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()

    @contextmanager
    def reporting_lost(self, advice: Callable[[], str]) -> Iterator[None]:
        """Say in one sentence that another process is gone, which each of the others meets in its next exchange.

        Raises:
            ProcessLost: with `advice` at its end.
        """
        try:
            yield
        except (RuntimeError, ProcessLost) as error:
            lost = isinstance(error, ProcessLost) or _LOST.search(f"{type(error).__name__}: {error}")
            if self.world == 1 or not lost:
                raise
            cause = error.__cause__ if isinstance(error, ProcessLost) else error
            raise ProcessLost(
                f"Another of the {self.world} processes died or does not answer ({str(cause).splitlines()[0][:160]}): see what "
                f"it said last; {advice()}."
            ) from cause


_LOST = re.compile(
    r"gloo|nccl|Dist\w*Error|connection (closed|reset|refused)|broken pipe|timed out|timeout", re.IGNORECASE
)


class Vote:
    """Whether any process says yes; the answer comes a call late, so that no process waits for another."""

    def __init__(self, context: Distributed):
        self.world = context.world
        self._pending: tuple[Tensor, Any] | None = None

    def __call__(self, yes: bool) -> bool:
        if self.world == 1:
            return yes
        before, flag = self._pending, torch.tensor(float(yes))
        self._pending = flag, dist.all_reduce(flag, async_op=True)
        if before is None:
            return False
        before[1].wait()
        return bool(before[0])
