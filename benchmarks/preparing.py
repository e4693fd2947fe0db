"""The memory and time that `prepare` takes for a hundred thousand files, and what each further file adds.

    python benchmarks/preparing.py --files 20000 100000

Small files are made in a temporary folder. `robustdistiller prepare` scans them in a process of its own, whose memory, with
that of all its workers, is looked at ten times a second (PSS: what processes share is counted once). Linux only.
"""

from __future__ import annotations

from robustdistiller.process import prepare_process

prepare_process()  # before torch is imported

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from robustdistiller.audio.io import write_audio

SECONDS = 0.15


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--workers", type=int, default=None)
    options = parser.parse_args()
    rows = []
    print(f"{'files':>8} {'seconds':>8} {'files/s':>8} {'peak MB':>8} {'manifest MB':>12}")
    for count in options.files:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder) / "corpus", count)
            seconds, peak = scan(Path(folder), options.workers)
            size = (Path(folder) / "manifest.jsonl").stat().st_size
        rows.append((count, peak))
        print(f"{count:8d} {seconds:8.1f} {count / seconds:8.0f} {peak / 1e6:8.0f} {size / 1e6:12.1f}", flush=True)
    (few, low), (many, high) = rows[0], rows[-1]
    if many > few:
        print(f"memory grows by {(high - low) / (many - few):.0f} bytes a file")


def make(folder: Path, count: int) -> None:
    """So many files in folders of a thousand."""
    rng = np.random.default_rng(0)
    write_audio(folder / "one.wav", 0.1 * rng.standard_normal(round(SECONDS * 16_000)).astype(np.float32))
    content = (folder / "one.wav").read_bytes()
    (folder / "one.wav").unlink()
    for start in range(0, count, 1000):
        place = folder / f"speaker{start // 1000:04d}"
        place.mkdir()
        for number in range(start, min(count, start + 1000)):
            (place / f"utterance-{number:07d}.wav").write_bytes(content)


def scan(folder: Path, workers: int | None) -> tuple[float, int]:
    """Seconds of a scan and the highest memory of its processes together, in bytes."""
    command = [sys.executable, "-m", "robustdistiller", "prepare", str(folder / "corpus")]
    command += ["--out", str(folder / "manifest.jsonl"), *(["--workers", str(workers)] if workers else [])]
    begin, peak = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, sum(map(memory, family(process.pid))))
        time.sleep(0.1)
    if process.returncode:
        sys.exit("prepare failed")
    return time.monotonic() - begin, peak


def family(root: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {}
    for entry in os.listdir("/proc"):
        try:
            parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError, IndexError):
            continue
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def memory(process: int) -> int:
    """The proportional set size of a process, in bytes."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    main()
