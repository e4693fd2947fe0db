"""The verbs that train: distill, pretrain, quickstart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..outputs import claim_workplace
from .bars import Bars, is_main_process
from .evaluation import show_averages
from .options import LARGEST_SEED, Device, Seed, Sources, pick_device, source
from .output import Json, say, say_json

RUN_FILES = (
    "student", "checkpoints", "recipe.yaml", "run.json", "metrics.jsonl", "manifests", "skipped.jsonl", "non_finite.jsonl",
    "target_cache.json", "tensorboard", ".lock",
)  # fmt: skip
PRETRAINING_FILES = ("model", "checkpoints", "pretrain.json", "metrics.jsonl", "non_finite.jsonl", ".lock")
QUICKSTART_FILES = (
    "corpus", "mini-robust", "mini-distilhubert", "benchmark", "onnx", "enhancement", "demo", "report.html",
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the verbs to `app`."""
    for verb in (distill, quickstart, pretrain):
        app.command()(verb)


def distill(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")],
    out: Annotated[Path, typer.Option(help="The run folder: student, checkpoints, metrics, manifests.")],
    teacher: Annotated[
        str | None, typer.Option(help="A hub name such as `facebook/hubert-base-ls960`, or a model folder.")
    ] = None,
    speech: Annotated[
        Sources,
        source(
            "--speech",
            "Speech to learn from: a folder, a manifest (`file.jsonl` or `file.jsonl::root`), `corpus:folder`, lhotse cuts, or "
            "folders of shards.",
        ),
    ] = None,
    noise: Annotated[Sources, source("--noise", "Noise recordings: folder, manifest or corpus.")] = None,
    rooms: Annotated[Sources, source("--rooms", "Room impulse responses; without any, rooms are simulated.")] = None,
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=10**9, help="Optimiser steps; short for `--set training.steps=N`."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, max=LARGEST_SEED, help="The seed of everything; short for `--set training.seed=N`."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out from its newest checkpoint.")
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard events.")] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Override any recipe field, e.g. `training.steps=1000`; repeatable."
        ),
    ] = None,
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
        recipe,
        overrides or [],
        teacher__model=teacher,
        data__speech=speech,
        data__noise=noise,
        data__rooms=rooms,
        training__steps=steps,
        training__seed=seed,
    )
    read = [
        *chosen.data.speech,
        *chosen.data.noise,
        *chosen.data.rooms,
        chosen.student.init,
        chosen.teacher.model or "",
    ]
    claim_workplace(out, "distill", RUN_FILES, ("run.json",), [recipe, *read])
    from ..training.distill import distill as run
    from ..training.metrics_log import replaced_noises

    with Bars() as bars:
        result = run(
            chosen, out, resume=resume, observer=Watch(bars, f"distilling {chosen.name}"), tensorboard=tensorboard
        )
    if not is_main_process():
        return
    metrics, progress = result.metrics, result.progress
    if as_json:
        say_json({"student": result.student, **vars(progress), "metrics": metrics, "target_cache": result.cache})
        return
    say(f"student: {result.student}  (best validation at step {progress.best_step} of {progress.step})")
    if metrics:
        say(
            f"distillation loss on held-out speech: {metrics['distillation/clean']:.4f} clean, "
            f"{metrics['distillation/contaminated']:.4f} contaminated"
        )
    if "si_sdr/out" in metrics:
        say(f"enhancement: SI-SDR {metrics['si_sdr/in']:.2f} -> {metrics['si_sdr/out']:.2f} dB")
    if lost := replaced_noises(out):
        say(f"{lost} noises could not be used, white noise took their place: see {out / 'skipped.jsonl'}")
    if result.cache:
        say(_cache_line(result.cache))


def quickstart(
    out: Annotated[Path, typer.Option(help="The folder for everything.")] = Path("runs/quickstart"),
    full: Annotated[
        bool, typer.Option("--full", help="Hours instead of minutes: a larger corpus, ten times the steps.")
    ] = False,
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
    recipe: Annotated[Path, typer.Argument(help="A pretraining recipe, such as recipes/pretrain/mini-hubert.yaml.")],
    out: Annotated[Path, typer.Option(help="The run folder; a run that is there goes on.")],
    data: Annotated[
        list[str], typer.Option("--data", help="Folder under which the recipe's manifests lie; repeatable.")
    ],
    teacher: Annotated[str | None, typer.Option(help="The encoder to learn from: hub name or folder.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=10**9, help="Optimiser steps.")] = None,
    architecture: Annotated[str | None, typer.Option(help="hubert, wav2vec2 or wavlm.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=LARGEST_SEED, help="Of weights and crops.")] = None,
    device: Device = "auto",
) -> None:
    """Pretrain a mini teacher: a small HuBERT that learns a larger encoder, layer by layer, on clean speech."""
    claim_workplace(out, "pretrain", PRETRAINING_FILES, ("pretrain.json",), [recipe, *data, teacher or ""])
    from ..training.pretrain import load_pretrain_config
    from ..training.pretrain import pretrain as run

    config = load_pretrain_config(recipe, teacher=teacher, steps=steps, architecture=architecture, seed=seed)
    with Bars() as bars:
        watch = Watch(bars, f"pretraining {config.name}")
        done = run(config, out, data, device=pick_device(device), observer=watch)
    if is_main_process():
        say(f"model: {done}")


class Watch:
    """Shows a training: the plan, a bar with what is left, and every validation (an `Observer`)."""

    def __init__(self, bars: Bars, name: str):
        self.bars, self.name, self.total, self.label = bars, name, 0, ""

    def work(self, what: str, done: int, total: int) -> None:
        """Long preparation, such as scanning a corpus."""
        self.bars.show(what, done, total)

    def plan(self, lines: Sequence[str], start: int, steps: int) -> None:
        """What the run is about to do."""
        for line in lines:
            self.bars.line(line)
        self.total = steps
        self.bars.show(self.name, start, steps)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """After every step."""
        if "loss" in metrics:  # the sum of all terms, on what is trained on: no validation figure compares
            terms = " (distillation + enhancement)" if "enhancement" in metrics else ""
            self.label = f"{self.name}, training loss{terms} {metrics['loss']:.4f}"
        self.bars.show(self.name, step, self.total, self.label)

    def validated(self, step: int, metrics: dict[str, float], best: bool) -> None:
        """After every validation."""
        text = f"step {step}: held-out "
        if "distillation/clean" in metrics:
            text += (
                f"distillation loss {metrics['distillation/clean']:.4f} clean, "
                f"{metrics['distillation/contaminated']:.4f} contaminated"
            )
        else:
            text += f"loss {metrics['loss']:.4f}"
        if "si_sdr/out" in metrics:
            text += f"; SI-SDR {metrics['si_sdr/in']:.2f} -> {metrics['si_sdr/out']:.2f} dB"
        self.bars.line(text + (" (best)" if best else ""))


def _cache_line(cache: dict[str, Any]) -> str:
    saved = cache["seconds_saved"]
    return (
        f"target cache: {cache['read']} of {cache['read'] + cache['computed']} targets read, not computed"
        + (f", which saved {saved:.0f} s" if saved else "")
        + f"; it holds {cache['hours_held']:.2f} h in {cache['bytes_held'] / 1e9:.2f} GB "
        f"({cache['bytes_per_hour'] / 1e6:.0f} MB an hour of speech): {cache['folder']}"
    )
