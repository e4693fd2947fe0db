"""Steps that cannot be trusted: what is not finite is skipped, written down and, if it goes on, explained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .data import Batch

FILE = "non_finite.jsonl"
PATIENCE = 5
SCALED_PATIENCE = 40
"""So many gradients in a row may overflow in fp16, where the scale is halved each time; a loss is not forgiven longer."""

Origin = Callable[[Batch], dict[str, Tensor]]
"""Computes again what a loss was made from, each (B, …), by name."""


@dataclass
class Heard:
    """A microbatch with its loss and terms per utterance, (B,) each."""

    batch: Batch
    loss: Tensor
    terms: dict[str, Tensor]


@dataclass
class Guard:
    """Watches the steps of one rank.

    run: the folder where a skipped step is written down (None: nowhere); scaled: whether gradients carry a scale (fp16)
    origin: finds whether the input or the teacher is to blame
    """

    run: Path | None
    scaled: bool
    origin: Origin
    in_a_row: int = 0
    losses_in_a_row: int = 0
    heard: list[Heard] = field(default_factory=list)

    def begin(self) -> None:
        """A new step."""
        self.heard = []

    def hear(self, batch: Batch, loss: Tensor, terms: dict[str, Tensor]) -> None:
        """Keep a microbatch until the step is over; nothing is computed or waited for."""
        self.heard.append(Heard(batch, loss.detach(), {k: v.detach() for k, v in terms.items()}))

    def passed(self) -> None:
        """The step was finite."""
        self.in_a_row = self.losses_in_a_row = 0

    def skipped(self, step: int, module: nn.Module, loss_is_finite: bool, advice: str) -> None:
        """The step was not finite on some rank and is not taken: write it down, and after several in a row, stop.

        Raises `UserError` that names utterances and terms; `advice` ends the sentence.
        """
        self.in_a_row += 1
        self.losses_in_a_row = 0 if loss_is_finite else self.losses_in_a_row + 1
        row = self.row(step, module)
        if self.run is not None:
            with (self.run / FILE).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        if self.losses_in_a_row < PATIENCE and self.in_a_row < (SCALED_PATIENCE if self.scaled else PATIENCE):
            return
        what = "loss" if self.losses_in_a_row else "gradient"
        where = f"terms {_some(row['terms'])} of {_some(row['utterances'])}" if row["utterances"] else "no single term"
        raise UserError(
            f"The {what} was not finite {self.in_a_row} steps in a row, and none of them was taken (at step {step}: {where}; "
            f"{_blame(row)}; heard: {_some(row['heard'])}): {advice}"
        )

    def row(self, step: int, module: nn.Module) -> dict[str, Any]:
        """What is known about the step: utterances and terms that are not finite, their origin, and parameters."""
        utterances: set[str] = set()
        terms: set[str] = set()
        origin: set[str] = set()
        for heard in self.heard:
            ids = [scene.utterance for scene in heard.batch.scenes]
            for name, values in {"total": heard.loss, **heard.terms}.items():
                bad = _bad(values)
                utterances.update(ids[i] for i in bad)
                terms.update([name] if bad and name != "total" else [])
            if _bad(heard.loss):
                origin.update(name for name, values in self.origin(heard.batch).items() if _bad(values))
        spoilt = [
            name
            for name, parameter in module.named_parameters()
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
        ]
        return {
            "step": step,
            "utterances": sorted(utterances),
            "terms": sorted(terms),
            "origin": sorted(origin),
            "gradients": len(spoilt),
            "first_gradient": spoilt[0] if spoilt else None,
            "heard": sorted({scene.utterance for heard in self.heard for scene in heard.batch.scenes}),
        }


def _blame(row: dict[str, Any]) -> str:
    if row["origin"]:
        return f"already in the {' and the '.join(row['origin'])}"
    if row["utterances"]:
        return "input and targets are finite, so the student overflows"
    return f"in the gradients of {row['gradients']} parameters such as {row['first_gradient']}"


def _bad(values: Tensor) -> list[int]:
    """The rows of (B, …) that are not finite."""
    return (
        (~torch.isfinite(values.detach().flatten(1) if values.dim() > 1 else values[:, None]).all(1))
        .nonzero()[:, 0]
        .tolist()
    )


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
