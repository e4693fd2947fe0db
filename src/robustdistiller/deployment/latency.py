"""Speed, size and memory of models side by side: a process for each, runs interleaved, everything relative to a reference.

On a machine with other work to do, times of different moments cannot be compared. All models are therefore loaded first, and
then run in turns, one run each, many times over; the minimum says what the model can do, the median what this machine gave it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..audio.io import SAMPLE_RATE
from ..errors import UserError
from ..evaluation.evaluated import model_name
from ..files import GENERIC
from ..models.frames import GRID
from ..models.hub import load_encoder
from ..models.repository import locate
from ..progress import PartProgress
from ..runtime.container import Description, describe
from .cost import macs_per_second
from .export import REPORT

logger = logging.getLogger(__name__)

FORMATS = ("torch", "onnx", "int8")
ENGINES = {"openvino": "onnx"}  # the fp32 file in OpenVINO, where it is asked for and installed
# What the speed of 8-bit and 32-bit arithmetic depends on.
FLAGS = ("amx_int8", "amx_bf16", "avx512_vnni", "avx_vnni", "avx512f", "avx2", "avx", "i8mm", "asimddp", "asimd", "sve")


@dataclass(frozen=True)
class Candidate:
    """A model in one format: `path` is a folder or hub name (torch) or an .onnx file (all others)."""

    name: str
    format: str
    path: str
    parameters: int
    macs_per_second: float
    bytes: int


@dataclass
class Timing:
    """Runs of one candidate on so many threads, in seconds; processor: time of all cores; peak: bytes of memory."""

    threads: int
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    peak: int = 0
    model: int = 0

    @property
    def minimum(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass
class LatencyResult:
    """One row of the table: a candidate with its timings by number of threads."""

    candidate: Candidate
    timings: dict[int, Timing]


@dataclass
class Latency:
    """All rows; the first is the reference. audio: seconds of audio in a run."""

    rows: list[LatencyResult]
    audio: float
    repeats: int
    machine: dict[str, Any]

    def factor(self, row: LatencyResult, threads: int) -> float:
        """How many times faster than the reference on as many threads, by the minimum."""
        return self.rows[0].timings[threads].minimum / row.timings[threads].minimum

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with real-time factors."""
        rows = []
        for row in self.rows:
            timings = {
                str(n): {
                    "rtf_minimum": t.minimum / self.audio, "rtf_median": t.median / self.audio,
                    "times_reference": self.factor(row, n), "peak_bytes": t.peak, "model_bytes": t.model,
                    "seconds": t.seconds, "processor_seconds": t.processor,
                }
                for n, t in row.timings.items()
            }  # fmt: skip
            rows.append({**asdict(row.candidate), "threads": timings})
        return {
            "format": 1,
            "audio_seconds": self.audio,
            "repeats": self.repeats,
            "machine": self.machine,
            "rows": rows,
        }


def measure_latency(
    models: Sequence[str],
    reference: str | None = None,
    formats: Sequence[str] = FORMATS,
    threads: Sequence[int] = (1,),
    audio: float = 5.0,
    repeats: int = 9,
    progress: PartProgress | None = None,
) -> Latency:
    """Measure models against a reference in PyTorch.

    models: student folders and hub names (exported on the fly for the other formats than torch), folders that `export` wrote,
    and .onnx files; each optionally as ``name=model``. reference: None for the first of them.
    formats: of `FORMATS` and `ENGINES`
    Raises `UserError` for a model that cannot be opened or a measurement that cannot be made.
    """
    unknown = [name for name in formats if name not in (*FORMATS, *ENGINES)]
    if unknown or not formats:
        known = ", ".join((*FORMATS, *ENGINES))
        raise UserError(f"There is no format {(unknown or ['(none)'])[0]}: choose from {known}.")
    if not models:
        raise UserError("There is nothing to measure: give student folders, exported folders or .onnx files.")
    if repeats < 1 or audio < 0.1 or any(n < 1 for n in threads) or not threads:
        raise UserError("A measurement needs a thread, a run and 0.1 s of audio at least: correct the options.")
    report = progress or (lambda what, done, total: None)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        listed = [reference, *(m for m in models if m != reference)] if reference else list(models)
        candidates: list[Candidate] = []
        for number, model in enumerate(listed):
            report("preparing", number, len(listed))
            # A large reference would take minutes to export, and is compared with as it is.
            wanted = ("torch",) if number == 0 and reference else formats
            candidates += _candidates(model, wanted, Path(folder))
        _check_names(candidates)
        workers = {}
        total = len(candidates) * len(threads)
        for number, (candidate, n) in enumerate((c, n) for c in candidates for n in threads):
            report("loading", number, total)
            workers[candidate, n] = stack.enter_context(_worker(candidate, n, audio))
        timings = {key: Timing(key[1]) for key in workers}
        for number in range(repeats):
            report("measuring", number, repeats)
            for key, ask in workers.items():
                answer, timing = ask(), timings[key]
                timing.seconds.append(answer["seconds"])
                timing.processor.append(answer["processor"])
                timing.peak, timing.model = answer["peak"], answer["model"]
        report("measuring", repeats, repeats)
    rows = [LatencyResult(c, {n: timings[c, n] for n in threads}) for c in candidates]
    return Latency(rows, audio, repeats, describe_machine())


def describe_machine() -> dict[str, Any]:
    """The processor, its instructions that matter here, the cores, the load before the measurement."""
    name, flags = platform.processor() or platform.machine(), set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "processor": name,
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "load": load,
        "system": platform.system(),
        "torch": torch.__version__,
    }


def _candidates(text: str, formats: Sequence[str], scratch: Path) -> list[Candidate]:
    """A model in every format that is wanted and possible."""
    name, model = named(text)
    path = Path(model)
    if path.suffix == ".onnx":
        candidate = _exported(name, path)
        return [candidate, *(c for c in _in_engines([candidate], formats) if c.format in formats)]
    if (path / REPORT).is_file():
        exported = [path / "encoder.onnx", path / "encoder.int8.onnx"]
        found = [_exported(name, file) for file in exported if file.is_file()]
        if not found:
            raise UserError(
                f"{path} holds no encoder.onnx, and only encoders of whole recordings are measured here: export the student "
                "without an operating point (@160+160)."
            )
        found += _in_engines(found, formats)
        return [candidate for candidate in found if candidate.format in formats] or found
    files = locate(model)
    encoder = load_encoder(files)
    parameters, macs = sum(p.numel() for p in encoder.parameters()), macs_per_second(encoder)
    weights = sum((files.folder / name).stat().st_size for name in files.weights)
    made = [Candidate(name, "torch", model, parameters, macs, weights)] if "torch" in formats else []
    needed = {ENGINES.get(form, form) for form in formats} - {"torch"}
    if needed:
        folder = Path(tempfile.mkdtemp(dir=scratch))
        quick = quick_export(model, name, needed, folder)
        graphs = [Candidate(name, form, str(f), parameters, macs, f.stat().st_size) for form, f in quick.items()]
        made += [c for c in (*graphs, *_in_engines(graphs, formats)) if c.format in formats]
    return made


def _in_engines(graphs: Sequence[Candidate], formats: Sequence[str]) -> list[Candidate]:
    """The same files in the other engines that are asked for."""
    return [
        replace(c, format=form)
        for form, plain in ENGINES.items()
        if form in formats
        for c in graphs
        if c.format == plain
    ]


def _exported(name: str, file: Path) -> Candidate:
    d = describe(file)
    if d.kind != "encoder":
        raise UserError(f"{file} holds {d.named}: only encoders of whole recordings are measured here.")
    form = "int8" if d.precision == "int8" else "onnx"
    return Candidate(name, form, str(file), d.parameters, d.macs_per_second, file.stat().st_size)


def quick_export(model: str, name: str, precisions: Iterable[str], folder: Path) -> dict[str, Path]:
    """A student's graph as encoder.onnx and encoder.int8.onnx, without any check and with ranges from noise: for its speed.

    precisions: of ``onnx`` and ``int8``; returns the files by precision
    """
    from ..models.student import load_student
    from .graph import EncoderGraph, trace_waves
    from .onnx_file import write_model
    from .quantise import quantise

    student = load_student(model)
    network = EncoderGraph(student)
    noise = 0.1 * np.random.default_rng(0).standard_normal((2, 16_000)).astype(np.float32)
    graph = trace_waves(network, ["states", "frames"])
    files = {}
    for precision in sorted(set(precisions), key=FORMATS.index):
        fp32 = precision == "onnx"
        files[precision] = folder / ("encoder.onnx" if fp32 else "encoder.int8.onnx")
        about = Description(
            "encoder", "fp32" if fp32 else "int8", name, SAMPLE_RATE, GRID.stride, GRID.field, student.encoder.normalize,
            network.names, student.hidden_size, parameters=student.num_parameters,
        )  # fmt: skip
        write_model(files[precision], graph if fp32 else quantise(graph, list(noise)), about)
    return files


def named(text: str) -> tuple[str, str]:
    """As `model_name`, for exported files too."""
    name, model = model_name(text, (*GENERIC, "encoder.onnx", "encoder.int8.onnx"))
    return (name.removesuffix(".onnx").removesuffix(".int8") if model == text else name), model


def _check_names(candidates: Sequence[Candidate]) -> None:
    seen: set[tuple[str, str]] = set()
    for candidate in candidates:
        key = (candidate.name, candidate.format)
        if key in seen:
            raise UserError(f"Two models are called {candidate.name}: name one of them yourself, as other-name=MODEL.")
        seen.add(key)


@contextlib.contextmanager
def _worker(candidate: Candidate, threads: int, audio: float) -> Iterator[Callable[[], dict[str, Any]]]:
    """A process that holds the model; calling what it yields runs the model once."""
    task = {"model": candidate.path, "format": candidate.format, "threads": threads, "seconds": audio}
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "robustdistiller.deployment.latency_worker", json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
        )

        def ask(send: bool = True) -> dict[str, Any]:
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                if send:
                    process.stdin.write("\n")
                    process.stdin.flush()
            line = process.stdout.readline()
            if not line.startswith("{"):
                process.wait(10)
                errors.seek(0)
                reason = (errors.read().strip().splitlines() or ["it was ended, perhaps for lack of memory"])[-1]
                raise UserError(f"{candidate.name} ({candidate.format}) cannot be measured: {reason[:200]}")
            return json.loads(line)  # type: ignore[no-any-return]

        try:
            ask(send=False)
            yield ask
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
