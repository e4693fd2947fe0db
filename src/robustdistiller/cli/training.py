"""The verbs that train, and what they start from: distill, quickstart, pretrain, recipes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from ..outputs import claim_workplace
from ..training.observer import Observer
from .bars import Bars, is_main_process
from .evaluation import show_averages
from .options import LARGEST_SEED, Device, Seed, Sources, argument, option, pick_training_device, source
from .output import Json, answer, say, say_json

RUN_FILES = (
    "student", "checkpoints", "recipe.yaml", "run.json", "metrics.jsonl", "manifests", "skipped.jsonl", "non_finite.jsonl",
    "target_cache.json", "tensorboard", ".lock",
)  # fmt: skip
PRETRAINING_FILES = ("model", "checkpoints", "pretrain.json", "metrics.jsonl", "non_finite.jsonl", ".lock")
QUICKSTART_FILES = (
    "corpus", "mini-robust", "mini-distilhubert", "benchmark", "onnx", "enhancement", "demo", "report.html",
)  # fmt: skip


def distill(
    recipe: Annotated[str, argument("A recipe file, or the name of a shipped one.", "RECIPE")],
    out: Annotated[Path, option("The run folder: student, checkpoints, metrics, manifests.")],
    teacher: Annotated[str | None, option("A hub name such as `facebook/hubert-base-ls960`, or a folder.")] = None,
    speech: Annotated[Sources, source("--speech", "Folder, manifest, `corpus:folder`, lhotse cuts or shards.")] = None,
    noise: Annotated[Sources, source("--noise", "Noise recordings: folder, manifest or corpus.")] = None,
    rooms: Annotated[Sources, source("--rooms", "Room impulse responses; without any, rooms are simulated.")] = None,
    steps: Annotated[int | None, option("Optimiser steps (`training.steps`).", metavar="N", min=1, max=10**9)] = None,
    seed: Annotated[
        int | None, option("Of everything (`training.seed`).", metavar="N", min=0, max=LARGEST_SEED)
    ] = None,
    resume: Annotated[bool, option("Go on with the run in --out from its newest checkpoint.", "--resume")] = False,
    tensorboard: Annotated[bool, option("Also write TensorBoard events.", "--tensorboard")] = False,
    overrides: Annotated[
        list[str] | None,
        option("Set a field of the recipe, as in `data.crop_seconds=6`; repeatable.", "--set", metavar="FIELD=VALUE"),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Distil a robust student from a teacher, speech, noise and rooms.

    The student ends in `OUT/student`, a folder that `transformers.AutoModel.from_pretrained` opens. On several GPUs or
    machines, start the same command with `torchrun --nproc_per_node N -m robustdistiller distill …`.

    Example: `robustdistiller distill robust-hubert-base --teacher facebook/hubert-base-ls960 --speech LibriSpeech/
    --noise musan/noise --rooms RIRS_NOISES/ --out runs/rd-hubert`
    """
    from ..config import load_recipe

    chosen = load_recipe(
        recipe, overrides or [], teacher__model=teacher, data__speech=speech, data__noise=noise, data__rooms=rooms,
        training__steps=steps, training__seed=seed,
    )  # fmt: skip
    where = pick_training_device(device)
    data, models = chosen.data, (chosen.student.init, chosen.teacher.model or "")
    read = [recipe, *data.speech, *data.noise, *data.rooms, *models]
    claim_workplace(out, "distill", RUN_FILES, ("run.json",), read)
    from ..training.distill import distill as run
    from ..training.metrics_log import replaced_noises

    with Bars() as bars:
        watch = Watch(bars, f"distilling {chosen.name}")
        result = run(chosen, out, resume, watch, tensorboard, device=where)
    if not is_main_process():
        return
    metrics, progress = result.metrics, result.progress
    if as_json:
        say_json({"student": result.student, **vars(progress), "metrics": metrics, "target_cache": result.cache})
        return
    say(f"student: {result.student}  (best validation at step {progress.best_step} of {progress.step})")
    if metrics:
        say(f"on held-out speech: {_judged(metrics)}")
    if lost := replaced_noises(out):
        say(f"{lost} noises could not be used, white noise took their place: see {out / 'skipped.jsonl'}")
    if result.cache:
        say(_cache_line(result.cache))


def quickstart(
    out: Annotated[Path, option("The folder for everything.")] = Path("runs/quickstart"),
    full: Annotated[bool, option("Hours, not minutes: a larger corpus, ten times the steps.", "--full")] = False,
    seed: Seed = 0,
) -> None:
    """See the whole thing happen, offline: corpus, two students, benchmark, enhancement, one page.

    A student trained on contaminated speech and one trained on clean speech are distilled from the shipped mini teacher
    under the same budget and compared in new noises and rooms. Synthetic voices; minutes on two cores.
    """
    claim_workplace(out, "quickstart", QUICKSTART_FILES, ("corpus/corpus.json",))
    from ..quickstart import quickstart as run

    with Bars() as bars:
        done = run(out, full, seed, lambda name: Watch(bars, f"distilling {name}"), bars.show)
    show_averages(out / "benchmark")
    say("", done.sentence, "", f"student: {done.student}", f"for devices: {done.exported}", f"page: {done.page}")
    if done.demo is not None:
        say(f"to hear and see: python -m http.server -b 127.0.0.1 -d {done.demo.parent}")
    say(f"{done.seconds / 60:.1f} minutes")


def pretrain(
    recipe: Annotated[Path, argument("A pretraining recipe, such as recipes/pretrain/mini-hubert.yaml.")],
    out: Annotated[Path, option("The run folder; a run that is there goes on.")],
    data: Annotated[list[str], option("Folder under which the recipe's manifests lie; repeatable.", "--data")],
    teacher: Annotated[str | None, option("The encoder to learn from: hub name or folder.")] = None,
    steps: Annotated[int | None, option("Optimiser steps.", min=1, max=10**9)] = None,
    architecture: Annotated[str | None, option("hubert, wav2vec2 or wavlm.")] = None,
    seed: Annotated[int | None, option("Of weights and crops.", min=0, max=LARGEST_SEED)] = None,
    device: Device = "auto",
) -> None:
    """Pretrain a mini teacher: a small HuBERT that learns a larger encoder, layer by layer, on clean speech."""
    claim_workplace(out, "pretrain", PRETRAINING_FILES, ("pretrain.json",), [recipe, *data, teacher or ""])
    from ..training.pretrain import load_pretrain_config
    from ..training.pretrain import pretrain as run

    config = load_pretrain_config(recipe, teacher=teacher, steps=steps, architecture=architecture, seed=seed)
    with Bars() as bars:
        watch = Watch(bars, f"pretraining {config.name}")
        done = run(config, out, data, device=pick_training_device(device), observer=watch)
    if is_main_process():
        say(f"model: {done}")


def recipes(
    name: Annotated[str | None, argument("A recipe to print; all are listed without it.")] = None, as_json: Json = False
) -> None:
    """List the shipped recipes, or print one as the start of your own.

    Example: `robustdistiller recipes edge > mine.yaml`
    """
    from ..config import load_recipe
    from ..presets import find_shipped, shipped_names

    if name is None:
        notes = {shipped: load_recipe(shipped).notes for shipped in shipped_names("recipes")}
        width = max(map(len, notes))
        answer(as_json, notes, *(f"{shipped:<{width}}  {text}" for shipped, text in notes.items()))
    elif as_json:
        say_json(load_recipe(name).to_dict())
    else:
        say(*find_shipped(name, "recipes").read_text(encoding="utf-8").splitlines())


class Watch(Observer):
    """Shows a training: the plan, a bar with what is left, and every validation."""

    def __init__(self, bars: Bars, name: str):
        self.bars, self.name, self.total, self.label = bars, name, 0, ""

    def work(self, what: str, done: int, total: int) -> None:
        self.bars.show(what, done, total)

    def plan(self, lines: Sequence[str], start: int, steps: int) -> None:
        for line in lines:
            self.bars.line(line)
        self.total = steps
        self.bars.show(self.name, start, steps)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        if "loss" in metrics:  # the sum of all terms, on what is trained on: no validation figure compares
            terms = " (distillation + enhancement)" if "enhancement" in metrics else ""
            self.label = f"{self.name}, training loss{terms} {metrics['loss']:.4f}"
        self.bars.show(self.name, step, self.total, self.label)

    def validated(self, step: int, metrics: dict[str, float], best: bool) -> None:
        self.bars.line(f"step {step}: held-out {_judged(metrics)}{' (best)' * best}")


def _judged(metrics: dict[str, float]) -> str:
    """What a validation measured, in words."""
    if "distillation/clean" not in metrics:
        return f"loss {metrics['loss']:.4f}"
    clean, contaminated = (metrics[f"distillation/{condition}"] for condition in ("clean", "contaminated"))
    text = f"distillation loss {clean:.4f} clean, {contaminated:.4f} contaminated"
    if "si_sdr/out" in metrics:
        text += f"; SI-SDR {metrics['si_sdr/in']:.2f} -> {metrics['si_sdr/out']:.2f} dB"
    return text


def _cache_line(cache: dict[str, Any]) -> str:
    saved = cache["seconds_saved"]
    return (
        f"target cache: {cache['read']} of {cache['read'] + cache['computed']} targets read, not computed"
        + (f", which saved {saved:.0f} s" if saved else "")
        + f"; it holds {cache['hours_held']:.2f} h in {cache['bytes_held'] / 1e9:.2f} GB "
        f"({cache['bytes_per_hour'] / 1e6:.0f} MB an hour of speech): {cache['folder']}"
    )
