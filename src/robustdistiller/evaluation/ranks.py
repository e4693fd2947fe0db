"""Several processes share a benchmark: each measures a part into the common files, and the first one reads them all.

Started by ``torchrun`` or ``accelerate launch``. What is shared out are models while heads are trained, and conditions
afterwards, so that a contaminated utterance is still made once for all models. Results travel as the files that an interrupted
benchmark goes on from; the processes tell each other nothing but that they are done.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from ..errors import UserError
from .tasks import Task

PATIENCE = timedelta(days=7)  # a part may take long; a process that dies is noticed at once all the same
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among the `world` of a benchmark, and its number on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def launched(cls) -> Ranks:
        """As a launcher says, if one started this process; all that it started must call this."""
        if not all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
            return cls()
        found = cls(*(int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
        if found.world > 1:
            import torch.distributed as dist

            if not dist.is_initialized():
                dist.init_process_group("gloo", timeout=PATIENCE)
        return found

    def wait(self) -> None:
        """Go on when all have come here. Raises `UserError` when one never will."""
        if self.world == 1:
            return
        import torch.distributed as dist

        try:
            dist.barrier()
        except RuntimeError as error:
            raise UserError(
                f"Another of the {self.world} processes of this benchmark died: see what it said last, and run the same "
                "command again; what was measured stays."
            ) from error

    @contextmanager
    def first(self) -> Iterator[None]:
        """The first process goes through this block alone, then the others, who find what it has scanned."""
        if self.rank:
            self.wait()
        yield
        if not self.rank:
            self.wait()

    def share(self, items: Sequence[T], offset: int) -> list[T]:
        """This process's part of `items`; `offset` so that the short ends of many lists go to different ones."""
        return [item for k, item in enumerate(items) if (k + offset) % self.world == self.rank]


def families(folds: Sequence[Task]) -> list[list[Task]]:
    """Tasks that share a list of audio together, since they share its features, which two processes must not write at once."""
    found: list[tuple[set[str], list[Task]]] = []
    for task in folds:
        heard = {str(value) for value in task.fingerprints.values()}
        related = [family for family in found if family[0] & heard]
        found = [family for family in found if family not in related]
        found.append((heard.union(*(f[0] for f in related)), [*(t for f in related for t in f[1]), task]))
    return [tasks for _, tasks in found]
