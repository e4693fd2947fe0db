"""The verb that measures: evaluate."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Annotated

from ..errors import UserError
from ..outputs import claim_workplace
from .bars import Bars
from .options import Device, Seed, Sources, argument, option, pick_device, source
from .output import Json, say, say_json, show_table

BENCHMARK_FILES = (
    "benchmark.json", "results.jsonl", "results.csv", "summary.md", "report.html", "features", "heads", "predictions",
    "similarity", "audio", "sources",
)  # fmt: skip


def evaluate(
    out: Annotated[Path, option("The folder for tables, page and kept features.")],
    models: Annotated[list[str] | None, argument("Folders, hub names, `log-mel`, `mfcc`; also `name=MODEL`.")] = None,
    group: Annotated[
        list[str] | None,
        option("Trainings with other seeds, as one model; repeatable.", "--group", metavar="NAME='RUNS-*/student'"),
    ] = None,
    task: Annotated[list[str] | None, option("A task file; repeatable.", "--task")] = None,
    conditions: Annotated[str, option("A conditions file, or `paper` or `quick`.")] = "quick",
    noise: Annotated[Sources, source("--noise", "Test noise: folder, manifest or corpus.")] = None,
    rooms: Annotated[Sources, source("--rooms", "Test rooms: folder, manifest or corpus.")] = None,
    speech: Annotated[str | None, option("Unlabelled speech, for the label-free score alone.")] = None,
    reference: Annotated[str | None, option("The model that the others are compared with.")] = None,
    train_on: Annotated[str, option("What the heads are trained on: `clean` (the paper) or `contaminated`.")] = "clean",
    seeds: Annotated[int, option("Heads per model and task.", min=1, max=1000)] = 3,
    seed: Seed = 0,
    predictions: Annotated[bool, option("Also give the heads the predicted teacher layers.", "--predictions")] = False,
    save_audio: Annotated[int, option("Utterances to write out under every condition.", min=0, max=10_000)] = 1,
    allow_overlap: Annotated[bool, option("Report, not refuse, what parts share.", "--allow-overlap")] = False,
    device: Device = "auto",
    overwrite: Annotated[bool, option("Let the report in --out lose models or tasks.", "--overwrite")] = False,
    as_json: Json = False,
) -> None:
    """Measure models on tasks in noise and reverberation: accuracy with intervals, tables, and one page.

    Encoders stay frozen; small heads learn on their states, on clean speech unless told otherwise. Interrupted work goes
    on where it was. Example: `robustdistiller evaluate runs/rd/student runs/plain/student log-mel --task
    tasks/keywords.yaml --conditions paper --noise data/demand --out results/`. Several processes share the work:
    `torchrun --nproc_per_node N -m robustdistiller evaluate …`
    """
    if train_on not in ("clean", "contaminated"):
        raise UserError(f"--train-on is clean or contaminated, not {train_on}.")
    from ..evaluation.evaluated import groups_of

    models, groups = models or [], groups_of(group or [])
    trained = [folder for pattern in groups.values() for folder in glob.glob(pattern)]
    read = [*models, *trained, *(task or ()), conditions, *(noise or ()), *(rooms or ()), speech or ""]
    claim_workplace(out, "evaluate", BENCHMARK_FILES, ("benchmark.json",), read)
    _keep_report(out, [*models, *(f"{name}=group" for name in groups)], task or [], overwrite)
    from ..distributed import Distributed
    from ..evaluation.benchmark import Settings
    from ..evaluation.benchmark import evaluate as run
    from ..report import write_report

    settings = Settings(train_on=train_on, seeds=seeds, seed=seed, save_audio=save_audio)  # type: ignore[arg-type]
    chosen = None if device == "auto" else str(pick_device(device))
    ranks = Distributed.launched()
    with Bars() as bars:
        result = run(
            models, task or (), conditions, out, groups=groups, noise=noise or (), rooms=rooms or (), speech=speech,
            reference=reference, predictions=predictions, allow_overlap=allow_overlap, device=chosen, settings=settings,
            progress=bars.of("evaluating"), ranks=ranks,
        )  # fmt: skip
    if ranks.rank:
        return
    page = write_report(out)
    if as_json:
        say_json(result)
        return
    show_averages(out)
    say(f"page: {page}")


def show_averages(folder: Path) -> None:
    """Averages over conditions with 95 % intervals, a row per model, for every measure; without labels, the similarities."""
    from ..report.reading import read_result

    result = read_result(folder)
    titles = ["model", "clean", *(result.average_title(name) for name in result.averages)]
    for task in result.tasks:
        for measure in result.measures(task):
            names = ["clean", *(f"mean:{name}" for name in result.averages)]
            rows = []
            for model in measure.models:
                found = [measure.get(model, name) for name in names]
                rows.append([model, *(measure.interval(figure) if figure else "" for figure in found)])
            show_table(titles, rows, f"{task['title']}: {measure.label}")
        similarity = result.similarity(task)
        if similarity and not result.measures(task):
            rows = [[model, f"{cosine:.3f}", f"{cka:.3f}"] for model, (_, cosine, _, cka) in similarity]
            columns = ["model", "cosine, last state", "CKA, last state"]
            title = f"{task['title']}: similarity of clean and contaminated features, mean of conditions"
            show_table(columns, rows, title)


def _keep_report(out: Path, models: list[str], tasks: list[str], overwrite: bool) -> None:
    """Raise `UserError` if the report in `out` has models or tasks that the new one would lose."""
    if overwrite or not (out / "benchmark.json").is_file():
        return
    from ..evaluation.evaluated import model_name
    from ..files import read_mapping
    from ..report.reading import read_result

    result = read_result(out)
    new = {model_name(model)[0] for model in models}
    lost = [model["name"] for model in result.models if model["name"] not in new]
    named = {read_mapping(task, "task file").get("name") for task in tasks}
    lost += [task["name"] for task in result.tasks if task["name"] not in named and task["metrics"]]
    if lost:
        raise UserError(
            f"The report in {out} has {', '.join(lost)}, which this command leaves out: name them as well (what was measured "
            "is not done again), choose another --out, or add --overwrite."
        )
