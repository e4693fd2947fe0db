"""Kill a run again and again, at random moments and while it saves, and compare the end with a run that nobody killed.

    python benchmarks/chaos.py --kills 50

Everything is made on the spot: a tiny teacher, a little speech, a recipe of a minute. Each life of the run is a real process
that gets a real SIGKILL: half of them at a random moment, half within milliseconds of the appearance of a half-written
checkpoint or student. After each death the run is resumed. When it ends, the weights, the moments of the optimiser, the
student and the metrics must be those of the straight run to the last bit; then the next run begins, until all kills are done.
"""

from __future__ import annotations

import os

from robustdistiller.process import prepare_process

os.environ.setdefault("OMP_NUM_THREADS", "1")
prepare_process()  # before torch is imported

import argparse
import json
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from robustdistiller.audio.io import write_audio
from robustdistiller.config import Recipe, load_recipe
from robustdistiller.training import checkpoint
from robustdistiller.training.distill import distill

FIELDS = [
    "student.layers=1", "student.feature_grad_mult=1.0", "data.crop_seconds=0.6", "data.batch_seconds=1.2",
    "data.valid_seconds=1",
    "data.valid_fraction=0.25", "environment.simulated_rooms=2", "objectives.enhancement.hidden=8",
    "objectives.enhancement.layers=1", "training.learning_rate=1e-3", "training.precision=fp32", "training.log_every=1",
    "training.valid_every=6", "training.save_every=2",
]  # fmt: skip
CHANGING = ("time", "train/seconds_per_step")


def main() -> None:
    """Run it and print the report; the exit code is 1 when anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workers", type=int, default=0, help="loader workers of the run that is killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no further run after so long")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        report = chaos(Path(folder), options)
    print(json.dumps(report, indent=2))
    sys.exit(1 if report["runs_that_differ"] or report["lives_that_failed"] else 0)


def chaos(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Kill and compare; returns the report."""
    rng = random.Random(options.seed)
    recipe = make_recipe(folder, options)
    begin = time.monotonic()
    straight = folder / "straight"
    live(recipe.model_copy(update={"data": recipe.data.model_copy(update={"workers": 0})}), straight, None, rng)
    length = time.monotonic() - begin
    deaths: Counter[str] = Counter()
    runs = differ = failed = 0
    run = folder / "run-0"
    deadline = begin + 60 * options.minutes
    while True:
        enough = sum(deaths.values()) >= options.kills or time.monotonic() > deadline
        when = None if enough else rng.choice((rng.uniform(0.0, 0.7 * length), -1.0))
        outcome = live(recipe, run, when, rng)
        if outcome == "failed":
            failed += 1
            print((folder / "log").read_text()[-2000:], file=sys.stderr)
        if outcome == "ended":
            runs += 1
            differences = compare(straight, run)
            if differences:
                differ += 1
                print(f"{run.name} differs: {differences[:3]}", file=sys.stderr)
            run = folder / f"run-{runs}"
            if enough:
                break
        elif outcome == "failed" and failed > 3:
            break
        elif outcome != "failed":
            deaths[outcome] += 1
            print(f"\r{sum(deaths.values())} kills, {runs} runs ended", end="", file=sys.stderr)
    print(file=sys.stderr)
    return {
        "kills": sum(deaths.values()), "by_moment": dict(sorted(deaths.items())), "runs_that_ended": runs,
        "runs_that_differ": differ, "lives_that_failed": failed, "steps": options.steps, "loader_workers": options.workers,
        "seconds": round(time.monotonic() - begin),
    }  # fmt: skip


def live(recipe: Recipe, run: Path, when: float | None, rng: random.Random) -> str:
    """One life of a run in a process of its own: "ended", "failed", or what it was doing when it was killed.

    when: seconds after which it is killed; negative: as soon as it writes a checkpoint or a student; None: never
    """
    before = steps_seen(run)
    child = os.fork()
    if child == 0:
        os.setsid()
        log = os.open(run.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            distill(recipe, run, resume=True)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    begin = time.monotonic()
    patience = rng.randrange(0, 6)  # writings that are let pass
    known: set[str] = set()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return "ended" if status == 0 else "failed"
        if when is not None and when >= 0 and time.monotonic() - begin >= when:
            break
        if when is not None and when < 0:
            new = set(half_written(run)) - known
            if new:
                known |= new
                if len(known) > patience:
                    time.sleep(rng.choice((0.0, 0.0005, 0.002, 0.005)))
                    break
        time.sleep(0.0002 if when is not None and when < 0 else 0.002)
    left_before = set(half_written(run))
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    left = left_before | set(half_written(run))
    if any(name.startswith(".step-") for name in left):
        return "writing a checkpoint"
    if left:
        return "writing the student"
    return "training" if steps_seen(run) > before else "starting"


def half_written(run: Path) -> list[str]:
    """Temporary names in the run folder: something is being written, or was."""
    found = []
    for place in (run, run / "checkpoints"):
        try:
            found += [name for name in os.listdir(place) if name.startswith((".step-", ".student-"))]
        except OSError:
            continue
    return found


def steps_seen(run: Path) -> int:
    """Rows of the metrics."""
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def compare(straight: Path, run: Path) -> list[str]:
    """What differs between two finished runs."""
    differences = []
    pairs = [(checkpoint.available(r)[-1], r / "student") for r in (straight, run)]
    for name in checkpoint.TENSORS:
        differences += differing(pairs[0][0] / name, pairs[1][0] / name)
    for name in ("model.safetensors", "heads.safetensors"):
        differences += differing(pairs[0][1] / name, pairs[1][1] / name)
    rows = [
        [{k: v for k, v in json.loads(line).items() if k not in CHANGING} for line in (r / "metrics.jsonl").open()]
        for r in (straight, run)
    ]
    return differences + ["metrics.jsonl"] * (rows[0] != rows[1])


def differing(one: Path, other: Path) -> list[str]:
    """Names of tensors that are not equal to the bit."""
    a, b = load_file(one), load_file(other)
    return [f"{one.name}:{k}" for k in sorted({*a, *b}) if k not in a or k not in b or not torch.equal(a[k], b[k])]


def make_recipe(folder: Path, options: argparse.Namespace) -> Recipe:
    """A tiny teacher, eight recordings of four speakers, and the recipe."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96, conv_dim=(32,) * 7,
        num_conv_pos_embeddings=32, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    HubertModel(config).save_pretrained(folder / "teacher")
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder / "teacher")
    for number in range(8):
        rng = np.random.default_rng(number)
        syllables = np.abs(np.sin(np.arange(11_200) / 1500 + number))
        write_audio(
            folder / "speech" / f"s{number // 2}" / f"{number}.wav", 0.1 * syllables * rng.standard_normal(11_200)
        )
    return load_recipe(
        None, [*FIELDS, f"training.steps={options.steps}", f"data.workers={options.workers}"],
        teacher__model=str(folder / "teacher"), data__speech=[str(folder / "speech")],
    )  # fmt: skip


if __name__ == "__main__":
    main()
