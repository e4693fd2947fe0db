"""The whole story in minutes, offline: corpus, two students, benchmark, enhancement, an exported student, one page.

It uses only what the package ships or makes: the mini teacher, voices of espeak-ng, made noises and simulated rooms. The
speech is synthetic and says so on the page; what is measured is measured, also when it is not flattering.
"""

from __future__ import annotations

import base64
import io
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .acoustics.contamination import contaminate
from .acoustics.environment import Environment, fixed_scene
from .audio.io import SAMPLE_RATE, write_audio
from .audio.manifest import Recording, read_manifest
from .config import EnvironmentConfig, NoiseMix, load_recipe
from .demo.site import build_site, engine_available
from .deployment.export import Exported, ExportOptions, export_student
from .errors import UserError, optional
from .evaluation.benchmark import Settings, evaluate
from .evaluation.tasks import TaskConfig
from .models.student import Student, load_student
from .models.teacher import load_teacher
from .objectives.quality import speech_quality
from .progress import PartProgress, Progress
from .report.markdown import write_summary
from .report.page import embedded_audio, render_template, write_page
from .report.reading import BenchmarkResult, read_result
from .synthetic.spoken import build_corpus
from .training.distill import distill
from .training.observer import Observer

log = logging.getLogger(__name__)

ROBUST, PLAIN = "mini-robust", "mini-distilhubert"
TEACHER = "mini-hubert"
SHOWN = ((0, "wind", 5.0), (1, "alarm", 5.0), (2, "babble", 10.0))
"""What the enhancement section plays: a held-out sentence, a noise, the SNR in dB."""


@dataclass(frozen=True)
class Quickstart:
    """What a quickstart leaves: page, robust student, the folder of its ONNX files, benchmark, and the result in words."""

    page: Path
    student: Path
    exported: Path
    demo: Path | None  # the page to play with in a browser, where its engine could be fetched
    result: BenchmarkResult
    sentence: str
    seconds: float


def quickstart(
    out: str | Path = "runs/quickstart",
    full: bool = False,
    seed: int = 0,
    watch: Callable[[str], Observer] | None = None,
    progress: PartProgress | None = None,
) -> Quickstart:
    """Run everything into `out`; finished parts are kept and reused when it is called again.

    full: hours instead of minutes, with the large corpus and ten times the steps
    watch: gives the observer of the distillation whose recipe is named; progress: (what, done, total) of the rest
    """
    begun, folder = time.monotonic(), Path(out)
    corpus = build_corpus(folder / "corpus", seed, "full" if full else "quick", progress=_part(progress, "speaking"))
    for name in (PLAIN, ROBUST):
        recipe = load_recipe(name, data__speech=[str(corpus.speech)], training__seed=seed)
        if full:
            longer: dict[str, Any] = {"training__steps": 10 * recipe.training.steps}
            recipe = load_recipe(name, data__speech=[str(corpus.speech)], training__seed=seed, **longer)
        distill(recipe, folder / name, resume=True, observer=watch(name) if watch else None)
    about = {"name": "keywords", "title": "Spoken commands", "kind": "classification"}
    keywords = TaskConfig.model_validate({**about, "source": str(corpus.tasks["keywords"])})
    models = [
        f"teacher={TEACHER}", f"plain={folder / PLAIN / 'student'}", f"robust={folder / ROBUST / 'student'}", "log-mel",
    ]  # fmt: skip
    evaluate(
        models, [keywords], "quickstart", folder / "benchmark", reference="plain",
        settings=Settings(seed=seed, similarity=12), progress=_part(progress, "evaluating"),
    )  # fmt: skip
    student = load_student(folder / ROBUST / "student")
    files = _export(folder, progress)
    demo = _demo(models[:3], corpus.tasks["keywords"], folder, seed, progress)
    held_out = [r for r in read_manifest(corpus.speech) if r.split == "valid"]
    section = render_template(
        __package__, "quickstart.html", files=files, **_speed(student),
        excerpts=_enhancement(student, held_out, folder / "enhancement", seed),
    )  # fmt: skip
    result = read_result(folder / "benchmark")
    write_summary(folder / "benchmark")
    sentence = _sentence(result)
    page = write_page(folder / "benchmark", folder / "report.html", [section], sentence)
    seconds = time.monotonic() - begun
    return Quickstart(page, folder / ROBUST / "student", folder / "onnx", demo, result, sentence, seconds)


def _part(progress: PartProgress | None, what: str) -> Progress | None:
    return None if progress is None else lambda done, total: progress(what, done, total)


def _sentence(result: BenchmarkResult) -> str:
    """What was measured, in one sentence, whichever way it went."""
    measure = result.measures(result.tasks[0])[0]
    found = {name: measure.get(name, "mean:contaminated") for name in ("robust", "plain", "teacher")}
    robust, plain, teacher = (measure.scaled(figure["value"]) for figure in found.values() if figure)
    difference = found["robust"]
    assert difference is not None
    low, high = (measure.scaled(difference[f"difference_{end}"]) for end in ("low", "high"))
    sizes = {model["name"]: model["num_parameters"] for model in result.models}
    verdict = "not clearly different from"
    if difference["significant"]:  # after correction for the number of comparisons, as everywhere on the page
        verdict = "better than" if difference["difference_value"] > 0 else "worse than"
    return (
        "In new rooms and noises (wind and alarms, which training never had, and babble of other voices), the robust student "
        f"gets {robust:.1f} % of the commands of unseen speakers right, {verdict} the ordinary student with {plain:.1f} % "
        f"(difference {robust - plain:+.1f}, 95 % interval "
        f"{low:+.1f} to {high:+.1f}); their teacher, {sizes['teacher'] / sizes['robust']:.1f} times larger, gets "
        f"{teacher:.1f} %."
    )


def _export(folder: Path, progress: PartProgress | None) -> list[Exported]:
    """The robust student as ONNX: features, commands, enhanced speech; checked against PyTorch."""
    options = ExportOptions(enhance=True, task=str(folder / "benchmark" / "heads" / "keywords" / "robust.safetensors"))
    return export_student(folder / ROBUST / "student", folder / "onnx", options, progress)


def _demo(models: list[str], commands: Path, folder: Path, seed: int, progress: PartProgress | None) -> Path | None:
    """The page on which to hear the noise and watch the models answer; it needs an engine from the npm registry."""
    page = folder / "demo" / "index.html"
    if page.is_file():
        return page
    if not engine_available():
        return None
    spoken = [recording for recording in read_manifest(commands) if recording.split == "test"]
    try:
        heads = [folder / "benchmark" / "heads" / "keywords"]
        return build_site(models, heads, folder / "demo", spoken, seed=seed, progress=progress)
    except UserError as error:
        log.warning("No demo page: %s", error)
        return None


def _speed(student: Student) -> dict[str, Any]:
    """Parameters of teacher and student, and seconds of work per second of speech, on this machine in turn."""
    models: dict[str, Any] = {"teacher": load_teacher(TEACHER, precision="fp32"), "student": student}
    wave = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 5 * SAMPLE_RATE)).astype(np.float32) * 0.1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(6):
            for name, model in models.items():
                begin = time.perf_counter()
                model.states(wave)
                times[name].append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)
    sizes = {name: model.num_parameters for name, model in models.items()}
    return {"sizes": sizes, "factors": {name: min(values) / 5 for name, values in times.items()}}


def _enhancement(student: Student, held_out: list[Recording], folder: Path, seed: int) -> list[dict[str, Any]]:
    """Clean, contaminated and enhanced speech of a few held-out sentences: files, and what the page shows of each."""
    mix = NoiseMix(recorded=0, white=0, babble=1, wind=1, alarm=1)
    environment = Environment.build(
        EnvironmentConfig(clean=0, noise=1, reverb=0, both=0, noise_kinds=mix), speech=held_out, seed=seed,
        split="valid",
    )  # fmt: skip
    excerpts = []
    for number, noise, snr in SHOWN:
        recording = held_out[number % len(held_out)]
        wave = recording.load(0.0, 4.0)
        seconds = len(wave) / SAMPLE_RATE
        scene = fixed_scene(environment, recording.id, seconds, seed, snr, noise, speaker=recording.speaker)
        noisy, _ = contaminate(wave, environment, recording.id, scene=scene)
        better = student.enhance(torch.from_numpy(noisy)[None])[0].numpy()
        shown = []
        for name, sound in (("clean", wave), ("contaminated", noisy), ("enhanced", better)):
            write_audio(folder / f"{number}-{noise}-{name}.wav", sound)
            quality = speech_quality(sound, wave, ["si_sdr"]) if name != "clean" else {}
            shown.append({"name": name, "picture": _picture(sound), "audio": embedded_audio(sound), **quality})
        excerpts.append({"noise": noise, "snr": snr, "sounds": shown})
    return excerpts


def _picture(wave: np.ndarray) -> str:
    """A spectrogram of 70 dB as a data address."""
    image = optional("matplotlib.image", "report", "A spectrogram")
    from .models.heads import stft

    spectrum = stft(torch.from_numpy(np.ascontiguousarray(wave))[None], torch.tensor([len(wave)]))[0][0].abs()
    levels = 20 * torch.log10(spectrum.clamp_min(1e-6))
    picture = levels.clamp(levels.max() - 70, levels.max()).flip(0).numpy()
    stream = io.BytesIO()
    image.imsave(stream, picture, cmap="viridis", format="png")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
