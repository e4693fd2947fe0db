"""The loop: contaminated speech in, the teacher's clean hidden layers out; one function from a recipe to a student folder.

`distill` reads top to bottom: gather the materials, build teacher and student, resume if asked, then per step draw a global
batch, render its scenes, ask the teacher, take the loss, step, and now and then validate and save. The order of the data,
every contamination, dropout and the learning rate are pure functions of (seed, step, rank), so a run that was killed and
resumed ends with the weights of one that was not, and one process, two, or two machines see the same global batches.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config import Recipe
from ..errors import UserError
from ..files import write_json
from ..models.precision import pick_precision
from ..models.student import Student, build_student
from ..models.teacher import Teacher, TeacherOutput, load_teacher
from ..objectives.total import total_loss
from ..provenance import inherited
from ..randomness import integer
from . import checkpoint
from .card import write_student
from .checkpoint import Progress
from .data import (
    Batch,
    CropDataset,
    Planner,
    StepSampler,
    collate,
    dismiss,
    make_loader,
    named_deaths,
    next_batch,
    open_speech,
    plan_batches,
    some_speech,
)  # fmt: skip
from .environment import Materials, Reporter, gather
from .guard import Guard
from .metrics import MetricsLog, validation_at
from .optimiser import build_optimiser, learning_rate
from .processes import Interrupted, company, start_engine, stopping
from .record import check_resumable, record_run, same_batches
from .targets import TargetCache
from .validation import Validator

logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Who watches a run, for example the progress bar of the command line."""

    def work(self, what: str, done: int, total: int) -> None:
        """Long preparation, such as scanning a corpus."""

    def plan(self, plan: Plan) -> None:
        """Called once, before the first step."""

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Called after every step; `metrics` is empty except at every `log_every`-th."""

    def validated(self, step: int, metrics: dict[str, float], best: bool) -> None:
        """Called after every validation."""


class Silent:
    """The observer that says nothing."""

    def work(self, what: str, done: int, total: int) -> None: ...

    def plan(self, plan: Plan) -> None: ...

    def step(self, step: int, metrics: dict[str, float]) -> None: ...

    def validated(self, step: int, metrics: dict[str, float], best: bool) -> None: ...


@dataclass
class Plan:
    """What a run is about to do, for the plan line."""

    materials: Materials
    teacher: Teacher
    student: Student
    initialisation: str
    precision: str
    device: str
    processes: int
    start: int
    steps: int
    seconds_per_step: float
    steps_per_epoch: float

    @property
    def seconds_left(self) -> float:
        return (self.steps - self.start) * self.seconds_per_step


@dataclass
class Result:
    """The end of a run: the student folder, the metrics of its best validation, where it stood, and `TargetCache.report`."""

    student: Path
    metrics: dict[str, float]
    progress: Progress = field(default_factory=Progress)
    cache: dict[str, Any] | None = None


def distill(
    recipe: Recipe,
    out: str | os.PathLike[str],
    resume: bool = False,
    observer: Observer | None = None,
    tensorboard: bool = False,
    teacher: Teacher | None = None,
) -> Result:
    """Run a recipe and leave ``out/student``, a folder that `load_student` and `transformers` open.

    resume: go on from the newest checkpoint in `out` (a run that has ended returns at once); teacher: one that is loaded
    already, instead of `recipe.teacher.model`. Under ``torchrun`` every process calls this with the same arguments.
    Raises `UserError` before any work for wrong input, and `Interrupted` after saving on SIGTERM or Ctrl-C.
    """
    with ExitStack() as resources, company(Path(out)):
        return _distill(resources, recipe, Path(out), resume, observer or Silent(), tensorboard, teacher)


def _distill(
    resources: ExitStack,
    recipe: Recipe,
    run: Path,
    resume: bool,
    observer: Observer,
    tensorboard: bool,
    teacher: Teacher | None,
) -> Result:
    """`distill`; what must be let go of at the end, whatever ends it, is left to `resources`."""
    accelerator = start_engine(recipe.training.timeout)
    main, rank, world = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes
    device = accelerator.device

    found = checkpoint.available(run)
    if main and found and resume:
        checkpoint.sweep(run)
    check_resumable(run, recipe, resume, bool(found))
    asked = recipe
    if found:
        recipe = same_batches(run, recipe, world)
    settings = recipe.training
    if teacher is None and recipe.teacher.model is None:
        raise UserError("The recipe names no teacher: give --teacher with a hub name or a model folder.")
    earlier = inherited(recipe)
    if teacher is None:  # before hours of speech are scanned
        wanted = recipe.teacher
        teacher = load_teacher(
            str(wanted.model), wanted.layers, wanted.precision, None, wanted.target_norm, wanted.average
        )
    with accelerator.main_process_first():  # the others then read what the first one scanned
        materials = gather(recipe, run, _reporter(observer) if main else None, rank)
    if materials.spool is not None:
        resources.callback(materials.spool.close)
    teacher.stop_at_highest().to(device)
    chosen = recipe.teacher
    cache = TargetCache(chosen.cache, chosen.cache_gb, teacher, device) if chosen.cache is not None else None
    student, initialisation = build_student(
        teacher, recipe.student, recipe.objectives.enhancement, settings.seed,
        () if found else some_speech(materials, settings.seed),
    )  # fmt: skip
    precision = pick_precision(settings.precision, device, student.encoder)
    sampler = plan_batches(recipe, materials, rank, world)

    student.to(device)
    optimiser = build_optimiser(student, settings)
    progress = checkpoint.load(found[-1], student, optimiser) if found else Progress()
    if main:
        record_run(run, asked, materials, precision, world, settings.accumulate, progress.step if found else None)
    model: Any = accelerator.prepare_model(student)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    if progress.scaler:
        scaler.load_state_dict(progress.scaler)

    validator = Validator(
        recipe, materials.valid, materials.valid_environment, teacher, device, rank, world,
        lambda sums: accelerator.reduce(sums, "sum"),
    )  # fmt: skip
    log = MetricsLog(run, progress.step, tensorboard) if main else None
    dataset, ready = open_speech(recipe, materials, sampler)
    loader = make_loader(
        dataset, StepSampler(sampler, progress.step, settings.steps, ready), recipe.data.workers, device.type == "cuda",
        keyed=cache is not None,
    )  # fmt: skip

    def heard(batch: Batch) -> tuple[Tensor, TeacherOutput]:
        """What student and teacher make a microbatch of: contaminated speech (B, T), and clean targets."""
        noisy = materials.train_environment.render(batch.clean, batch.lengths, batch.noise, batch.scenes)
        if cache is not None and batch.keys is not None:
            return noisy, cache(batch.clean, batch.lengths, batch.keys)
        return noisy, teacher(batch.clean, batch.lengths)

    def origin(batch: Batch) -> dict[str, Tensor]:
        noisy, target = heard(batch)
        return {"clean speech": batch.clean, "contaminated speech": noisy, "teacher's targets": target.hidden}

    def losses(batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Forward passes of one microbatch: loss and terms per utterance (B,), and the frames that weight them."""
        noisy, target = heard(batch)
        with torch.autocast(device.type, _DTYPES.get(precision), enabled=precision != "fp32"):
            output = model(noisy, batch.lengths)
        loss = total_loss(recipe.objectives, output, target, batch.clean)
        terms = {name: term.mean(1) if term.dim() > 1 else term for name, term in loss.terms.items()}
        return loss.total, terms, target.lengths

    def save() -> None:
        if main:
            progress.scaler = dict(scaler.state_dict()) if precision == "fp16" else {}
            checkpoint.save(run, student, optimiser, progress, settings.keep)
        accelerator.wait_for_everyone()

    def validate() -> dict[str, float]:
        metrics = validator(student, precision)
        judged = metrics["loss/contaminated"]
        best = progress.best is None or judged < progress.best
        if best:  # a loss that is not finite is no record: the next one beats it
            progress.best, progress.best_step = judged if math.isfinite(judged) else None, progress.step
        if main:
            assert log is not None
            log.write(progress.step, {f"valid/{name}": value for name, value in metrics.items()})
            if best:
                write_student(run / "student", student, recipe, materials, teacher, progress, metrics, earlier)
            observer.validated(progress.step, metrics, best)
        accelerator.wait_for_everyone()
        return metrics

    batches = iter(loader)
    resources.callback(dismiss, batches)
    running: dict[str, Tensor] = {}
    peaks = {"loss_peak": 0.0, "grad_norm_peak": 0.0}
    since = taken = 0
    guard = Guard(run if main else None, scaler.is_enabled(), origin)
    unfinished = progress.step < settings.steps
    with named_deaths(dataset, "then go on with --resume."):  # the workers read already
        speed = 0.0
        if unfinished:
            ready(progress.step)
            speed = _measure_speed(_first_batch(sampler, dataset, progress.step).to(device), losses, student)
    if main:
        observer.plan(
            Plan(
                materials, teacher, student, str(initialisation), precision, str(device), world, progress.step,
                settings.steps, speed * settings.accumulate, sampler.steps_per_epoch,
            )
        )  # fmt: skip
    student.train()
    clock = time.monotonic()
    with stopping() as stop, named_deaths(dataset, "then go on with --resume."):
        while progress.step < settings.steps:
            step = progress.step
            planned = sampler.batch(step)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(settings, step)
            sums: dict[str, Tensor] = {}
            guard.begin()
            for micro in range(settings.accumulate):
                batch = next_batch(batches, device)
                if main and log is not None and batch.replaced:
                    log.replaced(batch.replaced)
                # Dropout is drawn from (seed, step, share of the batch): no generator state to save, and no matter whose it is.
                torch.manual_seed(integer(settings.seed, "dropout", step, rank * settings.accumulate + micro, 0))
                last = micro == settings.accumulate - 1
                with nullcontext() if last else accelerator.no_sync(model):
                    per_utterance, terms, frames = losses(batch)
                    # Each utterance weighs its share of the valid frames of the whole global batch, known beforehand; the
                    # engine averages gradients over ranks, hence the factor `world`.
                    weights = frames / planned.planned_frames
                    loss = (per_utterance * weights).sum()
                    scaler.scale(loss * world).backward()
                guard.hear(batch, per_utterance, terms)
                for name, values in {"loss": per_utterance, **terms}.items():
                    sums[name] = sums.get(name, 0) + (values.detach() * weights).sum()
                progress.audio_seconds += float(batch.lengths.sum()) / 16_000 * world
            scaler.unscale_(optimiser)
            parameters = list(student.parameters())
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            # The norm is that of the whole batch on every rank, the loss is not: they must agree on taking the step.
            spoilt = ~torch.isfinite(torch.stack([norm, sums["loss"]]))
            vitals = accelerator.reduce(torch.cat([spoilt.float(), sums["loss"][None].float()]), "sum").tolist()
            finite, whole_loss = not any(vitals[:2]), vitals[2]
            progress.step += 1
            if finite:
                torch.nn.utils.clip_grads_with_norm_(parameters, settings.clip, norm)
                scaler.step(optimiser)
                guard.passed()
                running = {name: running.get(name, 0) + value for name, value in sums.items()}
                taken += 1
                peaks = {
                    name: max(peaks[name], value) for name, value in zip(peaks, (whole_loss, float(norm)), strict=True)
                }
            else:
                progress.skipped_steps += 1
                guard.skipped(progress.step, student, not vitals[1], _advice(run))
            scaler.update()  # lowers the scale of fp16 after an overflow
            optimiser.zero_grad(set_to_none=True)

            since += 1
            now: dict[str, float] = {}
            if progress.step % settings.log_every == 0 or progress.step == settings.steps:
                if taken:  # the same number on every rank
                    means = accelerator.reduce(torch.stack(list(running.values())).double() / taken, "sum")
                    now = dict(zip(sums, means.tolist(), strict=True)) | peaks
                elapsed = time.monotonic() - clock
                progress.seconds += elapsed
                clock = time.monotonic()
                now |= {
                    **({"grad_norm": float(norm)} if finite else {}),
                    "learning_rate": learning_rate(settings, step),
                    "seconds_per_step": elapsed / since,
                    "skipped_steps": progress.skipped_steps,
                }
                running, since, taken, peaks = {}, 0, 0, dict.fromkeys(peaks, 0.0)
                if log is not None:
                    log.write(progress.step, {f"train/{name}": value for name, value in now.items()})
            observer.step(progress.step, now)
            ended = progress.step == settings.steps
            if ended or progress.step % settings.valid_every == 0:
                validate()
                clock = time.monotonic()
            asked_to_stop = bool(accelerator.reduce(torch.tensor(float(stop.is_set()), device=device), "sum"))
            # In trouble nothing is saved, so that --resume takes the skipped steps again.
            if ended or asked_to_stop or (progress.step % settings.save_every == 0 and not guard.in_a_row):
                save()
            if asked_to_stop and not ended:
                raise Interrupted(
                    f"Stopped at step {progress.step} of {settings.steps}; everything is saved in {run}. Run the same command "
                    "with --resume to go on."
                )
    if log is not None:
        log.close()
    if cache is not None:
        if main:
            write_json(run / "target_cache.json", cache.report())
        cache.close()
    metrics = validation_at(run, progress.best_step)
    return Result(run / "student", metrics, progress, cache.report() if cache else None)


_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def _advice(run: Path) -> str:
    found = checkpoint.available(run)
    start = f"goes on from step {int(found[-1].name[5:])}" if found else "starts again"
    return (
        f"skipped steps are listed in {run / 'non_finite.jsonl'}; leave such recordings out, or --resume, which {start}, with "
        "training.precision=fp32 or a lower training.learning_rate."
    )


def _first_batch(sampler: Planner, dataset: CropDataset, step: int) -> Batch:
    items = (dataset[(step, crop)] for crop in sampler.batch(step).parts[0])
    return collate([item for item in items if not isinstance(item, UserError)])  # raised here, a value in workers only


def _measure_speed(batch: Batch, losses: Callable[[Batch], Any], student: Student) -> float:
    """Seconds of a forward and backward pass on `batch`, the second of two, so that a plan can tell the time left."""
    seconds = math.inf
    for _ in range(2):
        begin = time.monotonic()
        losses(batch)[0].sum().backward()
        student.zero_grad(set_to_none=True)
        seconds = time.monotonic() - begin
    return seconds


def _reporter(observer: Observer) -> Reporter:
    return lambda what, done, total: observer.work(what, done, total)
