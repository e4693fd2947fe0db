"""The verbs that measure and the verbs that need nothing: evaluate, quickstart, pretrain."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .errors import UserError

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


def register(app: typer.Typer, bar: Bar, watch: Callable[[Any], Any]) -> None:
    """Add the verbs to `app`; `bar` shows progress, `watch` shows a distillation of a recipe."""

    @app.command()
    def evaluate(
        models: Annotated[
            list[str],
            typer.Argument(
                help="Student or teacher folders, hub names, `log-mel`, `mfcc`; `name=model` gives another name."
            ),
        ],
        out: Annotated[Path, typer.Option(help="The folder for tables, page and kept features.")],
        task: Annotated[list[str] | None, typer.Option("--task", help="A task file; repeatable.")] = None,
        conditions: Annotated[str, typer.Option(help="A conditions file, or `paper` or `quick`.")] = "quick",
        noise: Annotated[
            list[str] | None, typer.Option("--noise", help="Test noise: folder, manifest or corpus.")
        ] = None,
        rooms: Annotated[
            list[str] | None, typer.Option("--rooms", help="Test rooms: folder, manifest or corpus.")
        ] = None,
        speech: Annotated[str | None, typer.Option(help="Unlabelled speech, for the label-free score alone.")] = None,
        reference: Annotated[str | None, typer.Option(help="The model that the others are compared with.")] = None,
        train_on: Annotated[
            str, typer.Option(help="What the heads hear: `clean` (the paper) or `contaminated`.")
        ] = "clean",
        seeds: Annotated[int, typer.Option(help="Heads per model and task.")] = 3,
        seed: Annotated[int, typer.Option(help="The seed of everything.")] = 0,
        predictions: Annotated[
            bool,
            typer.Option("--predictions", help="Also show the students' predictions of teacher layers to the heads."),
        ] = False,
        save_audio: Annotated[int, typer.Option(help="Utterances per task to write out under every condition.")] = 1,
        allow_overlap: Annotated[
            bool, typer.Option("--allow-overlap", help="Report what training and test share instead of refusing it.")
        ] = False,
    ) -> None:
        """Measure models on tasks in noise and reverberation: accuracy with intervals, tables, and one page.

        Encoders stay frozen; small heads learn on their states, on clean speech unless told otherwise. Interrupted work goes
        on where it was. Example: `robustdistiller evaluate runs/rd/student runs/plain/student log-mel --task
        tasks/keywords.yaml --conditions paper --noise data/demand --out results/`. Several processes share the work:
        `torchrun --nproc_per_node N -m robustdistiller evaluate …`
        """
        if train_on not in ("clean", "contaminated"):
            raise UserError(f"--train-on is clean or contaminated, not {train_on}.")
        from .evaluation.benchmark import Settings
        from .evaluation.benchmark import evaluate as run
        from .evaluation.ranks import Ranks
        from .report import write_report

        settings = Settings(train_on=train_on, seeds=seeds, seed=seed, save_audio=save_audio)  # type: ignore[arg-type]
        ranks = Ranks.launched()
        with bar("evaluating") as advance:
            run(
                models, task or (), conditions, out, noise=noise or (), rooms=rooms or (), speech=speech,
                reference=reference, predictions=predictions, allow_overlap=allow_overlap, settings=settings,
                progress=advance, ranks=ranks,
            )  # fmt: skip
        if ranks.rank:
            return
        page = write_report(out)
        _print_averages(out)
        print(f"page: {page}")

    @app.command()
    def quickstart(
        out: Annotated[Path, typer.Option(help="The folder for everything.")] = Path("runs/quickstart"),
        full: Annotated[
            bool, typer.Option("--full", help="Hours instead of minutes: a larger corpus, ten times the steps.")
        ] = False,
        seed: Annotated[int, typer.Option(help="The seed of everything.")] = 0,
    ) -> None:
        """See the whole thing happen, offline: corpus, two students, benchmark, enhancement, one page.

        A student that hears contaminated speech and one that hears clean speech are distilled from the shipped mini teacher
        under the same budget and compared in new noises and rooms. Synthetic voices; minutes on two cores.
        """
        from .config import load_recipe
        from .quickstart import quickstart as run

        with Bars(bar) as bars:
            watches: list[Any] = []

            def observe(name: str) -> Any:
                bars.close()
                for old in watches:
                    old.__exit__(None, None, None)
                watches[:] = [watch(load_recipe(name)).__enter__()]
                return watches[0]

            def progress(what: str, done: int, total: int) -> None:
                while watches:
                    watches.pop().__exit__(None, None, None)
                bars.show(what, done, total)

            done = run(out, full, seed, observe, progress)
        _print_averages(out / "benchmark")
        print(f"\n{done.sentence}\n")
        print(
            f"student: {done.student}\nfor devices: {done.exported}\npage: {done.page}\n{done.seconds / 60:.1f} minutes"
        )

    @app.command()
    def pretrain(
        recipe: Annotated[
            Path, typer.Argument(help="A pretraining recipe, such as recipes/pretrain/mini-hubert.yaml.")
        ],
        out: Annotated[Path, typer.Option(help="The run folder; a run that is there goes on.")],
        data: Annotated[
            list[str], typer.Option("--data", help="Folder under which the recipe's manifests lie; repeatable.")
        ],
        teacher: Annotated[str | None, typer.Option(help="The encoder to learn from: hub name or folder.")] = None,
        steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
        architecture: Annotated[str | None, typer.Option(help="hubert, wav2vec2 or wavlm.")] = None,
        seed: Annotated[int | None, typer.Option(help="Of weights and crops.")] = None,
    ) -> None:
        """Pretrain a mini teacher: a small HuBERT that learns a larger encoder, layer by layer, on clean speech."""
        import torch

        from .training.pretrain import load_pretrain_config
        from .training.pretrain import pretrain as run

        config = load_pretrain_config(recipe, teacher=teacher, steps=steps, architecture=architecture, seed=seed)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with bar("pretraining") as advance:
            print(run(config, out, data, device=device, progress=advance))


class Bars:
    """One progress bar at a time, for parts that follow each other."""

    def __init__(self, bar: Bar):
        self._bar, self._open, self._what = bar, None, ""

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def show(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            self.close()
            self._what, self._open = what, self._bar(what)  # type: ignore[assignment]
            self._advance = self._open.__enter__()  # type: ignore[attr-defined]
        self._advance(done, total)

    def close(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
        self._open, self._what = None, ""


def _print_averages(folder: Path) -> None:
    """Averages over conditions with 95 % intervals, a row per model, for every measure."""
    from .report.reading import read_result

    result = read_result(folder)
    console = Console(highlight=False)
    for task in result.tasks:
        for measure in result.measures(task):
            table = Table(title=f"{task['title']}: {measure.label}", title_justify="left", box=None, pad_edge=False)
            table.add_column("model", style="bold")
            names = ["clean", *(f"mean:{name}" for name in result.averages)]
            for title in ("clean", *(result.average_title(name) for name in result.averages)):
                table.add_column(title, justify="right")
            for model in measure.models:
                figures = [measure.get(model, name) for name in names]
                cells = [escape(measure.interval(figure)) if figure else "" for figure in figures]
                table.add_row(model, *cells)
            console.print(table)
