"""What a user waits for every day, in source trees in turns: start-up, the plan of a training, export, evaluation, latency.

    python benchmarks/daily.py WORK [--trees old=OLD/src new=NEW/src] [--what help plan export …] [--repeats 3] [--out FILE.csv]

Every figure is a process of its own; its processor seconds count and those of its children, since wall time tells more of what
else runs. `plan` is `distill` up to its plan, with a base-size teacher of random weights, on speech that was scanned
before; `evaluate` the quickstart's thirteen conditions on a part of its keywords; `export` the shipped student of 2.4 M
parameters in fp32 and int8. WORK holds speech and teacher, which are made once (two minutes). Rows of --out that are not
measured anew stay.

    python benchmarks/daily.py --threads [--repeats 5]

A training step of mini size alone and beside one busy process, with the threads' settings of `prepare_process` and as OpenMP
has them, in turns: median and slowest, in seconds.
"""

from __future__ import annotations

from robustdistiller.process import prepare_process

prepare_process()  # before torch is imported

import argparse
import csv
import itertools
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

WHAT = ["help", "verb help", "plan", "export", "export enhance", "evaluate", "latency"]
HEADER = ["what", "version", "processor s, least", "median", "wall s, least", "times faster", "runs"]
STEP = """
import sys, time
if {prepared}:
    from robustdistiller.process import prepare_process
    prepare_process()
import torch
from robustdistiller.assets import located
from robustdistiller.models.student import load_student
student = load_student(located("mini-robust")).train()
wave = 0.1 * torch.randn(4, 48000, generator=torch.Generator().manual_seed(0))
optimizer = torch.optim.AdamW(student.parameters(), 1e-5)
times = []
for _ in range({steps}):
    begun = time.perf_counter()
    student.states(wave)[0].square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    times.append(time.perf_counter() - begun)
print(sorted(times)[len(times) // 2], max(times[2:]))
"""


def prepare(work: Path) -> None:
    """The base-size teacher, speech and keywords, each made once."""
    import transformers

    from robustdistiller.files import replacing_folder
    from robustdistiller.synthetic.spoken import Size, build_corpus

    if not (work / "teacher").is_dir():
        with replacing_folder(work / "teacher") as folder:
            transformers.HubertModel(transformers.HubertConfig()).save_pretrained(folder)
            transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    corpus = build_corpus(work / "corpus", 0, Size((60, 20), (120, 40, 60), (16, 8, 8)))
    (work / "recipe.yaml").write_text(
        f"name: daily\nteacher: {{model: {work / 'teacher'}}}\nstudent: {{layers: 2}}\n"
        f"data: {{speech: ['{corpus.speech}'], batch_seconds: 16, crop_seconds: 3, workers: 0}}\ntraining: {{steps: 1}}\n"
        "environment: {simulated_rooms: 2}\n"
    )
    (work / "keywords.yaml").write_text(
        f"name: keywords\ntitle: Spoken commands\nkind: classification\nsource: '{corpus.tasks['keywords']}'\n"
    )


def command(what: str, work: Path, out: Path) -> list[str]:
    """The arguments of `robustdistiller` for one of the things that are measured."""
    return {
        "help": ["--help"],
        "verb help": ["export", "--help"],
        "plan": ["distill", str(work / "recipe.yaml"), "--out", str(out)],
        "export": ["export", "mini-robust", "--out", str(out), "--int8"],
        "export enhance": ["export", "mini-robust", "--out", str(out), "--int8", "--enhance"],
        "evaluate": [
            "evaluate", "teacher=mini-hubert", "robust=mini-robust", "log-mel", "--task", str(work / "keywords.yaml"),
            "--conditions", "quickstart", "--out", str(out), "--reference", "robust",
        ],
        "latency": ["latency", "mini-robust", "--threads", "1", "--repeats", "3"],
    }[what]  # fmt: skip


def measure(tree: str, what: str, work: Path) -> tuple[float, float]:
    """(processor seconds, wall seconds) of one run in a source tree."""
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    environment = os.environ | {"PYTHONPATH": tree, "COLUMNS": "200"}
    begun = time.perf_counter()
    with (work / "log").open("w+b") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "robustdistiller", *command(what, work, out)], env=environment,
            stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        planned = False
        while what == "plan" and not planned and process.poll() is None:
            planned = b"held out" in (work / "log").read_bytes()
            time.sleep(0.02)
        if planned:
            process.kill()
        _, status, used = os.wait4(process.pid, 0) if process.returncode is None else (0, process.returncode, None)
        wall = time.perf_counter() - begun
        if used is None or (status and not planned):
            log.seek(0)
            sys.exit(f"{what} in {tree} failed: {log.read().decode()[-2000:]}")
    return used.ru_utime + used.ru_stime, wall


def compare(trees: dict[str, str], whats: list[str], repeats: int, work: Path, out: Path | None) -> None:
    """All of it in turns: a table on standard output, and as CSV."""
    rows = []
    for what in whats:
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in trees}
        for _, name in itertools.product(range(repeats), trees):
            times[name].append(measure(trees[name], what, work))
        fastest = {name: min(cpu for cpu, _ in found) for name, found in times.items()}
        for name, found in times.items():
            cpu, wall = ([round(pair[k], 2) for pair in found] for k in (0, 1))
            factor = fastest[next(iter(trees))] / fastest[name]
            rows.append([what, name, min(cpu), statistics.median(cpu), min(wall), f"{factor:.1f}", repeats])
            print(*rows[-1], sep="\t", flush=True)
    if out is not None:
        before = list(csv.reader(out.read_text(encoding="utf-8").splitlines()))[1:] if out.is_file() else []
        kept = [row for row in before if row[0] not in whats]
        with out.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([HEADER, *kept, *rows])


def threads(repeats: int, steps: int = 15) -> None:
    """A step with and without the threads' settings, on the machine as it is and beside one busy process."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "MKL_"))}
    found: dict[tuple[str, str], list[list[float]]] = {}
    for _, beside, prepared in itertools.product(range(repeats), ("alone", "beside one"), (True, False)):
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if beside != "alone" else None
        try:
            done = subprocess.run(
                [sys.executable, "-c", STEP.format(prepared=prepared, steps=steps)], env=plain, capture_output=True,
                text=True, check=True,
            )  # fmt: skip
        finally:
            if busy is not None:
                busy.kill()
                busy.wait()
        name = "as programs set them" if prepared else "as OpenMP has them"
        found.setdefault((beside, name), []).append([float(x) for x in done.stdout.split()])
    for (beside, name), pairs in found.items():
        medians = ", ".join(f"{pair[0]:.3f}" for pair in pairs)
        print(
            f"{beside}, threads {name}: median step {medians} s; slowest {max(p[1] for p in pairs):.3f} s", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, nargs="?")
    parser.add_argument("--trees", nargs="+", default=[f"now={Path(__file__).resolve().parents[1] / 'src'}"])
    parser.add_argument("--what", nargs="+", default=WHAT)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", action="store_true")
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    if options.threads:
        return threads(options.repeats)
    if options.work is None:
        parser.error("name a folder to work in")
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    prepare(work)
    compare(dict(tree.split("=", 1) for tree in options.trees), options.what, options.repeats, work, options.out)


if __name__ == "__main__":
    main()
