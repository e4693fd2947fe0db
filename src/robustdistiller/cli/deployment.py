"""The verbs of deployment: export, latency, import, push-to-hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import UserError
from ..outputs import EXPORT_FILES, STUDENT_FILES, claim_file, claim_folder, is_text_with, software
from .bars import Bars
from .options import Overwrite, Sources, argument, number, option, source
from .output import Json, answer, say, say_json, show_table

if TYPE_CHECKING:
    from ..deployment.export import Exported
    from ..deployment.latency import Latency


def export(
    student: Annotated[str, argument("A student folder (or any HuBERT-like model folder or hub name).")],
    out: Annotated[Path, option("The folder to write; it is replaced as a whole.")],
    int8: Annotated[bool, option("Also write int8 files, calibrated on noisy speech.", "--int8")] = False,
    enhance: Annotated[bool, option("Also export the enhancement head.", "--enhance")] = False,
    task: Annotated[str | None, option("Also its head: `RESULTS/heads/TASK`, or a file in it.", metavar="HEAD")] = None,
    task_file: Annotated[str | None, option("Its task, to measure its accuracy in int8.", metavar="FILE")] = None,
    last: Annotated[bool, option("Export only the last state, not all.", "--last")] = False,
    predictions: Annotated[bool, option("Also export the predicted teacher layers.", "--predictions")] = False,
    speech: Annotated[Sources, source("--speech", "Speech to calibrate and check with.")] = None,
    noise: Annotated[Sources, source("--noise", "Noise to calibrate with.")] = None,
    rooms: Annotated[Sources, source("--rooms", "Rooms to calibrate with.")] = None,
    licence: Annotated[str | None, option("Written into the files; else the model card's.", "--license")] = None,
    force: Annotated[bool, option("All in 8 bits, and also files that fall short of a limit.", "--force")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Export a student to ONNX, checked against PyTorch before anything is written.

    What is calibrated without --speech uses the training speech of the student's run, or synthetic voices.
    Run the files with `from robustdistiller.runtime import Encoder`, which needs no PyTorch.

    Example: `robustdistiller export runs/rd-hubert/student --out exported/ --int8 --enhance`
    """
    read = [student, task or "", task_file or "", *(speech or ()), *(noise or ()), *(rooms or ())]
    claim_folder(out, "export", EXPORT_FILES, "export.json", read, overwrite)
    from ..deployment.export import ExportOptions, export_student

    options = ExportOptions(
        int8, enhance, task, task_file, last, predictions, licence, force,
        tuple(speech or ()), tuple(noise or ()), tuple(rooms or ()),
    )  # fmt: skip
    with Bars() as bars:
        files = export_student(student, out, options, bars.show)
    answer(as_json, [export_row(file) for file in files], *map(export_line, files))


def latency(
    models: Annotated[list[str], argument("Students, exported folders, `.onnx` encoders; also as `name=MODEL`.")],
    reference: Annotated[str | None, option("What the others are compared with, such as the teacher.")] = None,
    formats: Annotated[list[str] | None, option("torch, onnx, int8, openvino; repeatable.", "--format")] = None,
    threads: Annotated[
        list[int] | None, option("Repeatable; by default 1 and all.", "--threads", min=1, max=1024)
    ] = None,
    seconds: Annotated[float, number("Seconds of audio in a run.", 0.1, 600, "SECONDS")] = 5.0,
    repeats: Annotated[int, option("Runs of every model, in turns.", min=1, max=100_000)] = 9,
    benchmark: Annotated[Path | None, option("A `benchmark.json` of `evaluate`, for the accuracy in --plot.")] = None,
    plot: Annotated[Path | None, option("A picture to write: accuracy against speed; needs --benchmark.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure speed, size and memory of models in PyTorch, ONNX and int8, run in turns.

    Student folders are exported on the fly; int8 ranges are then arbitrary, which changes nothing about speed.
    Example: `robustdistiller latency runs/rd/student runs/edge/student --reference facebook/hubert-base-ls960`
    """
    if (plot is None) != (benchmark is None):
        raise UserError("A plot needs both --plot FILE and --benchmark benchmark.json.")
    if plot is not None:
        if plot.suffix.lower() not in (".png", ".svg", ".pdf"):
            raise UserError(f"Cannot write {plot}: choose a name that ends in .png, .svg or .pdf.")
        claim_file(plot, "latency", is_text_with(software("latency").encode()), [*models, str(benchmark)], overwrite)
    from ..deployment.latency import FORMATS, measure_latency

    counts = list(dict.fromkeys(threads or sorted({1, os.cpu_count() or 1})))
    with Bars() as bars:
        result = measure_latency(models, reference, formats or FORMATS, counts, seconds, repeats, bars.show)
    if as_json:
        say_json(result.to_dict())
    else:
        print_latency(result, counts)
    if plot is not None and benchmark is not None:
        from ..deployment.tradeoff import plot_tradeoff

        plot_tradeoff(result, benchmark, plot, counts[0])


def import_(
    checkpoint: Annotated[Path, argument("An s3prl distiller checkpoint, such as `rd_hubert.ckpt`.")],
    out: Annotated[Path, argument("The student folder to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Turn a DistilHuBERT or RobustDistiller checkpoint of s3prl into a student folder.

    Only tensors and plain values are loaded; a file that holds other Python objects is refused.
    Example: `robustdistiller import rd_hubert.ckpt rd-hubert/`
    """
    claim_folder(out, "import", STUDENT_FILES, "heads.json", [checkpoint], overwrite)
    from ..deployment.s3prl_import import import_checkpoint

    done = import_checkpoint(checkpoint, out)
    student = done.student
    heads = f"heads for layers {', '.join(map(str, student.layers))}" if student.heads is not None else "no heads"
    say(f"{out}: {student.num_parameters / 1e6:.2f} M parameters, {heads}, teacher {done.teacher}")


def push_to_hub(
    folder: Annotated[Path, argument("A student folder.")],
    repository: Annotated[str, argument("Where to: `name/model`.")],
    private: Annotated[bool, option("Create the repository as a private one.", "--private")] = False,
    licence: Annotated[str | None, option("For the model card, such as `apache-2.0`.", "--license")] = None,
) -> None:
    """Publish a student with its model card on the Hugging Face hub (log in with `hf auth login` first).

    Example: `robustdistiller push-to-hub runs/rd-hubert/student me/rd-hubert --license apache-2.0`
    """
    from ..deployment.publish import push_to_hub as push

    say(push(folder, repository, private, licence))


def export_row(file: Exported) -> dict[str, Any]:
    """One exported file for a script."""
    about = {"precision": file.description.precision, "kind": file.description.kind}
    measured = {"measured": file.measured.to_dict(), "falls_short": file.short}
    return {"file": file.path, "bytes": file.bytes, **about, **measured}


def export_line(file: Exported) -> str:
    """What was measured of one exported file, in a line."""
    m = file.measured
    parts = [f"{file.bytes / 1e6:.2f} MB", file.description.precision]
    if file.description.precision == "fp32":
        parts.append(f"largest difference from PyTorch {m.error:.1e} over {m.seconds:.0f} s")
    if m.cosine:
        parts.append(f"cosine with fp32 {', '.join(f'{c:.5f}' for c in m.cosine)} (lowest 1 %: {m.lowest:.4f})")
    if m.agreement is not None:
        parts.append(f"same answers as fp32 {m.agreement:.1%} on the calibration's held-out speech")
    if m.accuracy:
        line = "accuracy {fp32:.2%} in fp32, {int8:.2%} in int8 on the task's validation part"
        parts.append(line.format(**m.accuracy))
    if m.spared:
        parts.append(f"{m.spared} in fp32, because int8 falls short there")
    return f"{file.path}: {'; '.join(parts)}" + (f"  [{file.short}]" if file.short else "")


def print_latency(result: Latency, counts: list[int]) -> None:
    """The table on standard output."""
    machine = result.machine
    say(
        f"{machine['processor']}, {machine['cores']} cores, {' '.join(machine['flags']) or 'no known flags'}"
        + (f"; load {machine['load']:.1f}" if machine["load"] is not None else "")
    )
    columns = ["model", "format", "M params", "GMAC/s", "MB file", "MB memory"]
    for n in counts:
        columns += [f"RTF {n} thr min (median)", "x"]
    rows = []
    for row in result.rows:
        c = row.candidate
        cells = [
            c.name, c.format, f"{c.parameters / 1e6:.2f}", f"{c.macs_per_second / 1e9:.2f}", f"{c.bytes / 1e6:.1f}",
            f"{row.timings[counts[0]].peak / 1e6:.0f}",
        ]  # fmt: skip
        for n in counts:
            t = row.timings[n]
            cells += [f"{t.minimum / result.audio:.4f} ({t.median / result.audio:.4f})", f"{result.factor(row, n):.1f}"]
        rows.append(cells)
    show_table(columns, rows)
    say(
        f"RTF: seconds of computation per second of audio ({result.audio:g} s at once, {result.repeats} runs in turns); "
        f"x: times faster than {result.rows[0].candidate.name} ({result.rows[0].candidate.format})"
    )
