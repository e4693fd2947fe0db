"""A student folder → a folder of ONNX files that are proved equal to it before they appear.

OUT/encoder.onnx          waveform → hidden states
OUT/enhancer.onnx         waveform → enhanced waveform           (enhance)
OUT/<task>.onnx           waveform → probabilities of labels     (task)
OUT/*.stream.onnx         a chunk and a state → states or probabilities, and the next state   (STUDENT@160+160)
OUT/*.int8.onnx           the same in 8 bits                     (int8)
OUT/export.json           what was measured
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import __version__
from ..audio.io import SAMPLE_RATE
from ..errors import UserError, optional
from ..files import replacing_folder, telling_name, write_json
from ..models.frames import GRID
from ..models.repository import ModelFiles, locate
from ..models.streaming import split_operating_point
from ..models.student import Student, load_student
from ..progress import PartProgress
from ..runtime.container import Description
from .calibration import calibration_waves
from .cost import licence_of, macs_per_second
from .jobs import ExportOptions, Job, trace_jobs, trace_stream_jobs
from .onnx_file import write_model
from .parity import AGREEMENT, COSINE, TOLERANCE, Measured, answers, compare, fidelity, varied_audio
from .quantise import FRONT_END, Ranges, feeds, quantise
from .stream_export import StreamJob, StreamSession
from .task_head import TaskHead, find_head, labelled_audio

logger = logging.getLogger(__name__)

REPORT = "export.json"
ACCURACY_POINTS = 0.5
# What stays in float32 where everything in 8 bits falls short, tried in turn, the cheapest first.
_POSITION = "encoder.model.encoder.pos_conv"
SPARED = {
    "": (),
    "position convolution": (_POSITION,),
    "front end": (FRONT_END,),
    "convolutions": (FRONT_END, _POSITION),
}


@dataclass
class Exported:
    """One file: where it is, what it says of itself, and what was measured."""

    path: Path
    description: Description
    measured: Measured
    bytes: int = 0
    short: str | None = None  # the limit that it fell short of, when forced


def export_student(
    student: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: ExportOptions = ExportOptions(),
    progress: PartProgress | None = None,
) -> list[Exported]:
    """Export a student folder into the folder `out`, which is replaced as a whole when everything has been checked.

    fp32 files must equal PyTorch within 1e-4 on noise, voice-like and real audio of many lengths, alone and in batches.
    int8 files must keep a mean cosine of 0.999 with fp32 on the valid frames of contaminated speech in every state, a
    classifier its answers on 99.5 % of it, or its accuracy within 0.5 point where `task_file` gives labels; where they do
    not, parts of them stay in float32 (`SPARED`). ``folder@160+80`` exports one step of a streaming student instead, with
    chunks of 160 ms and a look-ahead of 80 ms.

    Args:
        student: A student folder, a shipped name, or one of the hub.
        out: The folder of the files.
        options: What to export.
        progress: Called with (what is done, units done, units in all).

    Returns:
        The files, with what was measured of each.

    Raises:
        UserError: The folder is no student, the head does not belong to it, or a limit is not kept.

    Example:
        >>> files = export_student("mini-robust", "exported", ExportOptions(int8=True))  # doctest: +SKIP
        >>> [(file.path.name, file.measured.error) for file in files]  # doctest: +SKIP
    """
    out = Path(out)
    _check_target(out)
    _require_packages()
    report = progress or (lambda what, done, total: None)
    name = os.fspath(student)
    files = locate(split_operating_point(name)[0], also=("README.md",))
    loaded = load_student(name).double()  # the reference: float32 has errors of its own
    head = find_head(options.task, name, loaded) if options.task else None
    predictions = options.predictions or (head is not None and len(head.states) > len(loaded.states_names))
    report("tracing", 0, 1)
    if loaded.chunking is None:
        jobs = trace_jobs(name, loaded, options, predictions, head)
    else:
        jobs = trace_stream_jobs(name, loaded, options, predictions, head)
    report("tracing", 1, 1)
    real, told = _audio(files.folder, options)
    labelled = labelled_audio(options.task_file, head) if options.task_file and head else None
    about = _about(files, loaded, options)
    done: list[Exported] = []
    ranges: Ranges = {}
    with replacing_folder(out) as folder:
        for job in jobs:
            # Without labels, equal answers to whatever was calibrated with say little: the states must be right as well.
            first = done[1].measured.spared if options.int8 and job.kind == "classifier" and not labelled else ""
            # A classifier may take the waveform at another level.
            done += _write(job, folder, out, about, real, labelled, head, options, report, first,
                           {} if job.kind == "classifier" else ranges)  # fmt: skip
        write_json(
            folder / REPORT,
            {
                "format": 1,
                "student": about.student,
                "measured on": f"{len(real)} contaminated utterances of {told}" if real else "synthetic audio only",
                "files": {file.path.name: _row(file) for file in done},
            },
        )
    return done


def _write(
    job: Job,
    folder: Path,
    out: Path,
    about: Description,
    real: list[NDArray[np.float32]],
    labelled: Any,
    head: TaskHead | None,
    options: ExportOptions,
    report: PartProgress,
    first: str,
    ranges: Ranges,
) -> list[Exported]:
    """One graph in fp32 and, if wanted, int8: measured, judged, written.

    first: the part that is spared at least; ranges: those of 8-bit activations that were found before
    """
    calibration, held_out = real[: -len(real) // 3 or None], real[-len(real) // 3 :]
    report(f"checking {job.name}", 0, 1)
    fp32 = _session(job.model, job.stream)
    measured = compare(fp32, job.reference, varied_audio(held_out, options.seed), job.single)
    fp32_path = folder / f"{job.name}.onnx"
    description = replace(
        about,
        kind=job.kind,
        precision="fp32",
        labels=job.labels,
        task=job.task,
        states=job.states,
        stream=job.stream.description.stream if job.stream else {},
        parameters=_parameters(job.model),
        measured=measured.to_dict(),
    )
    short = None
    if measured.exceeded:
        short = f"{job.name}.onnx differs from PyTorch by {measured.exceeded}, where {TOLERANCE:.0e} is allowed"
    _judge(short, "fp32", options)
    write_model(fp32_path, job.model, description)
    report(f"checking {job.name}", 1, 1)
    done = [Exported(out / fp32_path.name, description, measured, fp32_path.stat().st_size, short)]
    if not options.int8:
        return done
    calibrating = job.stream.steps(fp32.model, calibration) if job.stream else calibration
    wanted = answers(fp32, held_out)
    for spared, nodes in list(SPARED.items())[list(SPARED).index(first) :]:
        model = quantise(job.model, calibrating, nodes, lambda k, n: report(f"calibrating {job.name}", k, n), ranges)
        int8 = _session(model, job.stream)
        measured = fidelity(wanted, answers(int8, held_out), job.kind)
        measured.spared, measured.seconds = spared, sum(map(len, held_out)) / SAMPLE_RATE
        short = _shortfall(job, measured)
        if job.kind == "classifier" and labelled is not None and head is not None:
            measured.agreement = None  # the answers on one audio and the accuracy on another look like a contradiction
            short = _accuracy(job, int8, labelled, head, measured)
        if short is None or options.force:
            break
        logger.info("%s", short)
    _judge(short, "int8", options)
    path = folder / f"{job.name}.int8.onnx"
    description = replace(description, precision="int8", measured=measured.to_dict())
    write_model(path, model, description)
    return [*done, Exported(out / path.name, description, measured, path.stat().st_size, short)]


def _shortfall(job: Job, measured: Measured) -> str | None:
    """What an int8 graph fell short of, as the first half of a sentence."""
    if measured.agreement is not None and measured.agreement < AGREEMENT:
        return (
            f"{job.name}.int8.onnx gives the answer of fp32 in {measured.agreement:.1%} of cases, not {AGREEMENT:.1%}"
        )
    if measured.cosine and min(measured.cosine) < COSINE:
        worst = int(np.argmin(measured.cosine))
        state = f" in the state '{job.states[worst]}'" if job.states else ""
        return f"{job.name}.int8.onnx keeps a cosine of {measured.cosine[worst]:.4f} with fp32{state}, not {COSINE}"
    return None


def _accuracy(job: Job, int8: Any, labelled: Any, head: TaskHead, measured: Measured) -> str | None:
    """Accuracy on labelled audio, in PyTorch and int8, into `measured`; the shortfall as half a sentence."""
    right, (waves, labels) = {"fp32": 0, "int8": 0}, labelled
    for wave, answer in zip(waves, labels, strict=True):
        with torch.no_grad():
            wanted = job.reference(torch.from_numpy(wave)[None].double(), torch.tensor([len(wave)]))
        right["fp32"] += head.answers(wanted)[0] == answer
        right["int8"] += head.answers(int8.run(None, feeds(wave)))[0] == answer
    measured.accuracy = {name: count / len(waves) for name, count in right.items()}
    lost = 100 * (right["fp32"] - right["int8"]) / len(waves)
    if lost > ACCURACY_POINTS:
        return f"{job.name}.int8.onnx loses {lost:.1f} points of accuracy on {len(waves)} utterances"
    return None


def _judge(short: str | None, precision: str, options: ExportOptions) -> None:
    if short and not options.force:
        way = {
            "fp32": "use the packages of robustdistiller[export] in versions that it was tested with, or",
            "int8": "calibrate with more --speech, leave --int8 out, or",
        }[precision]
        raise UserError(f"{short}: {way} pass --force to keep the file.")
    if short:
        logger.warning("%s; it is kept because of --force", short)


def _audio(folder: Path, options: ExportOptions) -> tuple[list[NDArray[np.float32]], str]:
    """Contaminated speech to calibrate with; a little of it, if there is any, to check with."""
    sources = (options.speech, options.noise, options.rooms)
    if not options.int8:
        try:
            return calibration_waves(folder, *sources, count=6, seed=options.seed)
        except UserError:
            if options.speech:
                raise
            return [], ""
    waves, told = calibration_waves(folder, *sources, count=options.clips, seed=options.seed)
    if len(waves) < 6:
        raise UserError(f"Only {len(waves)} utterances of {told} can be used to calibrate with: give at least 6.")
    return waves, told


def _about(files: ModelFiles, student: Student, options: ExportOptions) -> Description:
    weights = hashlib.sha256()
    for name in files.weights:
        weights.update((files.folder / name).read_bytes())
    return Description(
        kind="encoder",
        precision="fp32",
        student=telling_name(files.name),
        sampling_rate=SAMPLE_RATE,
        stride=GRID.stride,
        field=GRID.field,
        normalize=student.encoder.normalize,
        hidden=student.hidden_size,
        licence=options.licence or licence_of(files.folder),
        weights=weights.hexdigest(),
        macs_per_second=macs_per_second(student),
        version=__version__,
    )


def _check_target(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not (out / REPORT).is_file():
        raise UserError(f"The folder {out} holds something else than an export: choose another --out.")


def _require_packages() -> None:
    for name in ("onnx", "onnxruntime"):
        optional(name, "export", "Exporting")


def _session(model: Any, stream: StreamJob | None = None) -> Any:
    """What answers whole recordings."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session if stream is None else StreamSession(stream.description, session)


def _parameters(model: Any) -> int:
    return sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)


def _row(file: Exported) -> dict[str, Any]:
    row = {"bytes": file.bytes, "precision": file.description.precision, **file.measured.to_dict()}
    return row | ({"fell short": file.short} if file.short else {})
