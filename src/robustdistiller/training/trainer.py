"""The trainer: a task's batches and loss become weights, on one process or several, through kills and resumes.

The order of the data, the learning rate and dropout are functions of (seed, step) alone, so a run that was killed and resumed
ends with the weights of one that was not. On a GPU nothing in a step waits for the device: whether a step was finite is known
to the optimiser at once and to the host one step later, and metrics are read and summed over processes only when they are
logged.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..config import TrainingConfig
from ..distributed import Distributed, Vote
from ..errors import UserError
from ..randomness import integer
from . import checkpoint
from .checkpoint import TrainingProgress
from .interruption import Interrupted, graceful_shutdown
from .metrics_log import MetricsLog
from .observer import Observer
from .optimiser import build_optimiser
from .step_guard import FILE, FiniteGuard

logger = logging.getLogger(__name__)


@dataclass
class StepLoss:
    """The loss of a microbatch of B utterances.

    Attributes:
        total: (B,) the loss of each utterance.
        terms: its parts by name, (B,) each.
        weights: (B,) the share of each utterance in the loss of the whole global batch.
        seconds: of speech in the microbatch.
    """

    total: Tensor
    terms: dict[str, Tensor]
    weights: Tensor
    seconds: float


class TrainingTask(Protocol):
    """What a `Trainer` trains.

    Attributes:
        module: what is trained and saved in checkpoints.
        device: where it is.
        accumulate: microbatches of a step on this process.
        precision: fp32, bf16 or fp16 of the forward pass.
        criterion: the validation metric that decides which weights are kept.
    """

    module: nn.Module
    device: torch.device
    accumulate: int
    precision: str
    criterion: str

    def learning_rate(self, step: int) -> float:
        """Of the step `step`, counted from 0."""

    def batches(self, start: int) -> Iterator[Any]:
        """Microbatches on the device, `accumulate` a step, from the step `start` to the last one."""

    def loss(self, model: nn.Module, batch: Any) -> StepLoss:
        """The loss of a microbatch; `model` is `module`, possibly wrapped for several processes."""

    def sources(self, batch: Any) -> dict[str, Tensor]:
        """What the loss was made from, (B, …) by name, to find where something was not finite; and its ids."""

    def ids(self, batch: Any) -> list[str]:
        """The utterances of a microbatch."""

    def validate(self) -> dict[str, float]:
        """Metrics over all processes."""

    def keep(self, progress: TrainingProgress, metrics: dict[str, float]) -> None:
        """Write the weights as they are; called in the main process where they are the best so far."""

    def is_kept(self) -> bool:
        """Whether what `keep` wrote is there."""


class Trainer:
    """Trains `task` in the folder `run`; `resume` first where there is something to go on from.

    Args:
        task: what is trained.
        settings: steps, clipping, seed, and when to log, validate and save.
        run: the folder of checkpoints and metrics.
        context: the processes that share the work.
        observer: told about every step.
        tensorboard: also write TensorBoard events.
    """

    def __init__(
        self,
        task: TrainingTask,
        settings: TrainingConfig,
        run: Path,
        context: Distributed,
        observer: Observer,
        tensorboard: bool = False,
    ):
        self.task, self.settings, self.run, self.context, self.observer = task, settings, run, context, observer
        self.device, self.tensorboard = task.device, tensorboard
        self.optimiser = build_optimiser(task.module, settings, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=task.precision == "fp16")
        self.progress = TrainingProgress()
        self.guard = FiniteGuard(run, context, self.device, task, self.advice)
        self.log: MetricsLog | None = None

    def resume(self, found: Path) -> None:
        """Bring everything to the state of the checkpoint `found`."""
        self.progress = checkpoint.load(found, self.task.module, self.optimiser)
        if self.progress.scaler:
            self.scaler.load_state_dict(self.progress.scaler)
        if self.progress.best is not None and not self.task.is_kept():
            best = self.progress.best_step
            logger.warning("the weights of step %s, the best so far, are gone; the next validation counts", best)
            self.progress.best = self.progress.best_step = None

    def train(self, stop_after: int | None = None) -> TrainingProgress:
        """Take all steps that are left (with `stop_after`, none after that one). Saves at the end.

        Raises:
            Interrupted: after saving, on SIGTERM, SIGHUP or Ctrl-C.
            UserError: losses, gradients or weights are not finite, again and again.
        """
        settings, progress = self.settings, self.progress
        last = min(settings.steps, stop_after or settings.steps)
        self.log = MetricsLog(self.run, progress.step, self.tensorboard) if self.context.main else None
        self.model, self.batches = self.context.wrap(self.task.module), self.task.batches(progress.step)
        self.history: list[Tensor] = []
        self.names: list[str] = []
        self.clock = time.monotonic()
        self.task.module.train()
        vote = Vote(self.context)
        with graceful_shutdown() as stop:
            while progress.step < last:
                self.train_step()
                ended = progress.step == last
                self.observer.step(progress.step, self.write_metrics() if ended or self.due(settings.log_every) else {})
                if ended or self.due(settings.valid_every):
                    self.validate()
                stopped = vote(stop.is_set())
                # In trouble nothing is saved, so that a resumed run takes the skipped steps again.
                if ended or stopped or (self.due(settings.save_every) and not self.guard.in_trouble()):
                    self.save()
                if stopped and not ended:
                    raise Interrupted(
                        f"Stopped at step {progress.step} of {settings.steps}; everything is saved in {self.run}. Run the same "
                        "command with --resume to go on."
                    )
        if progress.step == settings.steps and progress.best is None:
            self.validate()  # of a finished run whose result was lost
            self.save()
        if self.log is not None:
            self.log.close()
        if progress.step == settings.steps and progress.best is None:
            raise UserError(f"No validation gave a finite loss, so there is nothing to keep: {self.advice()}")
        return progress

    def due(self, every: int) -> bool:
        """Whether the step just taken is one of every `every`."""
        return self.progress.step % every == 0

    def train_step(self) -> None:
        """One step of the optimiser, which is not taken where the loss or a gradient is not finite."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.task.learning_rate(self.progress.step)
        values = self.forward_backward()
        self.scaler.unscale_(self.optimiser)
        parameters = [p for p in self.task.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        finite = torch.isfinite(norm)  # the norm is that of the whole batch, the same in every process
        torch.nn.utils.clip_grads_with_norm_(parameters, self.settings.clip, torch.where(finite, norm, 0.0))
        if self.device.type == "cuda":
            self.optimiser.found_inf = (~finite).float()  # type: ignore[attr-defined] # the fused kernels look at it themselves
            self.scaler.step(self.optimiser)
        elif finite:
            self.optimiser.step()
        self.progress.step += 1
        self.progress.skipped_steps += self.guard.finish(self.progress.step, finite)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self.history.append(torch.cat([values, norm[None].float()]))

    def forward_backward(self) -> Tensor:
        """Add up the gradients of all microbatches of this process; its share of loss and terms, (1 + terms,)."""
        sums: dict[str, Tensor] = {}
        for micro in range(self.task.accumulate):
            batch = next(self.batches)
            # Dropout is drawn from (seed, step, share of the batch): no generator state to save, and no matter whose it is.
            share = self.context.rank * self.task.accumulate + micro
            torch.manual_seed(integer(self.settings.seed, "dropout", self.progress.step, share, 0))
            last = micro == self.task.accumulate - 1
            with nullcontext() if last else self.context.no_sync(self.model):
                loss = self.task.loss(self.model, batch)
                total = (loss.total * loss.weights).sum()
                # A loss that is not finite spoils the gradients of all processes, which so agree on not taking the step.
                spoil = torch.where(torch.isfinite(total.detach()), 1.0, math.nan)
                # Gradients become means over processes, hence the factor.
                (self.scaler.scale(total * self.context.world) * spoil).backward()
            self.guard.record(batch, loss.total, loss.terms)
            for name, values in {"loss": loss.total, **loss.terms}.items():
                sums[name] = sums.get(name, 0) + (values.detach() * loss.weights).sum()
            self.progress.audio_seconds += loss.seconds * self.context.world
        self.names = list(sums)
        return torch.stack(list(sums.values())).float()

    def write_metrics(self) -> dict[str, float]:
        """Means over the steps since the last call, summed over processes; skipped steps count for nothing."""
        self.progress.skipped_steps += self.guard.settle()
        rows = self.context.reduce(torch.stack(self.history).double()).cpu()  # (steps, 1 + terms + the norm)
        rows[:, -1] /= self.context.world
        taken = rows[torch.isfinite(rows).all(1)]
        elapsed = time.monotonic() - self.clock
        self.progress.seconds += elapsed
        now: dict[str, float] = {}
        if len(taken):
            now = dict(zip(self.names, taken[:, :-1].mean(0).tolist(), strict=True))
            now |= {"loss_peak": float(taken[:, 0].max()), "grad_norm_peak": float(taken[:, -1].max())}
        if bool(torch.isfinite(rows[-1]).all()):
            now["grad_norm"] = float(rows[-1, -1])
        now["learning_rate"] = self.task.learning_rate(self.progress.step - 1)
        now |= {"seconds_per_step": elapsed / len(rows), "skipped_steps": self.progress.skipped_steps}
        self.history, self.clock = [], time.monotonic()
        if self.log is not None:
            self.log.write(self.progress.step, {f"train/{name}": value for name, value in now.items()})
        return now

    def validate(self) -> None:
        """Measure the weights as they are, and keep them if they are the best so far."""
        self.check_weights()
        metrics, progress = self.task.validate(), self.progress
        judged = metrics[self.task.criterion]
        best = math.isfinite(judged) and (progress.best is None or judged < progress.best)
        if best:
            progress.best, progress.best_step = judged, progress.step
        if self.log is not None:
            self.log.write(progress.step, {f"valid/{name}": value for name, value in metrics.items()})
            if best:
                self.task.keep(progress, metrics)
        self.observer.validated(progress.step, metrics, best)
        self.context.wait()
        self.clock = time.monotonic()

    def save(self) -> None:
        """Write a checkpoint from which another process goes on to the same bits."""
        self.check_weights()
        if self.context.main:
            self.progress.scaler = dict(self.scaler.state_dict()) if self.scaler.is_enabled() else {}
            checkpoint.save(self.run, self.task.module, self.optimiser, self.progress, self.settings.keep)
        self.context.wait()

    def check_weights(self) -> None:
        """Raise `UserError` where a step that looked sound has left weights that are not finite."""
        self.progress.skipped_steps += self.guard.settle()
        named = list(self.task.module.named_parameters())
        finite = torch.stack([torch.isfinite(parameter.detach()).all() for _, parameter in named]).tolist()
        if not all(finite):
            raise UserError(
                f"The weights after step {self.progress.step} are not finite (such as {named[finite.index(False)][0]}), and "
                f"none of them were saved: {self.advice()}"
            )

    def advice(self) -> str:
        """What a user can do about steps that are not finite."""
        found = checkpoint.available(self.run)
        start = f"goes on from step {checkpoint.step_of(found[-1])}" if found else "starts again"
        return (
            f"skipped steps are listed in {self.run / FILE}; leave such recordings out, or --resume, which {start}, with "
            "training.precision=fp32 or a lower training.learning_rate."
        )
