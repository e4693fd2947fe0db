"""One model in a process of its own: it answers every line on standard input with the time of one run.

Started by latency.py as ``python -m robustdistiller.deployment.latency_worker '{"model": …, "format": …}'``. A model in ONNX is
loaded without PyTorch, as on a device, so that its memory is its own.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..process import prepare_process


def main() -> None:
    prepare_process()
    task: dict[str, Any] = json.loads(sys.argv[1])
    wave = (0.1 * np.random.default_rng(0).standard_normal(round(task["seconds"] * 16_000))).astype(np.float32)
    if task["format"] == "torch":
        before, run = _torch(task["model"], task["threads"], wave)
    else:
        engine = "openvino" if task["format"].startswith("openvino") else "onnxruntime"
        before, run = _onnx(task["model"], task["threads"], wave, engine)
    run()
    _answer({"ready": True})
    for _ in sys.stdin:
        processor, begin = time.process_time(), time.perf_counter()
        run()
        _answer(
            {"seconds": time.perf_counter() - begin, "processor": time.process_time() - processor, **_memory(before)}
        )


def _torch(model: str, threads: int, wave: Any) -> tuple[int, Callable[[], Any]]:
    import torch

    from ..models.hub import load_encoder

    torch.set_num_threads(threads)
    before = peak_memory()
    encoder = load_encoder(model).eval()
    batch = torch.from_numpy(wave)[None]

    @torch.no_grad()
    def run() -> None:
        encoder(batch)

    return before, run


def _onnx(model: str, threads: int, wave: Any, engine: str) -> tuple[int, Callable[[], Any]]:
    from ..runtime import Encoder

    before = peak_memory()
    encoder = Encoder(model, threads, engine, verify=False)
    return before, lambda: encoder(wave)


def peak_memory() -> int:
    """The largest resident size of this process so far, bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource  # on Linux it would give the size of the process that started this one where that is larger

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _memory(before: int) -> dict[str, int]:
    peak = peak_memory()
    return {"peak": peak, "model": peak - before}


def _answer(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
