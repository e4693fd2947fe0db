"""Distillation: contaminated speech in, the teacher's clean hidden layers out; one function from a recipe to a student folder.

`distill` reads top to bottom: gather the recordings, build teacher and student, resume if asked, and let the `Trainer` take the
steps of a `Distillation`. The order of the data and every contamination are pure functions of (seed, step), so one process,
two, or two machines see the same global batches.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Recipe
from ..distributed import Distributed
from ..errors import UserError
from ..files import exclusive, write_json
from ..models.building import build_student
from ..models.encoder import ConvEncoder
from ..models.frames import beside
from ..models.precision import autocast, pick_precision
from ..models.teacher import Teacher, TeacherOutput, load_teacher
from ..objectives.total import total_loss
from ..provenance import inherited
from . import checkpoint
from .checkpoint import TrainingProgress
from .dataset import Batch, StepSampler, open_speech, plan_batches, read_batches, some_speech
from .materials import SKIPPED, Materials, gather
from .metrics_log import append_rows, validation_at
from .observer import Observer
from .optimiser import learning_rate
from .run_record import check_resumable, record_run
from .student_card import write_student
from .target_cache import TargetCache
from .trainer import StepLoss, Trainer
from .validation import Validator
from .worker_activity import name_dead_worker

FEW = 10
"""With fewer held-out recordings than this, the choice of the best weights is a matter of chance."""


@dataclass
class Result:
    """The end of a run.

    Attributes:
        student: the student folder.
        metrics: of its validation.
        progress: where the run stood.
        cache: `TargetCache.report`, if there was one.
    """

    student: Path
    metrics: dict[str, float]
    progress: TrainingProgress = field(default_factory=TrainingProgress)
    cache: dict[str, Any] | None = None


def distill(
    recipe: Recipe,
    out: str | os.PathLike[str],
    resume: bool = False,
    observer: Observer | None = None,
    tensorboard: bool = False,
    teacher: Teacher | None = None,
    device: str | torch.device | None = None,
) -> Result:
    """Run a recipe and leave ``out/student``, a folder that `load_student` and `transformers` open.

    Under ``torchrun`` every process calls this with the same arguments.

    Args:
        recipe: every choice of the run.
        out: the run folder: student, checkpoints, metrics, manifests.
        resume: go on from the newest checkpoint in `out`; a run that has ended returns at once.
        observer: told about every step.
        tensorboard: also write TensorBoard events.
        teacher: one that is loaded already, instead of `recipe.teacher.model`.
        device: where it is computed; the GPU of this process, or the processor, by default.

    Returns:
        Where the student is, and the metrics of its validation.

    Raises:
        UserError: wrong input, before any work; a run in trouble that was stopped.
        Interrupted: after saving, on SIGTERM, SIGHUP or Ctrl-C.

    Example:
        >>> recipe = load_recipe("robust-hubert-base", data__speech=["LibriSpeech/"])  # doctest: +SKIP
        >>> distill(recipe, "runs/rd-hubert").student  # doctest: +SKIP
    """
    run, watch = Path(out), observer or Observer()
    context = Distributed.launched(recipe.training.timeout)

    def how_to_go_on() -> str:
        found = checkpoint.available(run)
        where = f"from step {checkpoint.step_of(found[-1])}" if found else "from the start"
        return f"nothing that was saved is lost, and the same command with --resume goes on {where}"

    with ExitStack() as resources:
        resources.enter_context(context.reporting_lost(how_to_go_on))
        if context.main:
            resources.enter_context(exclusive(run))
        context.wait()  # for the lock: nobody else writes what is found now
        found = checkpoint.available(run)
        if context.main and resume:
            checkpoint.sweep(run)
        check_resumable(run, recipe, resume, bool(found))
        where = torch.device(device or context.device)
        task = Distillation(recipe, run, context, where, watch, found[-1] if found else None, teacher, resources)
        trainer = Trainer(task, recipe.training, run, context, watch, tensorboard)
        if found:
            trainer.resume(found[-1])
        start = trainer.progress.step
        if context.main:
            started = start if found else None
            record_run(run, recipe, task.materials, task.teacher, task.precision, context.world, started)
        watch.plan(task.plan(), start, recipe.training.steps)
        task.validator.prepare()  # what it lacks in memory or data is to be known before the first step
        with name_dead_worker(task.dataset.activity, task.dataset.name, "then go on with --resume."):
            progress = trainer.train()
    report = task.cache.report() if task.cache is not None else None
    if context.main and report is not None:
        write_json(run / "target_cache.json", report)
    return Result(run / "student", validation_at(run, progress.best_step), progress, report)


class Distillation:
    """The task of a `Trainer`: a student that predicts the clean hidden layers of a teacher from contaminated speech.

    Args:
        recipe: every choice of the run.
        run: the run folder.
        context: the processes that share the work.
        device: where it is computed.
        observer: told about long preparation.
        found: the checkpoint that the run goes on from.
        teacher: one that is loaded already.
        resources: closes at the end what is open.
    """

    criterion = "loss/contaminated"

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        context: Distributed,
        device: torch.device,
        observer: Observer,
        found: Path | None,
        teacher: Teacher | None,
        resources: ExitStack,
    ):
        self.recipe, self.run, self.context, self.device = recipe, run, context, device
        settings = recipe.training
        self.teacher = (load_named(recipe) if teacher is None else teacher).stop_at_highest().to(self.device)
        self.earlier = inherited(recipe)
        with context.first():  # the others then read what the first one scanned
            start = checkpoint.step_of(found) if found else 0
            self.materials: Materials = gather(recipe, run, observer.work, context.rank, start)
        if self.materials.spool is not None:
            resources.callback(self.materials.spool.close)
        self.cache: TargetCache | None = None
        if recipe.teacher.cache is not None:
            self.cache = TargetCache(recipe.teacher.cache, recipe.teacher.cache_gb, self.teacher, self.device)
            resources.callback(self.cache.close)
        self.student, self.initialisation = build_student(
            self.teacher, recipe.student, recipe.objectives.enhancement, settings.seed,
            () if found else some_speech(self.materials, settings.seed),
        )  # fmt: skip
        if teacher is None:  # of another's, other students may be made
            self.teacher.settle(self.device)
        self.module: nn.Module = self.student.to(self.device)
        if settings.compile:
            for encoder in (self.teacher.encoder, self.student.encoder):
                if isinstance(encoder, ConvEncoder):
                    encoder.compile_layers()
        self.precision = pick_precision(settings.precision, self.device, self.student.encoder)
        self.sampler = plan_batches(recipe, self.materials, context.rank, context.world)
        self.accumulate = self.sampler.accumulate
        self.dataset, self._ready = open_speech(recipe, self.materials, self.sampler)
        resources.callback(self.dataset.activity.dismiss)
        held = (self.materials.valid, self.materials.valid_environment)
        self.validator = Validator(recipe, *held, self.teacher, self.device, context)

    def learning_rate(self, step: int) -> float:
        return learning_rate(self.recipe.training, step)

    def batches(self, start: int) -> Iterator[Batch]:
        """Microbatches of this process from the step `start` on."""
        steps = range(start, self.recipe.training.steps)
        order = StepSampler(self.sampler, steps.start, steps.stop, self._ready)
        read = read_batches(self.dataset, order, self.recipe.data.workers, self.device, self.cache is not None)
        for step in steps:
            frames = self.sampler.batch(step).planned_frames
            for _ in range(self.accumulate):
                batch = next(read)
                append_rows(self.run / SKIPPED, batch.replaced)
                batch.planned_frames = frames
                yield batch

    def inputs(self, batch: Batch) -> tuple[Tensor, TeacherOutput]:
        """The student's input, (B, T), and what it shall predict."""
        noisy = batch.noisy
        assert noisy is not None
        if self.cache is not None and batch.keys is not None:
            return noisy, self.cache(batch.clean, batch.lengths, batch.keys)
        return noisy, self.teacher(batch.clean, batch.lengths)

    def loss(self, model: nn.Module, batch: Batch) -> StepLoss:
        """Each utterance weighs its share of the valid frames of the whole global batch, known beforehand."""
        noisy, target = self.inputs(batch)
        with autocast(self.device, self.precision):
            output = model(noisy, batch.lengths)
        loss = total_loss(self.recipe.objectives, output, target, batch.clean)
        terms = {name: term.mean(1) if term.dim() > 1 else term for name, term in loss.terms.items()}
        weights = beside(target.lengths / batch.planned_frames, loss.total)
        return StepLoss(loss.total, terms, weights, batch.seconds)

    def sources(self, batch: Batch) -> dict[str, Tensor]:
        noisy, target = self.inputs(batch)
        return {"clean speech": batch.clean, "contaminated speech": noisy, "teacher's targets": target.hidden}

    def ids(self, batch: Batch) -> list[str]:
        return [scene.utterance for scene in batch.scenes]

    def validate(self) -> dict[str, float]:
        return self.validator(self.student, self.precision)

    def keep(self, progress: TrainingProgress, metrics: dict[str, float]) -> None:
        folder = self.run / "student"
        write_student(folder, self.student, self.recipe, self.materials, self.teacher, progress, metrics, self.earlier)

    def is_kept(self) -> bool:
        return (self.run / "student" / "config.json").is_file()

    def plan(self) -> list[str]:
        """What the run is about to do, in words."""
        m, teacher, environment, settings = self.materials, self.teacher, self.recipe.environment, self.recipe.training
        kinds = environment.noise_kinds.model_dump() if environment.uses_noise else {}
        made = [kind for kind, share in kinds.items() if share and kind != "recorded"]
        lines = [
            f"{self.recipe.name}: {m.hours:.2f} h of speech ({m.count} recordings, {len(m.valid)} held out"
            + (f", {m.skipped} skipped" if m.skipped else "")
            + f"), {len(m.noise['train'])} noise recordings"
            + (f" and {', '.join(made)} noise" if made else "")
            + f", {len(m.rooms['train']) or f'{environment.simulated_rooms} simulated'} rooms",
            f"teacher {teacher.name} ({teacher.source}) {teacher.num_parameters / 1e6:.1f} M, layers "
            f"{', '.join(map(str, teacher.layers))} -> student {self.student.num_parameters / 1e6:.2f} M "
            f"({self.initialisation})",
            f"{settings.steps} steps of {self.recipe.data.batch_seconds:g} s in {self.sampler.microbatches} microbatches, "
            f"{self.sampler.steps_per_epoch:.0f} an epoch, {self.precision} on {self.device} x {self.context.world}",
        ]
        if len(m.valid) < FEW:
            lines.append(
                f"note: validation rests on {len(m.valid)} recording{'s' * (len(m.valid) != 1)}, so that the choice of the "
                "best step is a matter of chance: give more speech, or raise data.valid_fraction"
            )
        return lines


def load_named(recipe: Recipe) -> Teacher:
    """The teacher that a recipe names. Raises `UserError` where it names none."""
    wanted = recipe.teacher
    if wanted.model is None:
        raise UserError("The recipe names no teacher: give --teacher with a hub name or a model folder.")
    return load_teacher(wanted.model, wanted.layers, wanted.precision, None, wanted.target_norm)
