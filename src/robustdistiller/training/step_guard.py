"""Steps that cannot be trusted: what is not finite is skipped, written down and, if it goes on, explained."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..distributed import Distributed
from ..errors import UserError
from .metrics_log import append_rows

FILE = "non_finite.jsonl"
PATIENCE = 5
SCALED_PATIENCE = 40
"""So many gradients in a row may overflow in fp16, where the scale is halved each time; a loss is not forgiven longer."""


class Explained(Protocol):
    """The part of a `TrainingTask` that finds where something was not finite."""

    module: nn.Module
    precision: str

    def ids(self, batch: Any) -> list[str]: ...

    def sources(self, batch: Any) -> dict[str, Tensor]: ...


@dataclass
class Microbatch:
    """A microbatch with its loss and terms per utterance, (B,) each."""

    batch: Any
    loss: Tensor
    terms: dict[str, Tensor]


@dataclass
class _Step:
    number: int
    finite: Tensor  # on its way to the host
    arrived: Any  # a CUDA event, or None
    microbatches: list[Microbatch]


class FiniteGuard:
    """Watches the steps of all processes; on a GPU it looks at each one step later, so that nothing waits for the device.

    Args:
        run: the folder where skipped steps are written down.
        context: the processes of the run.
        device: where it trains.
        task: what it trains.
        advice: the end of the sentence that stops a run.
    """

    def __init__(
        self, run: Path, context: Distributed, device: torch.device, task: Explained, advice: Callable[[], str]
    ):
        self.run, self.context, self.task, self.advice = run, context, task, advice
        self.late = device.type == "cuda"
        self.in_a_row = self.losses_in_a_row = 0
        self._microbatches: list[Microbatch] = []
        self._steps: deque[_Step] = deque()

    def record(self, batch: Any, loss: Tensor, terms: dict[str, Tensor]) -> None:
        """Keep a microbatch until its step was looked at; nothing is computed or waited for."""
        self._microbatches.append(Microbatch(batch, loss.detach(), {k: v.detach() for k, v in terms.items()}))

    def finish(self, step: int, finite: Tensor) -> int:
        """The step `step` was computed, and taken if it was `finite` (). The skipped steps among those looked at now."""
        arrived = torch.cuda.Event() if self.late else None
        there = finite.to("cpu", non_blocking=True)
        if arrived is not None:
            arrived.record()
        self._steps.append(_Step(step, there, arrived, self._microbatches))
        self._microbatches = []
        return self._look(1 if self.late else 0)

    def settle(self) -> int:
        """Look at all steps so far; how many of those looked at now were skipped."""
        return self._look(0)

    def in_trouble(self) -> bool:
        """Whether the last step was skipped."""
        return bool(self.in_a_row)

    def _look(self, leave: int) -> int:
        skipped = 0
        while len(self._steps) > leave:
            step = self._steps.popleft()
            if step.arrived is not None:
                step.arrived.synchronize()
            if bool(step.finite):
                self.in_a_row = self.losses_in_a_row = 0
            else:
                skipped += 1
                self._report(step)
        return skipped

    def _report(self, step: _Step) -> None:
        """Write a skipped step down, and after several in a row, stop. Raises `UserError` with utterances and terms."""
        rows = self.context.gather(self._describe(step))
        row = {**rows[0], **{name: sorted({x for r in rows for x in r[name]}) for name in _LISTS}}
        self.in_a_row += 1
        self.losses_in_a_row = self.losses_in_a_row + 1 if row["utterances"] else 0
        if self.context.main:
            append_rows(self.run / FILE, [row])
        patience = SCALED_PATIENCE if self.task.precision == "fp16" else PATIENCE
        if self.losses_in_a_row < PATIENCE and self.in_a_row < patience:
            return
        what = "loss" if self.losses_in_a_row else "gradient"
        where = f"terms {_some(row['terms'])} of {_some(row['utterances'])}" if row["utterances"] else "no single term"
        raise UserError(
            f"The {what} was not finite {self.in_a_row} steps in a row, and none of them was taken (at step {step.number}: "
            f"{where}; {_blame(row)}; in the batch: {_some(row['batch'])}): {self.advice()}"
        )

    def _describe(self, step: _Step) -> dict[str, Any]:
        """What is known in this process: utterances and terms that are not finite, their source, and parameters."""
        found: dict[str, set[str]] = {name: set() for name in _LISTS}
        for microbatch in step.microbatches:
            ids = self.task.ids(microbatch.batch)
            found["batch"].update(ids)
            for name, values in {"total": microbatch.loss, **microbatch.terms}.items():
                bad = _bad(values)
                found["utterances"].update(ids[i] for i in bad)
                found["terms"].update([name] if bad and name != "total" else [])
            if _bad(microbatch.loss):
                sources = self.task.sources(microbatch.batch)
                found["source"].update(name for name, values in sources.items() if _bad(values))
        wrong = ((name, p.grad) for name, p in self.task.module.named_parameters() if p.grad is not None)
        spoilt = [name for name, gradient in wrong if not bool(torch.isfinite(gradient).all())]
        lists = {name: sorted(values) for name, values in found.items()}
        return {"step": step.number, **lists, "gradients": len(spoilt), "first_gradient": spoilt[0] if spoilt else None}


_LISTS = ("utterances", "terms", "source", "batch")


def _blame(row: dict[str, Any]) -> str:
    if row["source"]:
        return f"already in the {' and the '.join(row['source'])}"
    if row["utterances"]:
        return "input and targets are finite, so the student overflows"
    return f"in the gradients of {row['gradients']} parameters such as {row['first_gradient']}"


def _bad(values: Tensor) -> list[int]:
    """The rows of (B, …) that are not finite."""
    rows = values.detach().flatten(1) if values.dim() > 1 else values[:, None]
    return (~torch.isfinite(rows).all(1)).nonzero()[:, 0].tolist()


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
