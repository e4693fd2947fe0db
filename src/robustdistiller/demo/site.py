"""The demo site: exported models, a few utterances, noises and rooms, and the page that plays them, in one folder.

    OUT/index.html, *.js, *.css     the page (`web/` beside this file)
    OUT/onnxruntime/                the ONNX engine for browsers, from the npm registry, pinned by `web/package-lock.json`
    OUT/models/*.onnx               classifiers and enhancers
    OUT/speech, noise, rooms        16 kHz WAV files; room impulse responses as raw float32
    OUT/site.json                   what is there, read by the page

Any web server can show the folder; nothing in it asks another address.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from ..acoustics.noise import SYNTHETIC_KINDS, NoiseBank
from ..acoustics.rooms import RoomBank
from ..audio.io import SAMPLE_RATE, write_audio
from ..audio.manifest import Recording
from ..config import NoiseMix
from ..deployment.export import Exported, ExportOptions, export_student
from ..deployment.task_head import TaskHead, read_head
from ..errors import UserError
from ..evaluation.evaluated import EvaluatedModel, open_models
from ..evaluation.false_alarms import DetectionHead
from ..files import replacing_folder, write_json
from ..progress import PartProgress
from ..randomness import generator
from ..synthetic.speakers import speakers

T60_SECONDS = tuple(round(0.2 + 0.1 * k, 1) for k in range(14))  # the places of the room slider after "dry"
UTTERANCES, LONGEST = 12, 12.0  # how many, and seconds of each
NOISE_SECONDS = 15.0  # as long as the longest utterance that the page takes
ENGINE = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def build_site(
    models: Sequence[str],
    heads: Sequence[str | Path],
    out: str | Path,
    speech: Iterable[Recording] = (),
    int8: bool = False,
    seed: int = 0,
    progress: PartProgress | None = None,
) -> Path:
    """Write the demo of `models` into the folder `out`.

    Args:
        models: Students or teachers as for `evaluate`: folders, shipped names or hub names, also as ``name=MODEL``.
        heads: Head files of `evaluate` (``RESULTS/heads/TASK/MODEL.safetensors``) or folders of them; each is shown with
            the model that it was trained on.
        out: The folder to write; an earlier site there is replaced.
        speech: Utterances to offer, at most twelve of them; without any, synthetic voices say the heads' labels.
        int8: Whether to export in 8 bits, a quarter of the size.
        seed: Of the noises and rooms.
        progress: Called with (what is done, units done, units in all).

    Returns:
        The page, ``out/index.html``.

    Raises:
        UserError: For a model or head that does not fit, or when npm, which brings the engine, is missing.

    Example:
        >>> build_site(["mini-robust"], ["results/heads/keywords"], "site")  # doctest: +SKIP
    """
    report = progress or (lambda what, done, total: None)
    out = Path(out)
    shown = _matched(models, heads)
    utterances = list(_recorded(speech)) or list(_spoken([head for _, found in shown for head in found.values()], seed))
    with replacing_folder(out) as folder:
        report("fetching the engine", 0, 1)
        _copy_page(folder)
        rows = []
        for done, (subject, found) in enumerate(shown):
            report("exporting models", done, len(shown))
            rows.append(_export(subject, found, folder / "models", int8))
        report("exporting models", len(shown), len(shown))
        write_json(
            folder / "site.json",
            {
                "about": _about([subject.name for subject, _ in shown]),
                "tasks": sorted({task for _, found in shown for task in found}),
                "models": rows,
                "utterances": [
                    _sound(folder, f"speech/{n:02d}.wav", wave) | {"title": title, "about": about}
                    for n, (title, about, wave) in enumerate(utterances)
                ],
                "noises": [_sound(folder, f"noise/{kind}.wav", wave) | {"title": kind} for kind, wave in _noises(seed)],
                "rooms": list(_rooms(folder, seed, report)),
            },
        )
    return out / "index.html"


def engine_available() -> bool:
    """Whether the engine is in the cache already or npm is there to fetch it."""
    with as_file(files(__package__) / "web") as web:
        return _cached_engine(web).is_dir() or shutil.which("npm") is not None


def serve(site: str | Path, port: int = 0) -> http.server.ThreadingHTTPServer:
    """A server of the folder `site` on the loopback; port 0 takes a free one. The caller runs and closes it."""
    handler = functools.partial(_Quiet, directory=str(site))
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise UserError(f"Port {port} cannot be used ({error.strerror}): give another --port.") from error


class _Quiet(http.server.SimpleHTTPRequestHandler):
    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm",
    }  # fmt: skip

    def log_message(self, format: str, *args: object) -> None: ...


def _matched(
    models: Sequence[str], heads: Sequence[str | Path]
) -> list[tuple[EvaluatedModel, dict[str, tuple[Path, TaskHead]]]]:
    """Each model with its heads by task. Raises `UserError` for a model without a head, or with two for one task."""
    paths: list[Path] = []
    for head in map(Path, heads):
        paths += sorted(head.rglob("*.safetensors")) if head.is_dir() else [head]
    if not paths:
        raise UserError("There is no head to show: give --task RESULTS/heads/TASK of a folder that `evaluate` wrote.")
    subjects = open_models(models)
    for subject in subjects:
        if getattr(subject.network, "chunking", None) is not None:
            base = subject.source.rpartition("@")[0]
            raise UserError(f"The page takes whole recordings, not a stream: evaluate {base} alone and give its heads.")
    read = {path: read_head(path) for path in paths}
    shown = []
    for subject in subjects:
        found: dict[str, tuple[Path, TaskHead]] = {}
        for path, mine in read.items():
            if mine.model != subject.digest or isinstance(mine.head, DetectionHead):  # that one needs a stream
                continue
            if mine.task in found:
                raise UserError(f"{subject.name} has two heads for {mine.task}: give {found[mine.task][0]} or {path}.")
            found[mine.task] = (path, mine)
        if not found:
            raise UserError(f"None of the heads was trained on {subject.name}: evaluate it and give its heads.")
        shown.append((subject, found))
    return shown


def _export(
    subject: EvaluatedModel, heads: dict[str, tuple[Path, TaskHead]], models: Path, int8: bool
) -> dict[str, Any]:
    """The classifiers of a model, and its enhancer if it has one: what the page needs to know of them."""
    models.mkdir(parents=True, exist_ok=True)
    row: dict[str, Any] = {"name": subject.name, "parameters": subject.num_parameters, "tasks": {}, "enhancer": None}
    for number, (task, (path, _)) in enumerate(heads.items()):
        options = ExportOptions(int8=int8, enhance=subject.can_enhance and not number, task=str(path))
        with tempfile.TemporaryDirectory(dir=models) as temporary:
            for file in export_student(subject.source, Path(temporary) / "onnx", options):
                kind, precision = file.description.kind, file.description.precision
                if kind == "encoder" or precision != ("int8" if int8 else "fp32"):
                    continue
                target = models / f"{subject.name}-{task if kind == 'classifier' else kind}.onnx"
                shutil.move(file.path, target)
                told = _model_row(target, file)
                if kind == "classifier":
                    row["tasks"][task] = told
                else:
                    row["enhancer"] = told
    return row


def _model_row(path: Path, file: Exported) -> dict[str, Any]:
    return {
        "path": f"models/{path.name}", "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size, "precision": file.description.precision,
        "labels": {slot: list(labels) for slot, labels in file.description.labels.items()},
    }  # fmt: skip


def _recorded(speech: Iterable[Recording]) -> Iterable[tuple[str, str, np.ndarray]]:
    """(title, what it is, wave) of evenly spaced utterances."""
    recordings = list(speech)
    for recording in recordings[:: max(1, len(recordings) // UTTERANCES)][:UTTERANCES]:
        title = " · ".join(text for text in (recording.label, recording.id) if text)
        yield title, recording.speaker or "a recording", recording.load(0.0, LONGEST)


def _spoken(heads: list[tuple[Path, TaskHead]], seed: int) -> Iterable[tuple[str, str, np.ndarray]]:
    """The labels of all heads, said by synthetic voices that no built-in training has."""
    labels = (" ".join(label) for _, head in heads for label in zip(*head.labels.values(), strict=False))
    texts = dict.fromkeys(filter(None, labels))
    people = speakers("test", UTTERANCES, seed)
    for person, text in zip(people, list(texts)[:UTTERANCES], strict=False):
        wave = np.pad(person.say(text.replace("_", " ")).wave, SAMPLE_RATE // 4)
        yield text, f"synthetic voice {person.voice}", wave


def _noises(seed: int) -> Iterable[tuple[str, np.ndarray]]:
    bank = NoiseBank(kinds=NoiseMix(recorded=0, white=1))
    for kind in SYNTHETIC_KINDS:
        draw = bank.draw(generator(seed, "demo", kind), NOISE_SECONDS, kind)
        wave = bank.fetch([draw], round(NOISE_SECONDS * SAMPLE_RATE))
        yield kind, wave * np.float32(0.5 / np.abs(wave).max())


def _rooms(folder: Path, seed: int, report: PartProgress) -> Iterable[dict[str, Any]]:
    """Simulated rooms from short to long reverberation, none of them a room of a built-in training."""
    (folder / "rooms").mkdir()
    for done, t60 in enumerate(T60_SECONDS):
        report("simulating rooms", done, len(T60_SECONDS))
        response = demo_room(t60, seed)
        path = f"rooms/{t60:.1f}.f32"
        (folder / path).write_bytes(response.samples.astype("<f4").tobytes())
        yield {"path": path, "direct": response.direct, "t60": response.t60 or t60}
    report("simulating rooms", len(T60_SECONDS), len(T60_SECONDS))


def demo_room(t60: float, seed: int = 0) -> Any:
    """The response of the room of the slider at `t60` seconds."""
    bank = RoomBank().add_simulated(1, (t60, t60), seed, "test")
    return bank.load(bank.ids[0])


def _sound(folder: Path, path: str, wave: np.ndarray) -> dict[str, Any]:
    (folder / path).parent.mkdir(exist_ok=True)
    write_audio(folder / path, wave)
    return {"path": path, "seconds": round(len(wave) / SAMPLE_RATE, 2)}


def _about(names: list[str]) -> str:
    return (
        f"Models: {', '.join(names)}. Noises and rooms are simulated by RobustDistiller; the SNR is that of the reverberant "
        "speech to the noise. The models run in this browser with ONNX Runtime (MIT licence)."
    )


def _copy_page(folder: Path) -> None:
    with as_file(files(__package__) / "web") as web:
        for file in sorted(web.iterdir()):
            if file.suffix in (".html", ".css", ".js"):
                shutil.copyfile(file, folder / file.name)
        engine = _engine(web)
    shutil.copytree(engine, folder / "onnxruntime")


def _cached_engine(web: Path) -> Path:
    lock = (web / "package-lock.json").read_bytes()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "robustdistiller" / f"onnxruntime-web-{hashlib.sha256(lock).hexdigest()[:16]}"


def _engine(web: Path) -> Path:
    """The engine's files in a cache of the user; fetched once with npm, which checks them against the lock file."""
    cache = _cached_engine(web)
    if cache.is_dir():
        return cache
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("The demo's ONNX engine for browsers comes from the npm registry: install Node.js with npm.")
    with replacing_folder(cache) as folder, tempfile.TemporaryDirectory() as temporary:
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(web / name, Path(temporary) / name)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=temporary, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"npm could not fetch the demo's engine ({done.stderr.strip()[-300:]}): check the network.")
        package = Path(temporary) / "node_modules" / "onnxruntime-web"
        for name in (*(f"dist/{file}" for file in ENGINE), "package.json"):
            shutil.copyfile(package / name, folder / Path(name).name)
    return cache
