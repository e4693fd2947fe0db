"""Measure what a device gains: the paper's student and the edge student against their teacher, all in one run.

    python benchmarks/latency.py [--repeats 15] [--threads 1] [--seconds 5] [--openvino] [--out FILE.json]

Prints the processor with its flags, the table of `robustdistiller latency`, what streaming adds, and every goal with what was
reached. The models have the sizes of the real ones (HuBERT Base, the recipes robust-hubert-base and edge) and random weights,
which changes nothing about speed and file size, and everything about accuracy: that is measured elsewhere (docs/results.md).

All models are loaded first and then run in turns; ratios compare the fastest runs. Run it on a machine that does nothing
else: the load average is printed. Needs about 3 GB of memory.
"""

from __future__ import annotations

from robustdistiller.process import prepare_process

prepare_process()  # before torch is imported

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from robustdistiller.cli.deployment import print_latency
from robustdistiller.config import load_recipe
from robustdistiller.deployment.latency import FORMATS, Latency, LatencyResult, measure_latency, quick_export
from robustdistiller.files import write_json
from robustdistiller.models.building import build_student
from robustdistiller.models.teacher import load_teacher
from robustdistiller.runtime import SAMPLE_RATE, Encoder

STUDENTS = {"paper": "robust-hubert-base", "edge": "edge"}
# hop, left and right context in seconds: the default of a stream, and one for answers within two seconds
STREAMS = {"default": (12.0, 0.5, 0.3), "quick": (1.0, 0.8, 0.4)}
STREAMED_SECONDS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="of audio in a run")
    parser.add_argument("--openvino", action="store_true", help="also measure the fp32 files in OpenVINO")
    parser.add_argument("--out", type=Path, help="write everything measured here, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        teacher, students = build(Path(scratch))
        formats = [*FORMATS, *(("openvino",) if options.openvino else ())]
        models = [f"{name}={folder / 'student'}" for name, folder in students.items()]
        latency = measure_latency(
            models, f"teacher={teacher}", formats, (options.threads,), options.seconds, options.repeats
        )
        print_latency(latency, [options.threads])
        streams = measure_streams(students, options.threads, max(2, options.repeats // 5))
    for line in streams:
        print(
            f"stream, {line['student']} int8, {line['stream']}: late by {line['latency']:.2f} s at most; {STREAMED_SECONDS} s "
            f"of audio take {line['seconds']:.2f} s, {100 * line['added']:+.1f} % against the same audio in pieces of the hop"
        )
    reached = goals(latency, options.threads, streams)
    print()
    for text, value, limit, good in reached:
        print(f"{'reached    ' if good else 'NOT reached'}  {text}: {value:.3f} (goal {limit})")
    if options.out:
        names = ("goal", "value", "limit", "reached")
        told = [dict(zip(names, row, strict=True)) for row in reached]
        write_json(options.out, {**latency.to_dict(), "streams": streams, "goals": told})


def build(scratch: Path) -> tuple[Path, dict[str, Path]]:
    """A teacher of HuBERT Base's size and the two recipes' students, as folders."""
    import torch
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    teacher = scratch / "teacher"
    HubertModel(HubertConfig()).save_pretrained(teacher)
    loaded = load_teacher(str(teacher))
    students = {}
    for name, recipe in STUDENTS.items():
        values = load_recipe(recipe)
        student, _ = build_student(loaded, values.student, values.objectives.enhancement)
        students[name] = scratch / name
        student.save(students[name] / "student")
    return teacher, students


def measure_streams(students: dict[str, Path], threads: int, repeats: int) -> list[dict[str, Any]]:
    """Seconds for a minute of audio that arrives in chunks of 0.1 s, against the same minute in pieces of the hop, in turns."""
    wave = (0.1 * np.random.default_rng(0).standard_normal(STREAMED_SECONDS * SAMPLE_RATE)).astype(np.float32)
    lines = []
    for name, folder in students.items():
        file = quick_export(str(folder / "student"), name, ("int8",), folder)["int8"]
        encoder = Encoder(file, threads, verify=False)
        for stream, (hop, left, right) in STREAMS.items():
            chunks = np.array_split(wave, 10 * STREAMED_SECONDS)
            pieces = np.array_split(wave, round(STREAMED_SECONDS / hop))

            def streamed(encoder: Encoder = encoder, at: tuple = (hop, left, right), chunks: list = chunks) -> None:
                for _ in encoder.stream(*at).run(chunks):
                    pass

            def offline(encoder: Encoder = encoder, pieces: list = pieces) -> None:
                for piece in pieces:
                    encoder(piece)

            both = [(timed(streamed), timed(offline)) for _ in range(repeats)]
            mine, theirs = (min(times) for times in zip(*both, strict=True))
            lines.append(
                {
                    "student": name, "stream": stream, "hop": hop, "left": left, "right": right,
                    "latency": encoder.stream(hop, left, right).latency, "seconds": mine, "added": mine / theirs - 1,
                }
            )  # fmt: skip
    return lines


def timed(run: Callable[[], None]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def goals(latency: Latency, threads: int, streams: list[dict[str, Any]]) -> list[tuple[str, float, str, bool]]:
    """Every goal about speed and size: what it says, what was reached, its limit, whether it is kept."""
    rows: dict[tuple[str, str], LatencyResult] = {(r.candidate.name, r.candidate.format): r for r in latency.rows}

    def factor(name: str, form: str) -> float:
        return latency.factor(rows[name, form], threads)

    small, large = rows["paper", "int8"].candidate.bytes, rows["paper", "onnx"].candidate.bytes
    ratios = [
        ("paper student in int8, times faster than the teacher in PyTorch", factor("paper", "int8"), ">=", 4.0),
        ("paper student's int8 file as a share of its fp32 file", small / large, "<=", 0.26),
        ("edge student in int8, times faster than the teacher in PyTorch", factor("edge", "int8"), ">=", 12.0),
        (
            "edge student in int8, times faster than the paper's in int8",
            factor("edge", "int8") / factor("paper", "int8"),
            ">=",
            3.0,
        ),
        *(
            (f"what the default stream adds, {line['student']} student, share of compute", line["added"], "<=", 0.1)
            for line in streams
            if line["stream"] == "default"
        ),
    ]
    return [
        (text, value, f"{sign} {limit}", value >= limit if sign == ">=" else value <= limit)
        for text, value, sign, limit in ratios
    ]


if __name__ == "__main__":
    main()
