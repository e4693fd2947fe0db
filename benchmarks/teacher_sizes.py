"""Teachers at their real sizes: load, plan, train, save, reopen, export, with the memory and time of each; run by hand.

    python benchmarks/teacher_sizes.py                                # five layouts, one after another
    python benchmarks/teacher_sizes.py hubert-base --batch-seconds 16 --accumulate 24  # a step of 24 microbatches
    python benchmarks/teacher_sizes.py --hub --speech S --noise N --rooms R   # from a hub on the loopback, killed and resumed

Weights are random, in the layout that the hub serves: one `pytorch_model.bin` with the old names of weight normalisation.
Speed and memory need no others. A step is the recipe's 384 s of audio unless `--batch-seconds` and `--accumulate` say else;
the audio is made here unless sources are given. Each layout runs in a process of its own, so that its peak is its own.
"""

from __future__ import annotations

from robustdistiller.process import prepare_process

prepare_process()  # before torch is imported

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BASE: dict[str, Any] = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
LARGE: dict[str, Any] = dict(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, do_stable_layer_norm=True,
    feat_extract_norm="layer", conv_bias=True,
)  # fmt: skip
LAYOUTS: dict[str, tuple[str, str, dict[str, Any], bool, str]] = {
    # name: the model on the hub, class, config, input normalised, recipe
    "hubert-base": ("facebook/hubert-base-ls960", "Hubert", BASE, True, "robust-hubert-base"),
    "wavlm-base-plus": ("microsoft/wavlm-base-plus", "WavLM", BASE, False, "robust-wavlm-base-plus"),
    "wav2vec2-base": ("facebook/wav2vec2-base", "Wav2Vec2", BASE, True, "robust-wav2vec2-base"),
    "hubert-large": ("facebook/hubert-large-ll60k", "Hubert", LARGE, True, "robust-hubert-base"),
    "xls-r-300m": ("facebook/wav2vec2-xls-r-300m", "Wav2Vec2", LARGE, True, "robust-wav2vec2-base"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layouts", nargs="*", default=[*LAYOUTS], help=", ".join(LAYOUTS))
    parser.add_argument("--batch-seconds", type=float, default=16.0, help="audio in a microbatch")
    parser.add_argument("--accumulate", type=int, default=24, help="microbatches in a step")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--speech", default="")
    parser.add_argument("--noise", default="")
    parser.add_argument("--rooms", default="")
    parser.add_argument(
        "--hub", action="store_true", help="serve the teachers on the loopback and run the command line"
    )
    parser.add_argument("--tiny", action="store_true", help="small layouts, to see that this runs")
    parser.add_argument("--out", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.layouts[0], options, options.out)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        place = options.out or Path(temporary)
        for name in options.layouts:
            if options.hub:
                from_hub(name, options, place)
            else:
                passed = [a for a in sys.argv[1:] if a not in options.layouts]
                command = [sys.executable, __file__, name, *passed, "--one", "--out", str(place)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
                print(done.stdout.strip().splitlines()[-1] if done.returncode == 0 else f"{name}: failed", flush=True)


def write_teacher(name: str, folder: Path, tiny: bool) -> Path:
    """The layout `name` with random weights, as the hub has it."""
    import torch
    import transformers

    _, kind, fields, normalize, _ = LAYOUTS[name]
    if tiny:
        fields = fields | dict(
            hidden_size=64, num_hidden_layers=12, num_attention_heads=4, intermediate_size=96, conv_dim=(32,) * 7
        )
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    config = getattr(transformers, f"{kind}Config")(**fields)
    model = getattr(transformers, f"{kind}Model")(config)
    config.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize).save_pretrained(folder)
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = {}
    for key, value in model.state_dict().items():
        for new, before in old.items():
            key = key.replace(new, before)
        state[key] = value
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def made_speech(folder: Path) -> str:
    """Half an hour of noise in syllables, in recordings of 16 s."""
    import numpy as np

    from robustdistiller.audio.io import write_audio

    random = np.random.default_rng(0)
    for number in range(112):
        wave = 0.05 * random.standard_normal(16 * 16_000) * np.repeat(random.random(160), 1600)
        write_audio(folder / f"speaker{number % 8}-{number}.wav", wave.astype(np.float32))
    return str(folder)


def recipe_fields(options: argparse.Namespace) -> list[str]:
    """The --set values of a run of few steps."""
    return [
        f"data.batch_seconds={options.batch_seconds * options.accumulate}", f"data.microbatch_seconds={options.batch_seconds}",
        f"training.steps={options.steps}", "training.save_every=1", "training.log_every=1", "training.valid_every=1000000",
        "data.valid_seconds=16", "data.workers=1", "environment.simulated_rooms=8",
    ]  # fmt: skip


def peak() -> float:
    """Gigabytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(name: str, options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Everything that a user of this teacher does, once, in this process."""
    import torch

    from robustdistiller.config import load_recipe
    from robustdistiller.deployment.export import export_student
    from robustdistiller.models.student import load_student
    from robustdistiller.models.teacher import load_teacher
    from robustdistiller.training.distill import distill

    folder = place / name
    if not (folder / "pytorch_model.bin").is_file():  # in another process: its memory is not the reader's
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]; import teacher_sizes as t; "
             f"t.write_teacher({name!r}, t.Path({str(folder)!r}), {options.tiny})"], check=True,
        )  # fmt: skip
    row: dict[str, Any] = {"layout": name, "threads": torch.get_num_threads(), "device": "cpu"}
    if torch.cuda.is_available():
        row["device"] = torch.cuda.get_device_name()
    before, start = peak(), time.monotonic()
    teacher = load_teacher(str(folder))
    row |= {"parameters_m": round(teacher.num_parameters / 1e6, 1), "load_s": round(time.monotonic() - start, 1)}
    row |= {"imports_gb": round(before, 2), "load_gb": round(peak(), 2), "source": teacher.source}
    layers = list(teacher.layers)
    del teacher
    speech = options.speech or made_speech(place / "speech")
    recipe = load_recipe(
        LAYOUTS[name][4],
        [*recipe_fields(options), f"teacher.layers={layers}", "environment.noise_kinds={recorded: 0, white: 1}"],
        teacher__model=str(folder), data__speech=[speech],
    )  # fmt: skip
    start = time.monotonic()
    result = distill(recipe, place / f"{name}-run")
    steps = [json.loads(line) for line in (place / f"{name}-run" / "metrics.jsonl").read_text().splitlines()]
    seconds = [step["train/seconds_per_step"] for step in steps if "train/seconds_per_step" in step]
    row |= {"step_audio_s": options.batch_seconds * options.accumulate, "step_s": round(seconds[-1], 1)}
    row |= {"run_s": round(time.monotonic() - start, 1), "train_gb": round(peak(), 2)}
    if torch.cuda.is_available():
        row["train_gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    student = load_student(result.student)
    row |= {"student_m": round(student.num_parameters / 1e6, 1)}
    start = time.monotonic()
    exported = export_student(result.student, place / f"{name}-exported")
    row |= {"export_s": round(time.monotonic() - start, 1), "files": len(exported), "end_gb": round(peak(), 2)}
    return row


def from_hub(name: str, options: argparse.Namespace, place: Path) -> None:
    """`distill` from a hub on the loopback, killed after its first checkpoint, then resumed without a network."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from loopback_hub import LoopbackHub

    hub_name, _, _, _, recipe = LAYOUTS[name]
    run = place / f"{name}-hub-run"
    sources = [
        part for flag, value in (("--speech", options.speech), ("--noise", options.noise), ("--rooms", options.rooms))
        for part in (flag, value) if value
    ]  # fmt: skip
    fields = [part for field in recipe_fields(options) for part in ("--set", field)]
    command = [
        sys.executable,
        "-m",
        "robustdistiller",
        "distill",
        recipe,
        "--teacher",
        hub_name,
        *sources,
        "--out",
        str(run),
        *fields,
    ]
    with LoopbackHub() as hub:
        hub.add(hub_name, write_teacher(name, place / name, options.tiny))
        surroundings = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(place / "hub-home")}
        process = subprocess.Popen(command, env=surroundings)
        while process.poll() is None and not any((run / "checkpoints").glob("step-*")):
            time.sleep(1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        asked = [f"{method} {path}" for method, path in hub.requests]
    print(
        f"{hub_name}: killed after {sorted(p.name for p in (run / 'checkpoints').glob('step-*'))}; the hub was asked:"
    )
    print("\n".join(f"  {request}" for request in asked), flush=True)
    surroundings["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run([*command, "--resume"], env=surroundings)
    print(f"{hub_name}: resumed with HF_HUB_OFFLINE=1, exit code {done.returncode}", flush=True)


if __name__ == "__main__":
    main()
