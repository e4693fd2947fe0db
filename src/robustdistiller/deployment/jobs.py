"""What is exported: the options, and the graphs that they ask for, each with what PyTorch says to the same audio."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..evaluation.false_alarms import DetectionHead
from ..models.student import Student, load_student
from .graph import ClassifierGraph, EncoderGraph, EnhancerGraph, at_level, trace_waves
from .parity import Reference
from .stream_export import StreamJob, trace_stream
from .stream_graph import DetectorGraph, StreamGraph
from .task_head import TaskHead


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Attributes:
        int8: Also in 8 bits.
        enhance: Also the enhancement head.
        task: A head of the benchmark.
        task_file: The task to measure its accuracy on.
        last: Only the last state.
        predictions: Also the predicted teacher layers.
        licence: Written into the files; None: the one in the model card.
        force: Write files that fell short of a limit, with everything in 8 bits.
        speech: Sources to calibrate with, as are `noise` and `rooms`.
        noise: See `speech`.
        rooms: See `speech`.
        clips: How many utterances of it.
        seed: Of the calibration.
    """

    int8: bool = False
    enhance: bool = False
    task: str | None = None
    task_file: str | None = None
    last: bool = False
    predictions: bool = False
    licence: str | None = None
    force: bool = False
    speech: tuple[str, ...] = ()
    noise: tuple[str, ...] = ()
    rooms: tuple[str, ...] = ()
    clips: int = 48
    seed: int = 0


@dataclass
class Job:
    """A graph on its way: its model, and what PyTorch says to the same audio in float64 and in float32."""

    name: str
    kind: str
    model: Any
    reference: Reference
    single: Reference | None
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    task: str = ""
    states: tuple[str, ...] = ()
    stream: StreamJob | None = None


def trace_jobs(
    folder: str, loaded: Student, options: ExportOptions, predictions: bool, head: TaskHead | None
) -> list[Job]:
    """All graphs that are wanted. The student is loaded afresh, because tracing changes it."""
    single = functools.cache(lambda: load_student(folder))  # rarely asked

    def in_both(compute: Callable[[Student, Tensor, Tensor], Sequence[Tensor]]) -> tuple[Reference, Reference]:
        return functools.partial(compute, loaded), lambda wave, lengths: compute(single(), wave, lengths)

    def features(student: Student, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return student.states(wave, lengths, predictions)

    def last(student: Student, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        states, frames = student.states(wave, lengths)
        return states[:, -1:], frames

    fresh = load_student(folder)
    network = EncoderGraph(fresh, predictions and not options.last, options.last)
    model = trace_waves(network, ["states", "frames"])
    jobs = [Job("encoder", "encoder", model, *in_both(last if options.last else features), states=network.names)]
    if options.enhance:
        both = in_both(lambda student, wave, lengths: [student.enhance(wave, lengths)])
        jobs.append(Job("enhancer", "enhancer", trace_waves(EnhancerGraph(fresh), ["enhanced"]), *both))
    if isinstance(head and head.head, DetectionHead):
        raise UserError(
            f"The head {options.task} listens to a stream: name the operating point, as in {folder}@160+160."
        )
    if head is not None:
        names = [f"probabilities_{slot}" for slot in head.labels]
        if not all(name.isidentifier() for name in names):
            names = [f"probabilities_{number}" for number in range(len(names))]
        classifier = ClassifierGraph(fresh, head.head, head.level, predictions)

        def probabilities(student: Student, wave: Tensor, lengths: Tensor) -> Sequence[Tensor]:
            levelled = at_level(wave, lengths, head.level) if head.level is not None else wave
            return classifier.classify(*features(student, levelled, lengths))

        both = in_both(probabilities)
        jobs.append(Job(head.task, "classifier", trace_waves(classifier, names), *both, head.labels, head.task))
    return jobs


def trace_stream_jobs(
    folder: str, loaded: Student, options: ExportOptions, predictions: bool, head: TaskHead | None
) -> list[Job]:
    """The step of a streaming student, and that of its head if there is one."""
    if options.enhance or options.last:
        raise UserError("A stream has all states and no enhancement head: leave --enhance and --last out.")
    chunking = loaded.chunking
    assert chunking is not None
    jobs = []
    for part in (None, head)[: 1 if head is None else 2]:
        fresh = load_student(folder)
        network = StreamGraph(fresh, chunking, predictions) if part is None else DetectorGraph(fresh, chunking, part)
        stream = StreamJob(network, loaded, part)
        name, labels, task = ("encoder", {}, "") if part is None else (part.task, part.labels, part.task)
        jobs.append(
            Job(f"{name}.stream", stream.description.kind, trace_stream(network), stream.references, None, labels, task,
                 stream.description.states, stream)
        )  # fmt: skip
    return jobs
