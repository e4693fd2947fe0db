"""The command line: thin verbs over the library, with help that teaches, progress bars, and one sentence for each mistake."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from . import __version__
from .cli_data import register as register_data
from .cli_deployment import register as register_deployment
from .cli_study import Bars
from .cli_study import register as register_study
from .errors import UserError, printable
from .memory import keep_freed_memory

if TYPE_CHECKING:
    from .config import Recipe
    from .training.loop import Plan

app = typer.Typer(
    name="robustdistiller",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Distil large speech encoders into small students that stay accurate in **noise and reverberation**.",
    epilog="Start with `robustdistiller quickstart`, or `robustdistiller COMMAND --help`.",
)
console = Console(stderr=True, highlight=False)

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="Override any recipe field, e.g. `training.steps=1000`; repeatable."
    ),
]
SpeechOption = Annotated[
    list[str] | None,
    typer.Option(
        "--speech",
        metavar="SOURCE",
        help="Speech to learn from: a folder, a manifest (`file.jsonl` or `file.jsonl::root`), `corpus:folder`, lhotse "
        "cuts, or folders of shards; repeatable.",
    ),
]
NoiseOption = Annotated[
    list[str] | None,
    typer.Option("--noise", metavar="SOURCE", help="Noise recordings: folder, manifest or corpus; repeatable."),
]
RoomsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rooms", metavar="SOURCE", help="Room impulse responses; without any, rooms are simulated. Repeatable."
    ),
]


def main() -> None:
    """Entry point of the console script: every mistake of the user ends in one sentence and exit code 2."""
    keep_freed_memory()
    try:
        app()
    except BrokenPipeError:
        sys.exit(0)
    except UserError as error:
        # The main process may be the one that was lost: the next one says so too.
        if _is_main_process() or (type(error).__name__ == "ProcessLost" and os.environ.get("RANK") == "1"):
            console.print(f"[bold red]robustdistiller:[/] {_escape(str(error))}", soft_wrap=True)
        sys.exit(130 if type(error).__name__ == "Interrupted" else 2)
    except OSError as error:
        if error.errno != errno.ENOSPC and error.filename is None:
            raise
        full = error.errno == errno.ENOSPC
        what = "the disk is full: free some space" if full else f"{error.filename}: {error.strerror}: correct the path"
        console.print(f"robustdistiller: {_escape(printable(what))} and run the same command again.", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("robustdistiller: interrupted")
        sys.exit(130)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also print what the library logs as information.")
    ] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    logging.basicConfig(level=logging.ERROR, format="%(message)s", handlers=[_Handler()])
    logging.getLogger("robustdistiller").setLevel(logging.INFO if verbose else logging.WARNING)


@app.command()
def distill(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")],
    out: Annotated[Path, typer.Option(help="The run folder: student, checkpoints, metrics, manifests.")],
    teacher: Annotated[
        str | None, typer.Option(help="A hub name such as `facebook/hubert-base-ls960`, or a model folder.")
    ] = None,
    speech: SpeechOption = None,
    noise: NoiseOption = None,
    rooms: RoomsOption = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; short for `--set training.steps=N`.")] = None,
    seed: Annotated[int | None, typer.Option(help="The seed of everything; short for `--set training.seed=N`.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out from its newest checkpoint.")
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard events.")] = False,
    overrides: Set = None,
) -> None:
    """Distil a robust student from a teacher, speech, noise and rooms.

    The student ends in `OUT/student`, a folder that `transformers.AutoModel.from_pretrained` opens. On several GPUs or
    machines, start the same command with `torchrun --nproc_per_node N -m robustdistiller distill …`.

    Example: `robustdistiller distill robust-hubert-base --teacher facebook/hubert-base-ls960 --speech LibriSpeech/
    --noise musan/noise --rooms RIRS_NOISES/ --out runs/rd-hubert`
    """
    from .config import load_recipe

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
    from .training.loop import distill as run
    from .training.metrics import replaced_noises

    with _Watch(chosen) as watch:
        result = run(chosen, out, resume=resume, observer=watch, tensorboard=tensorboard)
    if _is_main_process():
        metrics = result.metrics
        print(
            f"student: {result.student}  (best validation at step {result.progress.best_step} of {result.progress.step})"
        )
        if metrics:
            print(
                f"distillation loss on held-out speech: {metrics['distillation/clean']:.4f} clean, "
                f"{metrics['distillation/contaminated']:.4f} contaminated"
            )
        if "si_sdr/out" in metrics:
            print(f"enhancement: SI-SDR {metrics['si_sdr/in']:.2f} -> {metrics['si_sdr/out']:.2f} dB")
        if lost := replaced_noises(out):
            print(
                f"{lost} noises could not be used, white noise took their place: see {printable(str(out / 'skipped.jsonl'))}"
            )
        if result.cache:
            print(_cache_line(result.cache))


def _cache_line(cache: dict[str, Any]) -> str:
    saved = cache["seconds_saved"]
    return (
        f"target cache: {cache['read']} of {cache['read'] + cache['computed']} targets read, not computed"
        + (f", which saved {saved:.0f} s" if saved else "")
        + f"; it holds {cache['hours_held']:.2f} h in {cache['bytes_held'] / 1e9:.2f} GB "
        f"({cache['bytes_per_hour'] / 1e6:.0f} MB an hour of speech): {printable(cache['folder'])}"
    )


@app.command()
def contaminate(
    speech: Annotated[Path, typer.Argument(help="A speech file.")],
    out: Annotated[Path, typer.Option(help="Where to write what is heard; the draws go beside it as JSON.")],
    noise: Annotated[
        list[str] | None,
        typer.Option(
            "--noise",
            metavar="SOURCE",
            help="Noise: a folder, manifest or corpus, or `white`, `rain`, `music`, …; repeatable.",
        ),
    ] = None,
    rooms: Annotated[
        list[str] | None,
        typer.Option("--rooms", metavar="SOURCE", help="Rooms: impulse responses, or `simulated`; repeatable."),
    ] = None,
    snr: Annotated[float | None, typer.Option(help="The SNR in dB; drawn between 0 and 20 when left out.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed and file name give the same contamination.")] = 0,
) -> None:
    """Hear what a student hears: one utterance with noise, reverberation or both, and every draw as JSON.

    Example: `robustdistiller contaminate speech.wav --noise cafe/ --rooms rirs/ --snr 5 --seed 1 --out heard.wav`
    """
    from .acoustics.contamination import contaminate_file

    scene = contaminate_file(speech, out, noise or (), rooms or (), snr, seed)
    print(json.dumps(scene.to_dict(), indent=2))


@app.command()
def enhance(
    student: Annotated[str, typer.Argument(help="A student folder with an enhancement head.")],
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT... OUTPUT", help="Files or folders, then the file or folder to write."),
    ],
) -> None:
    """Enhance noisy speech with a student's enhancement head.

    Example: `robustdistiller enhance runs/rd-hubert/student noisy.wav clean.wav`
    """
    from .apply import enhance_files
    from .models.student import load_student

    if len(inputs) < 2:
        raise UserError("Give at least one input and, last, the file or folder to write.")
    *sources, target = inputs
    loaded = load_student(student)
    with _bar("enhancing") as advance:
        done = enhance_files(loaded, sources, target, advance)
    _tell(done, target)


@app.command()
def features(
    student: Annotated[str, typer.Argument(help="A student folder.")],
    inputs: Annotated[list[Path], typer.Argument(help="Files or folders of speech.")],
    out: Annotated[Path, typer.Option(help="The folder to write one .npz per file to.")],
    predictions: Annotated[
        bool, typer.Option("--predictions", help="Also write the predicted teacher layers.")
    ] = False,
    half: Annotated[bool, typer.Option("--half", help="Store 16-bit floats.")] = False,
) -> None:
    """Write the hidden states of every file, with the time of every frame.

    Each `.npz` holds `states` (S, F, D), `times` (F,) in seconds and `names` (S,).
    Example: `robustdistiller features runs/rd-hubert/student speech/ --out features/`
    """
    from .apply import extract_features
    from .models.student import load_student

    with _bar("extracting") as advance:
        done = extract_features(
            load_student(student), inputs, out, predictions, "float16" if half else "float32", advance
        )
    _tell(done, out)


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    from .config import load_recipe
    from .presets import recipe_names

    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", style="bold", no_wrap=True)
    table.add_column("what it is")
    for name in recipe_names():
        table.add_row(name, load_recipe(name).notes)
    Console(highlight=False).print(table)


class _Watch:
    """Shows a distillation: the plan line, a bar with what is left, and every validation."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.shown = _is_main_process()
        self.progress = _progress_bar()
        self.task: Any = None
        self.loss = ""

    def __enter__(self) -> _Watch:
        if self.shown:
            self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.shown:
            self.progress.stop()

    def work(self, what: str, done: int, total: int) -> None:
        if not self.shown:
            return
        if self.task is None or self.progress.tasks[-1].description != what:
            self.task = self.progress.add_task(what, total=total)
        self.progress.update(self.task, completed=done, total=total)

    def plan(self, plan: Plan) -> None:
        if not self.shown:
            return
        m, t, s = plan.materials, plan.teacher, plan.student
        rooms = len(m.rooms["train"]) or f"{self.recipe.environment.simulated_rooms} simulated"
        lines = [
            f"[bold]{self.recipe.name}[/]: {m.hours:.2f} h of speech ({m.count} recordings, {len(m.valid)} held out"
            + (f", {m.skipped} skipped" if m.skipped else "")
            + f"), {len(m.noise['train'])} noises, {rooms} rooms",
            f"teacher {_escape(t.name)} {t.num_parameters / 1e6:.1f} M, layers {', '.join(map(str, t.layers))} -> student "
            f"{s.num_parameters / 1e6:.2f} M ({plan.initialisation})",
            f"steps {plan.start} to {plan.steps}, {plan.steps_per_epoch:.0f} an epoch, {plan.precision} on {plan.device} x "
            f"{plan.processes}, about {_duration(plan.seconds_left)}",
        ]
        for line in lines:
            self.progress.console.print(line, soft_wrap=True)
        self.task = self.progress.add_task("distilling", total=plan.steps, completed=plan.start)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        if not self.shown:
            return
        if "loss" in metrics:
            self.loss = f" loss {metrics['loss']:.4f}"
        self.progress.update(self.task, completed=step, description=f"distilling{self.loss}")

    def validated(self, step: int, metrics: dict[str, float], best: bool) -> None:
        if not self.shown:
            return
        text = (
            f"step {step}: held-out distillation loss {metrics['distillation/clean']:.4f} clean, "
            f"{metrics['distillation/contaminated']:.4f} contaminated"
        )
        if "si_sdr/out" in metrics:
            text += f"; SI-SDR {metrics['si_sdr/in']:.2f} -> {metrics['si_sdr/out']:.2f} dB"
        self.progress.console.print(text + (" [green](best)[/]" if best else ""), soft_wrap=True)


class _Handler(logging.Handler):
    """Log records as plain lines on standard error, above any progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        if _is_main_process():
            console.print(f"[yellow]note:[/] {_escape(printable(record.getMessage()))}", soft_wrap=True)


@contextmanager
def _bar(what: str) -> Any:
    """A progress bar as a callback (done, total)."""
    if not _is_main_process():
        yield lambda done, total: None
        return
    with _progress_bar() as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), console=console,
    )  # fmt: skip


def _tell(done: list[Any], target: Path) -> None:
    good = [item for item in done if item.target is not None]
    print(
        f"{printable(str(target))}: {len(good)} of {len(done)} files, {sum(item.seconds for item in good) / 60:.1f} min"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


register_data(app, _bar, Bars)
register_study(app, _bar, _Watch)
register_deployment(app, _bar)


if __name__ == "__main__":
    main()
