"""Operating points of a streaming student: what they cost, and how accurate they are beside offline.

    python benchmarks/streaming.py cost RUN/student [RUN2/student ...] [--points 80+0 160+160]
        counted, not timed: multiply-adds a second on a stream and offline, latency, bytes of the state, parameters
    python benchmarks/streaming.py device EXPORTED/encoder.stream.int8.onnx [EXPORTED2/encoder.int8.onnx ...]
        each in a process of its own with the runtime alone, one thread: processor time over the audio's, peak memory
    python benchmarks/streaming.py accuracy RUN/student --twin TWIN/student --task TASK.yaml --out RESULTS [-- MORE]
        `robustdistiller evaluate` of the student offline and at every point, and of its offline twin; MORE goes to that verb
    python benchmarks/streaming.py parity EXPORTED/encoder.stream.onnx RUN/student@160+160 --speech SOURCE --minutes 60
        the file over an hour of real audio, in pieces of random size, against the chunk-masked offline pass in float32 and
        float64; memory, and the stream's time on one processor over the audio's, as it goes

Points are CHUNK+LOOKAHEAD in ms. Arithmetic counts matrix products and convolutions of one step, as PyTorch's counter of
floating-point operations sees them, over 2; offline is one pass over 10 s.
"""

from __future__ import annotations

from robustdistiller.process import prepare_process

prepare_process()  # before torch is imported

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from robustdistiller.audio.prepare import prepare_all
from robustdistiller.deployment.stream_graph import LayerNormBlock, StreamGraph
from robustdistiller.models.student import load_student
from robustdistiller.randomness import generator
from robustdistiller.runtime import Stream

POINTS = tuple(f"{chunk}+{ahead}" for chunk in (80, 160, 320, 640) for ahead in (0, 80, 160, 320))
OFFLINE_SECONDS = 10
PIECE, CONTEXT, EXACT = (
    2048,
    416,
    10,
)  # frames, whole chunks of up to 640 ms; a student of two layers reaches back 260 frames


def multiply_adds(work: Callable[[], object]) -> float:
    """Of everything that `work` computes."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2


def cost(students: list[str], points: list[str]) -> None:
    """A Markdown table."""
    print("| student | point | latency, ms | MMAC/s | of offline | state, kB | parameters, M |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in students:
        offline = load_student(name)
        # Eager attention, as on a stream: the counter does not see into fused kernels on every processor.
        offline.encoder.model.set_attn_implementation("eager")
        wave = torch.zeros(1, OFFLINE_SECONDS * 16_000)
        whole = multiply_adds(lambda: offline.encoder(wave)) / OFFLINE_SECONDS  # noqa: B023
        print(f"| {name} | offline | | {whole / 1e6:.1f} | 1.00 | | {offline.num_parameters / 1e6:.2f} |")
        for point in points:
            student = load_student(f"{name}@{point}")
            chunking = student.chunking
            assert chunking is not None
            network, state = StreamGraph(student, chunking).eval(), None
            state = network.initial_state()
            step = torch.zeros(1, chunking.chunk * 320)
            work = multiply_adds(lambda: network(step, torch.tensor([1 << 40]), *state))  # noqa: B023
            second = work / (chunking.chunk * 0.02)
            held = sum(x.numel() * x.element_size() for x in state)
            print(
                f"| {name} | {point} | {1000 * chunking.latency:.0f} | {second / 1e6:.1f} | {second / whole:.2f} | "
                f"{held / 1e3:.0f} | {student.num_parameters / 1e6:.2f} |"
            )


DEVICE = """
import sys, time
import numpy as np
from robustdistiller.runtime import Encoder, Stream
file, wave = sys.argv[1], (0.05 * np.random.default_rng(0).standard_normal(60 * 16_000)).astype(np.float32)
if "stream" in file.rsplit("/", 1)[-1]:
    push = Stream(file, threads=1).push
    run = lambda: [push(wave[k : k + 1600]) and None for k in range(0, len(wave), 1600)]
else:
    encoder = Encoder(file, threads=1)
    run = lambda: [encoder(wave[k : k + 80_000]) and None for k in range(0, len(wave), 80_000)]
spent = []
for _ in range(3):
    begin = time.process_time()
    run()
    spent.append(time.process_time() - begin)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # a parent's peak is not in it
print(f"{min(spent) / 60:.4f} | {int(peak.split()[1]) / 1e3:.0f}")
"""


def device(files: list[str]) -> None:
    """A Markdown table; a minute of noise in blocks of 0.1 s (a stream) or 5 s, the best of three."""
    print("| file | MB | real-time factor | peak memory, MB |\n| --- | --- | --- | --- |")
    for file in files:
        told = subprocess.run([sys.executable, "-c", DEVICE, file], check=True, capture_output=True, text=True).stdout
        print(f"| {file} | {Path(file).stat().st_size / 1e6:.2f} | {told.strip()} |")


def accuracy(student: str, twin: str | None, tasks: list[str], points: list[str], out: str, more: list[str]) -> None:
    """Run the benchmark; its tables and page compare everything with the twin, or with the student offline."""
    models = [f"{point}={student}@{point}" for point in points]
    models = [*([f"twin={twin}"] if twin else []), f"offline={student}", *models]
    command = [sys.executable, "-m", "robustdistiller", "evaluate", *models, "--out", out, *more]
    for task in tasks:
        command += ["--task", task]
    raise SystemExit(subprocess.run(command, check=False).returncode)


def parity(file: str, name: str, source: str, minutes: float) -> None:
    """Differences of all states from both offline passes, memory and the stream's processor time over the audio's, as it goes.

    Offline is one chunk-masked pass over each piece of 41 s and what a frame can see around it, every tenth in float64 too. In
    float32 its front end is that of the exported graph: PyTorch sums onto the bias, which costs it a digit.
    """
    exact, single, stream = load_student(name).double(), load_student(name), Stream(file, threads=1)
    extractor = single.encoder.model.feature_extractor
    extractor.conv_layers = torch.nn.ModuleList(map(LayerNormBlock, extractor.conv_layers))
    waves, total = [], 0
    recordings = prepare_all([source], "speech").recordings
    while total < minutes * 60 * 16_000:  # again from the first where the source is shorter
        waves.append(recordings[len(waves) % len(recordings)].load())
        total += len(waves[-1])
    wave = np.concatenate(waves)[: int(minutes * 60 * 16_000)]
    rng, at, first, spent = generator("cuts"), 0, 0, 0.0
    told = {"float32": np.zeros(4), "float64": np.zeros(4)}  # sum of squares, values, values beyond 1e-5, the largest
    found: list[np.ndarray] = []
    for number, begin in enumerate(range(0, (len(wave) - 400) // 320 + 1, PIECE)):
        low = max(0, begin - CONTEXT)
        last = min(begin + PIECE + CONTEXT, (len(wave) - 400) // 320 + 1)
        part = torch.from_numpy(wave[low * 320 : (last - 1) * 320 + 400])[None]
        inner = slice(begin - low, begin - low + PIECE)
        wanted = {"float32": single.states(part)[0][0, :, inner].numpy()}
        if number % EXACT == 0:
            wanted["float64"] = exact.states(part)[0][0, :, inner].numpy()
        clock, frames = time.process_time(), wanted["float32"].shape[1]
        while first + sum(x.shape[1] for x in found) < begin + frames:
            size = int(rng.integers(1, 5000))
            found.append((stream.push(wave[at : at + size]) if at < len(wave) else stream.close()).states)
            at += size
        spent += time.process_time() - clock
        joined = np.concatenate(found, 1)
        for precision, theirs in wanted.items():
            sums, off = told[precision], np.abs(joined[:, :frames] - theirs)
            close = off <= 1e-5 * (1 + np.abs(theirs))
            sums[:3] += np.square(off, dtype=np.float64).sum(), off.size, (~close).sum()
            sums[3] = max(sums[3], off.max())
        found, first = [joined[:, frames:]], begin + frames
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
        off_by = "  ".join(f"from {kind} offline: rms {(x[0] / x[1]) ** 0.5:.1e}, largest {x[3]:.1e}, beyond 1e-5 (1 + |x|) "
                           f"{x[2]:.0f} of {x[1]:.0f}" for kind, x in told.items())  # fmt: skip
        print(f"{first / 50 / 60:6.1f} min  {off_by}  memory {resident:.0f} MB  "
              f"real-time factor {spent / (first / 50):.4f}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "device", "accuracy", "parity"))
    parser.add_argument("students", nargs="+")
    parser.add_argument("--points", nargs="+", default=list(POINTS))
    parser.add_argument("--twin")
    parser.add_argument("--task", action="append", default=[])
    parser.add_argument("--out", default="results/streaming")
    parser.add_argument("--speech")
    parser.add_argument("--minutes", type=float, default=60)
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:split])
    if options.what == "cost":
        cost(options.students, options.points)
    elif options.what == "device":
        device(options.students)
    elif options.what == "parity":
        parity(*options.students, options.speech, options.minutes)
    else:
        accuracy(options.students[0], options.twin, options.task, options.points, options.out, arguments[split + 1 :])


if __name__ == "__main__":
    main()
