"""Every parser that takes a user's file, as a target for spoilt files: make sound ones, spoil one, open them.

The law: a spoilt file ends in a result or in a `UserError` of one line, within seconds. `try_seed` raises `AssertionError` with
the target and the seed for anything else, so that a finding can be repeated. Shared by the tests and benchmarks/fuzz.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import random
import shutil
import signal
import struct
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import soundfile
import torch
from torch import nn

from robustdistiller.errors import UserError

SECONDS = 60.0  # one case may take so long on a busy machine before it counts as a hang

NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 1, 10**9, 10**400, 1e308, -1e-300, 0.5, "", "x", "last", "../../etc/passwd", "\0", "\ud800", "\n\x1b[2J",
    "a" * 300, [], {}, [[]], [None], {"a": {}}, [10**9] * 7, float("nan"), float("inf"),
)  # fmt: skip
YAML_LINES = (
    "!!python/object/apply:os.system ['true']", "- [", "a: &a [*a]", "2020-99-99", "!!float x", "!!int", "1" * 5000,
    "? [a]\n: b",
    "&a [x, x, x, x, x, x, x, x, x]", "{" * 2000, "\t", "%YAML 9.9", "!!binary x", "<<: 3", "=", "\u2028", "!!timestamp z",
    "\n".join(f"z{n}: &b{n} [{', '.join([f'*b{n - 1}' if n else 'x'] * 9)}]" for n in range(12)),
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A kind of input: `make` writes sound files into a folder, `open` reads them, `files` are those that get spoilt."""

    name: str
    files: tuple[str, ...]
    make: Callable[[Path], None]
    open: Callable[[Path], object]
    cost: float = 1.0  # relative time of a case


@dataclass
class Tally:
    """Outcomes by target."""

    results: dict[str, int] = field(default_factory=dict)
    sentences: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, sentence: str | None) -> None:
        counts = self.results if sentence is None else self.sentences
        counts[name] = counts.get(name, 0) + 1


def try_seed(target: Target, sound: Path, work: Path, seed: int) -> str | None:
    """One spoilt copy of the folder `sound`: the sentence that it was refused with, or None for a result."""
    rng = random.Random(f"{target.name} {seed}")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(sound, work)
    spoilt = work / rng.choice(target.files)
    spoilt.write_bytes(spoil(spoilt.read_bytes(), spoilt.suffix, rng))
    try:
        with _time_limit():
            target.open(work)
        return None
    except UserError as error:
        message = str(error)
        assert message.isprintable() and len(message) > 15, f"{target.name} {seed}: {message!r}"
        return message
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise AssertionError(
            f"{target.name}, seed {seed}, {spoilt.name}: {type(error).__name__}\n{traceback.format_exc()}"
        ) from error


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def late(number: int, frame: object) -> None:
        raise TimeoutError("a hang")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def spoil(content: bytes, suffix: str, rng: random.Random) -> bytes:
    """Spoil a file: any bytes, or a value inside JSON, YAML or a safetensors header."""
    ways: list[Callable[[bytes, random.Random], bytes]] = [spoil_bytes]
    if suffix == ".json":
        ways += [spoil_json] * 3
    if suffix == ".jsonl":
        ways += [spoil_jsonl] * 3
    if suffix == ".yaml":
        ways += [spoil_yaml] * 2
    if suffix == ".safetensors":
        ways += [spoil_header] * 2
    return rng.choice(ways)(content, rng)


def spoil_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert, zero or repeat bytes, mostly near the beginning, where headers are."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        size = len(data)
        if not size:
            break
        at = rng.randrange(min(size, rng.choice((16, 64, 256, size))))
        match rng.randrange(7):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice((0, 0x7F, 0x80, 0xFF))
            case 2:
                del data[at:]
            case 3:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 4:
                width = rng.choice((2, 4, 8))
                data[at : at + width] = rng.choice((0, 1 << 31, (1 << 31) - 1, 1 << 40)).to_bytes(8, "little")[:width]
            case 5:
                data[at : at + 16] = bytes(16)
            case 6:
                data += data[at : at + 64]
    return bytes(data)


def spoil_json(content: bytes, rng: random.Random) -> bytes:
    """Replace, remove or rename a value anywhere in a JSON document."""
    value = json.loads(content)
    return json.dumps(_spoilt(value, rng)).encode()


def spoil_jsonl(content: bytes, rng: random.Random) -> bytes:
    """Spoil one line, repeat it, or write something else."""
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            lines.append(lines[at])
        case 1:
            lines[at] = rng.choice((b"[]", b"null", b"{", b"[" * 5000, b'{"a": ' * 5000, b"\xff", b'"\\ud800"'))
        case _:
            lines[at] = spoil_json(lines[at], rng)
    return b"\n".join(lines) + b"\n"


def spoil_yaml(content: bytes, rng: random.Random) -> bytes:
    """Put a strange line into YAML, or a strange value behind one of its names."""
    lines = content.decode().splitlines()
    at = rng.randrange(len(lines))
    name, colon, _ = lines[at].partition(":")
    strange = rng.choice((*YAML_LINES, *(json.dumps(v) for v in NASTY)))
    if colon and rng.random() < 0.7:
        lines[at] = f"{name}: {strange}"
    else:
        lines.insert(at, strange)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def spoil_header(content: bytes, rng: random.Random) -> bytes:
    """Make a safetensors header claim something else."""
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    match rng.randrange(6):
        case 0:
            entry["shape"] = rng.choice(([10**12], [1 << 40, 1 << 40], [-1], [], [0], ["x"]))
        case 1:
            entry["dtype"] = rng.choice(("F64", "I64", "BOOL", "F8_E4M3", "x", 3))
        case 2:
            entry["data_offsets"] = rng.choice(([0, 1 << 50], [5, 1], [-4, 0], [0], "x"))
        case 3:
            del header[name]
        case 4:
            header["../" + name] = header.pop(name)
        case 5:
            return struct.pack("<Q", rng.choice((1 << 60, 0, 7, size - 1, size + 1))) + content[8:]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def _spoilt(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        changed = dict(value)
        match rng.randrange(6):
            case 0:
                del changed[key]
            case 1:
                changed[rng.choice(("x", "__class__", "auto_map", "use_channel", "start"))] = rng.choice(NASTY)
            case _:
                changed[key] = _spoilt(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], _spoilt(value[at], rng), *value[at + 1 :]]
    return rng.choice(NASTY)


# --- targets -------------------------------------------------------------------------------------------------------------


def _wave(count: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(count)).astype(np.float32)


def _sound(name: str, rate: int = 8000, **options: Any) -> Callable[[Path], None]:
    return lambda folder: soundfile.write(folder / name, _wave(rate // 4), rate, **options)


def _make_m4a(folder: Path) -> None:
    import av

    with av.open(str(folder / "a.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        for begin in range(0, 8192, 1024):
            frame = av.AudioFrame.from_ndarray(_wave(1024, begin)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16_000, begin
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _listen(name: str) -> Callable[[Path], object]:
    def listen(folder: Path) -> object:
        from robustdistiller.audio.io import probe, read_audio
        from robustdistiller.audio.prepare import prepare

        path = folder / name
        probe(path)
        wave = read_audio(path, seconds=3600)
        assert wave.dtype == np.float32 and wave.ndim == 1 and np.isfinite(wave).all()
        read_audio(path, 0.1, 0.05)
        return prepare(str(path), "speech", workers=1)

    return listen


def _contaminate(folder: Path) -> object:
    from robustdistiller.acoustics.contamination import contaminate_file

    out = folder / "out" / "heard.wav"
    return contaminate_file(folder / "speech.wav", out, [str(folder / "noise.wav")], [str(folder / "room.wav")], 5.0)


def _make_contaminate(folder: Path) -> None:
    for number, name in enumerate(("speech.wav", "noise.wav", "room.wav")):
        soundfile.write(folder / name, _wave(2000, number), 8000, subtype="FLOAT")


def _make_manifest(folder: Path) -> None:
    rows = [
        {"path": f"{n}.wav", "duration": 0.25, "id": f"u{n}", "start": 0.0, "speaker": f"s{n}", "label": "yes",
         "split": "train", "use_channel": 0, "extra": {"rt60": [0.3]}}
        for n in range(3)
    ]  # fmt: skip
    for row in rows:
        soundfile.write(folder / str(row["path"]), _wave(2000), 8000)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _open_manifest(folder: Path) -> object:
    from robustdistiller.audio.manifest import read_manifest, write_manifest
    from robustdistiller.audio.prepare import prepare
    from robustdistiller.audio.splits import split_by_group

    recordings = read_manifest(folder / "manifest.jsonl")
    write_manifest(folder / "copy.jsonl", recordings)
    prepared = prepare(str(folder / "manifest.jsonl"), "speech", workers=1)
    return [recording.load() for recording in prepared.recordings], split_by_group(prepared.recordings, 0.3)


def _make_shards(folder: Path) -> None:
    from robustdistiller.audio.sharding import write_shards

    (folder / "speech").mkdir()
    for number in range(3):
        soundfile.write(folder / "speech" / f"{number}.wav", _wave(4000, number), 16000)
    write_shards([str(folder / "speech")], folder / "shards", workers=1)
    # A copy, as runs make them after comparing its digest: a stranger knows how to compute one.
    shutil.copy(folder / "shards" / "shard-000000.tar", folder / "copy.tar")
    (folder / "identity").write_text(json.loads((folder / "shards" / "shard-000000.json").read_text())["source"])


def _open_shards(folder: Path) -> object:
    from robustdistiller.audio.sharding import _finished
    from robustdistiller.audio.shards import members, read_shards
    from robustdistiller.audio.streams import ShardSampler

    known = _finished(folder / "shards", 0, (folder / "identity").read_text())
    shards = read_shards(folder / "shards")
    found = [member.load() for member in members(folder / "copy.tar", shards[0])]
    return known, found, ShardSampler(shards, 5.0, 1.0).batch(0)


def _make_cuts(folder: Path) -> None:
    source = {"type": "file", "channels": [0], "source": str(folder / "a.wav")}
    recording = {"id": "a", "sources": [source], "sampling_rate": 8000, "num_samples": 2000, "duration": 0.25}
    cut = {
        "id": "a",
        "start": 0,
        "duration": 0.25,
        "channel": 0,
        "supervisions": [],
        "recording": recording,
        "type": "MonoCut",
    }
    (folder / "cuts.jsonl").write_text(json.dumps(cut) + "\n")
    soundfile.write(folder / "a.wav", _wave(2000), 8000)


def _open_cuts(folder: Path) -> object:
    from robustdistiller.audio.prepare import prepare

    return prepare(str(folder / "cuts.jsonl"), "speech", workers=1)


def _make_recipe(folder: Path) -> None:
    from robustdistiller.config import Recipe

    Recipe(name="x").save(folder / "recipe.yaml")


def _open_recipe(folder: Path) -> object:
    from robustdistiller.config import load_recipe

    return load_recipe(folder / "recipe.yaml", ["training.steps=3", "objectives.enhancement.tap=1"])


TASK = """name: words
kind: classification
source: manifest.jsonl
label: label
train: {where: {split: train}}
valid: {hold_out: 0.3}
test: {where: {split: test}, limit: 5}
level_dbfs: -26
"""


def _make_task(folder: Path) -> None:
    rows = [
        {
            "path": f"{n}.wav",
            "duration": 0.25,
            "speaker": f"s{n}",
            "label": "ab"[n % 2],
            "split": "test" if n > 5 else "train",
        }
        for n in range(10)
    ]
    for row in rows:
        soundfile.write(folder / str(row["path"]), _wave(2000), 8000)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "task.yaml").write_text(TASK)


def _open_task(folder: Path) -> object:
    from robustdistiller.evaluation.tasks import load_task

    return load_task(folder / "task.yaml").fingerprints


CONDITIONS = """seed: 0
clean: true
noise:
  sources:
    - {name: white, kind: white, seen: true}
    - {name: babble, kind: babble}
  snr_db: [0, 10]
rooms:
  sources:
    - {name: simulated, simulated: 2}
  t60: [[0.2, 0.5], [0.5, 1.0]]
both: {noise: [babble], rooms: [simulated], snr_db: [10], t60: [[0.2, 1.0]]}
"""


def _open_conditions(folder: Path) -> object:
    from robustdistiller.evaluation.conditions import load_conditions

    return load_conditions(folder / "c.yaml")


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _small() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    return module, torch.optim.AdamW(module.parameters())


def _make_checkpoint(folder: Path) -> None:
    from robustdistiller.training import checkpoint

    module, optimiser = _small()
    module(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    checkpoint.save(folder, module, optimiser, checkpoint.TrainingProgress(3, 0.5, 2, 1, 1.5, 2.5, {"scale": 2.0}), 2)


def _open_checkpoint(folder: Path) -> object:
    from robustdistiller.training import checkpoint

    module, optimiser = _small()
    before = [p.clone() for p in module.parameters()]
    try:
        progress = checkpoint.load(folder / CHECKPOINT, module, optimiser)
    except UserError:
        assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)), (
            "half a checkpoint was loaded"
        )
        raise
    assert all(torch.isfinite(p).all() for p in module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    return progress.step + 1


CHECKPOINT = "checkpoints/step-00000003"


def _make_run(folder: Path) -> None:
    from robustdistiller.config import Recipe

    Recipe(name="x").save(folder / "recipe.yaml")
    start = {"step": 0, "precision": "fp32", "processes": 1, "versions": {"torch": "2"}, "machine": "m", "commit": None}
    (folder / "run.json").write_text(json.dumps({"seed": 0, "data": {"speech-train": "ab"}, "starts": [start]}))
    rows = [{"step": n, "train/loss": 1.0, "valid/loss": 2.0} for n in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


class _NoMaterials:
    def digests(self) -> dict[str, str]:
        return {"speech-train": "ab", "noise-train": "cd"}


def _open_run(folder: Path) -> object:
    from robustdistiller.config import Recipe
    from robustdistiller.training import run_record as record
    from robustdistiller.training.metrics_log import MetricsLog, validation_at

    record.check_resumable(folder, Recipe(name="y"), True, True)
    teacher = SimpleNamespace(name="mini-hubert", source="model.safetensors")
    record.record_run(folder, Recipe(name="y"), _NoMaterials(), teacher, "fp32", 1, 2)  # type: ignore[arg-type]
    MetricsLog(folder, 2).close()
    return validation_at(folder, 2)


def _make_student(folder: Path) -> None:
    from small_runs import shared

    from robustdistiller.config import EnhancementConfig, StudentConfig
    from robustdistiller.models.building import build_student
    from robustdistiller.models.teacher import load_teacher

    with contextlib.ExitStack() as stack:
        teacher = folder / "teacher"
        stack.callback(shutil.rmtree, teacher)
        made = load_teacher(str(shared().make_checkpoint("hubert", teacher, intermediate_size=64, num_hidden_layers=2)))
        student, _ = build_student(made, StudentConfig(layers=1), EnhancementConfig(hidden=8, layers=1))
        student.save(folder / "student", {"provenance.json": json.dumps({"speakers": ["a"], "noise_groups": []})})


def _open_student(folder: Path) -> object:
    from robustdistiller.models.student import load_student

    student = load_student(folder / "student")
    wave = torch.zeros(1, 1600)
    wave[0, ::100] = 0.1
    states, frames = student.states(wave)
    assert states.shape[2] == int(frames[0]) == 4
    if student.enhancer is not None:
        assert student.enhance(wave).shape == wave.shape
    return states


def _make_teacher(folder: Path) -> None:
    from small_runs import shared

    shared().make_checkpoint("whisper", folder / "teacher")


def _open_teacher(folder: Path) -> object:
    from robustdistiller.models.teacher import load_teacher

    teacher = load_teacher(str(folder / "teacher"), precision="fp32")
    return teacher.states(torch.zeros(1, 1600))


def _open_provenance(folder: Path) -> object:
    from robustdistiller.provenance import read_provenance

    return read_provenance(folder)


def _make_provenance(folder: Path) -> None:
    from robustdistiller.config import Recipe

    told = {"speakers": ["a", "b"], "noise_groups": ["n"], "room_groups": []}
    (folder / "provenance.json").write_text(json.dumps(told))
    Recipe(name="x").save(folder / "recipe.yaml")


def _make_onnx(folder: Path) -> None:
    """The smallest graph with a description; what it computes does not matter to those who open it."""
    from onnx import TensorProto, helper

    from robustdistiller.deployment.onnx_file import write_model
    from robustdistiller.runtime.container import Description

    shapes = {"wave": ["B", "T"], "lengths": ["B"], "states": ["B", 1, "T", 1], "frames": ["B"]}
    types = {name: TensorProto.INT64 if name in ("lengths", "frames") else TensorProto.FLOAT for name in shapes}
    ports = [helper.make_tensor_value_info(name, types[name], shape) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("Unsqueeze", ["wave", "axes"], ["states"]),
        helper.make_node("Identity", ["lengths"], ["frames"]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [1, 3])
    graph = helper.make_graph(nodes, "g", ports[:2], ports[2:], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    write_model(folder / "a.onnx", model, Description("encoder", "fp32", "s", 16_000, 320, 400, False, ("cnn",), 1))


def _open_onnx(folder: Path) -> object:
    from robustdistiller.runtime.container import describe
    from robustdistiller.runtime.engine import open_graph

    with contextlib.suppress(UserError):
        describe(folder / "a.onnx", verify=False)
    return open_graph(folder / "a.onnx", "encoder", threads=1)


def _make_s3prl(folder: Path) -> None:
    tensors = {"feature_extractor.conv_layers.0.0.weight": torch.ones(4, 1, 10), "mask_emb": torch.ones(4)}
    values = {"Distiller": tensors, "Config": {"distiller": {"encoder_layers": 2}}, "Step": 3}
    torch.save(values, folder / "a.ckpt")


def _open_s3prl(folder: Path) -> object:
    from robustdistiller.deployment.s3prl_import import import_checkpoint, read_checkpoint

    read_checkpoint(folder / "a.ckpt")
    with contextlib.suppress(UserError):  # it is no whole student
        import_checkpoint(folder / "a.ckpt", folder / "out")
    return None


TARGETS = (
    Target("wav", ("a.wav",), _sound("a.wav"), _listen("a.wav")),
    Target("float wav", ("a.wav",), _sound("a.wav", subtype="FLOAT"), _listen("a.wav")),
    Target("flac", ("a.flac",), _sound("a.flac"), _listen("a.flac")),
    Target("ogg", ("a.ogg",), _sound("a.ogg"), _listen("a.ogg")),
    Target("opus", ("a.opus",), _sound("a.opus", format="OGG", subtype="OPUS"), _listen("a.opus")),
    Target("mp3", ("a.mp3",), _sound("a.mp3", 16_000), _listen("a.mp3")),
    Target("aiff", ("a.aiff",), _sound("a.aiff"), _listen("a.aiff")),
    Target("au", ("a.au",), _sound("a.au"), _listen("a.au")),
    Target("w64", ("a.w64",), _sound("a.w64"), _listen("a.w64")),
    Target("caf", ("a.caf",), _sound("a.caf"), _listen("a.caf")),
    *([Target("m4a", ("a.m4a",), _make_m4a, _listen("a.m4a"))] if importlib.util.find_spec("av") else []),
    Target("contaminate", ("speech.wav", "noise.wav", "room.wav"), _make_contaminate, _contaminate, 2),
    Target("manifest", ("manifest.jsonl", "0.wav"), _make_manifest, _open_manifest),
    Target("shards", ("shards/shards.json", "shards/shard-000000.json", "copy.tar"), _make_shards, _open_shards, 3),
    Target("lhotse cuts", ("cuts.jsonl",), _make_cuts, _open_cuts),
    Target("recipe", ("recipe.yaml",), _make_recipe, _open_recipe, 6),
    Target("task", ("task.yaml", "task.yaml", "manifest.jsonl"), _make_task, _open_task),
    Target("conditions", ("c.yaml",), lambda f: _write(f / "c.yaml", CONDITIONS), _open_conditions),
    Target("checkpoint", tuple(f"{CHECKPOINT}/{n}" for n in ("progress.json", "model.safetensors", "optimiser.safetensors")),
           _make_checkpoint, _open_checkpoint),
    Target("run folder", ("recipe.yaml", "run.json", "metrics.jsonl"), _make_run, _open_run, 8),
    Target("student", tuple(f"student/{n}" for n in (
        "config.json", "config.json", "model.safetensors", "heads.json", "heads.safetensors", "preprocessor_config.json")),
        _make_student, _open_student, 40),
    Target("whisper teacher", tuple(f"teacher/{n}" for n in ("config.json", "preprocessor_config.json", "model.safetensors")),
           _make_teacher, _open_teacher, 40),
    Target("provenance", ("provenance.json", "recipe.yaml"), _make_provenance, _open_provenance, 4),
    Target("s3prl", ("a.ckpt",), _make_s3prl, _open_s3prl, 2),
    Target("onnx", ("a.onnx",), _make_onnx, _open_onnx, 2),
)  # fmt: skip
