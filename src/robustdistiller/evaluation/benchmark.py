"""The benchmark: tasks × conditions × models, in one call that can be interrupted and repeated.

    results/
      features/<digest>/        averaged features, one stream per model, part of a task and condition (reused)
      heads/<task>/<model>.safetensors           the heads of all seeds
      predictions/<task>/<model>/<condition>.jsonl    what every head answered to every utterance
      similarity/<task>/<model>/<condition>.jsonl     the label-free score
      audio/<task>/<utterance>/<condition>.wav   what the conditions sound like
      benchmark.json            everything that the report shows; results.jsonl and results.csv hold its figures

The same call gives the same numbers; work that is already there, for exactly these inputs, is not done again (store.py).
Scores become figures in results.py.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..audio.io import write_audio
from ..distributed import Distributed
from ..errors import UserError, closest
from ..files import exclusive, read_json, write_json
from ..objectives.quality import available_quality
from ..progress import Progress
from .conditions import CLEAN, Condition, load_conditions
from .enhancement_scores import UNPROCESSED, enhance_and_score, score_enhancement
from .evaluated import EvaluatedModel, ReportedModel, open_reported
from .fairness import check_exposure
from .features import FeatureModel, FeatureStream, Plan, StoredFeatures, extract, make_plan, require_space
from .label_free import LabelFree
from .metrics import AnyScores, join_scores
from .probes import Confusions, Probe, load_heads, make_probe, save_heads
from .rendering import TRAINING, ConditionRenderer
from .results import benchmark_result, task_figures, task_summary
from .settings import Settings
from .store import Row, Store, read_rows, write_rows
from .tables import write_tables
from .task_heads import Trained
from .tasks import Example, Task, TaskConfig, build_task, families, load_folds
from .workload import Workload

__all__ = ["Settings", "evaluate"]

logger = logging.getLogger(__name__)

ByCondition = dict[str, list[AnyScores]]


def evaluate(
    models: Sequence[str | FeatureModel] = (),
    tasks: Sequence[str | Path | TaskConfig] = (),
    conditions: str | Path = "quick",
    out: str | Path = "results",
    *,
    groups: Mapping[str, str | Sequence[str]] | None = None,
    noise: Sequence[str] = (),
    rooms: Sequence[str] = (),
    speech: str | None = None,
    reference: str | None = None,
    predictions: bool = False,
    allow_overlap: bool = False,
    device: str | None = None,
    settings: Settings = Settings(),
    progress: Progress | None = None,
    ranks: Distributed = Distributed(),
) -> dict[str, Any]:
    """Measure every model on every task under every condition.

    Args:
        models: ``log-mel``, ``mfcc``, student folders, teacher folders or hub names, each optionally as ``name=model``; or
            objects that are a `FeatureModel`.
        tasks: Task files or `TaskConfig` values; without any, `speech` (a source) is enough for the label-free score.
        conditions: A conditions file, or ``paper`` or ``quick``.
        out: The folder of all that is written; what is there for exactly these inputs is used again.
        groups: Trainings that differ in their seed alone, reported as one model: a name for each group, and its models or
            a pattern of their folders (``runs/robust-*/student``).
        noise: Sources of the recorded noise of that file.
        rooms: Sources of its measured rooms.
        speech: A source of unlabelled speech for the label-free score.
        reference: The model or group that the others are compared with; by default the first.
        predictions: Show the students' predictions of their teacher's layers to the heads as well.
        allow_overlap: Report, instead of refusing, what training and test share.
        device: Such as ``cuda:1``; by default the GPU of this process, or the processor.
        settings: Seeds, heads, bootstrap.
        progress: Called with the work that is done and all work, in units of a shard of features or a head.
        ranks: ``Distributed.launched()`` in each of several processes that share the work.

    Returns:
        The whole result, as it is written to ``benchmark.json``.

    Raises:
        UserError: Before any work is done, for whatever cannot be measured or would not be a fair test.
    """
    config, folder = load_conditions(conditions)
    scans = Path(out) / "sources"
    with ranks.first():
        stage = ConditionRenderer(config, folder, noise, rooms, allow_overlap, scans)
        loaded = [load_folds(task, allow_overlap, scans) for task in tasks]
        if speech is not None:
            loaded.append([_unlabelled(speech, [folds[0].report_name for folds in loaded], scans)])
    names = [task.name for folds in loaded for task in folds] + [f[0].report_name for f in loaded if len(f) > 1]
    if len(set(names)) < len(names):
        raise UserError("Two tasks have the same name: change the name in one of the task files.")
    if not loaded:
        raise UserError("There is nothing to evaluate on: name a task, or speech for the label-free score.")
    place = torch.device(device or (f"cuda:{ranks.local_rank}" if torch.cuda.is_available() else "cpu"))
    opened, reported = open_reported(models, groups or {}, predictions, place)
    known = [model.name for model in reported]
    if reference is not None and reference not in known:
        raise UserError(f"The reference {reference} is none of {', '.join(known)}.{closest(reference, known)}")
    notes = [*stage.notes, *check_exposure(opened, [t for folds in loaded for t in folds], stage, allow_overlap)]
    for task in (t for folds in loaded for t in folds):
        notes += [note if note.startswith("OVERLAP") else f"{task.report_name}: {note}" for note in task.notes]
    notes = list(dict.fromkeys(notes))
    for note in notes:
        logger.warning("%s", note)
    store = Store(Path(out), stage, settings)
    return _Benchmark(opened, reported, loaded, store, place, reference or known[0], notes, progress).run(ranks)


def _unlabelled(source: str, taken: Sequence[str], scans: Path) -> Task:
    """The task that has no labels, under a name that no other has."""
    names = (f"speech{'-unlabelled' * k}" for k in itertools.count())
    name = next(name for name in names if name not in taken)
    about = {"name": name, "title": "Unlabelled speech", "kind": "unlabelled", "test": {"where": {}}}
    config = TaskConfig.model_validate({**about, "source": source})
    return build_task(config, allow_overlap=True, cache=scans)


class _Benchmark:
    """One run."""

    def __init__(
        self, models: list[EvaluatedModel], reported: list[ReportedModel], tasks: list[list[Task]], store: Store,
        device: torch.device, reference: str, notes: list[str], progress: Progress | None,
    ):  # fmt: skip
        self.models, self.reported, self.tasks, self.store, self.device = models, reported, tasks, store, device
        self.stage, self.settings, self.out = store.stage, store.settings, store.out
        self.reference, self.notes = reference, notes
        self.workload = Workload(tasks, len(models), self.stage.conditions, self.settings, self._plan, progress)
        self.label_free = LabelFree(store, self._plan, device)

    def run(self, ranks: Distributed) -> dict[str, Any]:
        """Everything; with several processes the first one finds most of it done."""
        with exclusive(self.out) if not ranks.rank else contextlib.nullcontext():
            return self._run(ranks)

    def _run(self, ranks: Distributed) -> dict[str, Any]:
        self._require_space()
        if ranks.world > 1:
            self._do_part(ranks)
        if not ranks.rank:
            tasks = [self._task(folds) for folds in self.tasks]
            result = benchmark_result(self.settings, self.reference, self.reported, self.stage, tasks, self.notes)
            write_json(self.out / "benchmark.json", result)
            write_tables(self.out, result)
        ranks.wait()
        return read_json(self.out / "benchmark.json") if ranks.rank else result  # type: ignore[no-any-return]

    def _do_part(self, ranks: Distributed) -> None:
        """This process's part of the features, heads, answers and scores, left where `_task` looks for them."""
        notes, groups = [*self.notes], families([fold for folds in self.tasks for fold in folds])
        for last in (False, True):
            for number, task in ((k, task) for k, family in enumerate(groups) for task in family):
                conditions = ranks.share(self.stage.conditions, number)
                if task.config.has_heads:
                    heads = self._heads(task, self.models if last else ranks.share(self.models, number))
                    for condition in conditions if last else ():
                        self._predictions(task, heads, condition)
                elif last and task.config.kind == "enhancement":
                    self._enhancement(task, conditions)
            ranks.wait()
        # Only of the first fold of a task, as in `_task`; after the wait, since it shares no file with the rest.
        for number, folds in enumerate(self.tasks):
            self._similarity(folds[0], ranks.share(self.models, number))
        ranks.wait()
        self.notes = notes
        self.workload.restart()

    # One task

    def _task(self, folds: list[Task]) -> dict[str, Any]:
        """Everything about one task; the answers of its folds are scored together."""
        task = folds[0]
        logger.info("task %s", task.report_name)
        told = task_summary(folds)
        scored: dict[str, ByCondition] = {}
        if task.config.kind == "enhancement":
            scored = self._enhancement(task, self.stage.conditions)
        elif task.config.has_heads:
            confusions = Confusions(task)
            scored = {model.name: {} for model in self.models}
            for fold in folds:
                heads = self._heads(fold, self.models)
                for condition in self.stage.conditions:
                    for name, rows in self._predictions(fold, heads, condition).items():
                        before, scores = scored[name].get(condition.name), self._probe(fold).score(rows)
                        scored[name][condition.name] = join_scores(before, scores) if before else scores
                        for model in self.reported:
                            if name in model.names:
                                confusions.add(model.name, condition, rows)
                    self.workload.phase(len(self._plan(fold.test).shards))
                told["heads"] = told["heads"] or [_head_summary(m, heads[m.names[0]][0]) for m in self.reported]
            told["confusion"] = confusions.to_list()
        told |= task_figures(folds, scored, self.reported, self.stage.conditions, self.settings, self.reference)
        similarity = self._similarity(task, self.models)
        told["similarity"] = [{"model": m.name, **row} for m in self.reported for row in m.averaged(similarity)]
        told["audio"] = self._audio(task)
        return told

    def _probe(self, task: Task) -> Probe:
        config = replace(self.settings.heads, seeds=self.settings.seeds)
        return make_probe(task, config, self.settings.seed, self.device)

    # StoredFeatures, heads, predictions

    def _extract(
        self, models: Sequence[EvaluatedModel], task: Task, part: str, condition: Condition, pooled: bool
    ) -> dict[str, StoredFeatures]:
        """The features of some models, computed where they are missing."""
        folds = next((folds for folds in self.tasks if task in folds), [])
        if len(folds) > 1 and condition.kind == "clean" and pooled:
            return self._of_folds(models, task, part, condition, folds)
        streams = {model.name: self.store.stream(model, task, part, condition, pooled) for model in models}
        # One fold is enough.
        told = part == "test" and any(task.name == folds[0].name for folds in self.tasks)
        lacking = self.label_free.lacking(models, task, condition) if told else []
        missing = [model for model in models if model in lacking or not streams[model.name].finished]
        if missing:
            numbers = range(len(task.part(part)))
            self._compute(missing, [streams[m.name] for m in missing], lacking, task, part, condition, pooled, numbers)
        return {name: stream.open() for name, stream in streams.items()}

    def _compute(
        self, models: Sequence[EvaluatedModel], streams: Sequence[FeatureStream], lacking: Sequence[EvaluatedModel],
        task: Task, part: str, condition: Condition, pooled: bool, numbers: Sequence[int],
    ) -> None:  # fmt: skip
        """The states of some utterances of a part, once for the features and for the similarity of models that lack it."""
        compared = self.label_free.begun(lacking, task)
        examples = [task.part(part)[k] for k in numbers]
        extract(
            models, streams, self._plan(examples), self.stage.render(condition, task, part, examples), pooled,
            self.device, self.workload.tick, {name: partial(one.add, numbers) for name, one in compared.items()},
        )  # fmt: skip
        self.label_free.write(lacking, task, condition, compared)

    def _of_folds(
        self, models: Sequence[EvaluatedModel], task: Task, part: str, condition: Condition, folds: list[Task]
    ) -> dict[str, StoredFeatures]:
        """Clean features of a part of a fold, out of those of all folds: most utterances are in most of them."""
        every = {_place(e): e for fold in folds for name in ("train", "valid", "test") for e in fold.part(name)}
        number = {place: k for k, place in enumerate(sorted(every))}
        whole = replace(task, train=tuple(every[place] for place in number), fold_of=None)
        found = self._extract(models, whole, "train", condition, True)
        chosen = [number[_place(e)] for e in task.part(part)]
        return {name: StoredFeatures(f.rows[chosen], f.frames[chosen]) for name, f in found.items()}

    def _plan(self, examples: Sequence[Example]) -> Plan:
        return make_plan([example.recording.seconds for example in examples], self.settings.batch_seconds)

    def _heads(self, task: Task, models: Sequence[EvaluatedModel]) -> dict[str, list[Trained]]:
        """The heads of some models, trained where there are none for exactly these inputs."""
        probe, condition = self._probe(task), CLEAN if self.settings.train_on == "clean" else TRAINING
        keys = {model.name: self.store.head_key(model, task, probe.pooled) for model in models}
        found = {m.name: load_heads(self.store.heads_file(task, m), keys[m.name]) for m in models}
        heads = {name: trained for name, trained in found.items() if trained is not None}
        missing = [model for model in models if model.name not in heads]
        parts = {part: self._extract(missing, task, part, condition, probe.pooled) if missing else {}
                 for part in ("train", "valid")}  # fmt: skip
        for model in missing:
            logger.info("heads of %s for %s", model.name, task.name)
            heads[model.name] = probe.fit(parts["train"][model.name], parts["valid"][model.name], self.workload.tick)
            about = {
                "task": task.name,
                "kind": task.config.kind,
                "slots": list(task.slots),
                "classes": [list(classes) for classes in task.classes],
                "level_dbfs": task.config.level_dbfs,
                "states": list(model.state_names),
                "model": model.digest,
            }  # what an export of the head needs to know
            save_heads(self.store.heads_file(task, model), heads[model.name], keys[model.name], about)
        self.workload.phase(self.workload.heads(task))
        return heads

    def _predictions(self, task: Task, heads: dict[str, list[Trained]], condition: Condition) -> dict[str, list[Row]]:
        """What every model's heads answer under a condition, from the files where these are up to date."""
        probe = self._probe(task)
        reads = (probe.pooled, probe.pooled_test)
        keys = {m.name: self.store.predictions_key(m, task, condition, *reads) for m in self.models}
        files = {m.name: self.store.rows_file(task, m.name, condition) for m in self.models}
        found = {name: rows for name, key in keys.items() if (rows := read_rows(files[name], key)) is not None}
        missing = [model for model in self.models if model.name not in found]
        features = self._extract(missing, task, "test", condition, probe.pooled_test) if missing else {}
        for model in missing:
            found[model.name] = probe.predict(heads[model.name], features[model.name])
            write_rows(files[model.name], found[model.name], keys[model.name])
            if not probe.pooled_test:  # every frame of every condition would fill the disk, and is not needed again
                del features[model.name]
                shutil.rmtree(self.store.stream(model, task, "test", condition, probe.pooled_test).folder)
        return {model.name: found[model.name] for model in self.models}

    # Enhancement and audio

    def _enhancement(self, task: Task, conditions: Sequence[Condition]) -> dict[str, ByCondition]:
        able = [model for model in self.models if model.can_enhance]
        installed = available_quality()
        wanted = [name for name in task.config.measures or installed if name in installed]
        if lost := [name for name in task.config.measures or () if name not in installed]:
            self.notes.append(f"{task.name}: {', '.join(lost)} left out, because the package is not installed here.")
            logger.warning("%s", self.notes[-1])
        if len(able) < len(self.models):
            without = ", ".join(model.name for model in self.models if not model.can_enhance)
            self.notes.append(f"{task.name}: {without} cannot enhance speech and take no part.")
        candidates: dict[str, EvaluatedModel | None] = {UNPROCESSED: None, **{model.name: model for model in able}}
        scored: dict[str, ByCondition] = {name: {} for name in candidates}
        for condition in conditions:
            keys = {name: self.store.enhancement_key(m, task, condition, wanted) for name, m in candidates.items()}
            rows = {name: read_rows(self.store.rows_file(task, name, condition), keys[name]) for name in candidates}
            plan = self._plan(task.test)
            todo = [model for model in able if rows[model.name] is None]
            if todo or rows[UNPROCESSED] is None:
                new = enhance_and_score(
                    todo, task, self.stage, condition, plan, wanted, self.device, self.workload.tick
                )
                for name, values in new.items():
                    write_rows(self.store.rows_file(task, name, condition), values, keys[name])
                    rows[name] = values
            self.workload.phase(len(plan.shards))
            for name in candidates:
                scored[name][condition.name] = score_enhancement(rows[name] or [], wanted)
        return scored

    # Similarity without labels: told while the states of the test part are computed

    def _similarity(self, task: Task, models: Sequence[EvaluatedModel]) -> dict[str, list[Row]]:
        """Cosine and CKA of clean and contaminated states, by model: a row per contaminated condition."""
        contaminated = [c for c in self.stage.conditions if c.kind != "clean"] if self.settings.similarity else []
        found: dict[str, list[Row]] = {model.name: [] for model in models if contaminated}
        for condition in contaminated:
            lacking = self.label_free.lacking(models, task, condition)
            if lacking and task.config.has_heads:
                self._extract(lacking, task, "test", condition, True)
            elif lacking:  # there are no features of the whole test part to compute beside it
                numbers = self.label_free.utterances(task)
                self._compute(lacking, [], lacking, task, "test", condition, True, numbers)
            for model in models:
                found[model.name] += self.label_free.rows(model, task, condition) or []
            self.workload.phase(len(models))
        return found

    def _audio(self, task: Task) -> list[dict[str, Any]]:
        """Write a few utterances as they sound under every condition."""
        clips = []
        for example in _spread(task.test, self.settings.save_audio):
            clean, lengths = self.stage.load([example], task)
            answer = " ".join(example.target) if task.config.kind in ("classification", "slots") else ""
            for condition in self.stage.conditions:
                wave = self.stage.contaminate(clean, lengths, condition, task, "test", [example])[0].numpy()
                place = self.store.audio_file(task, example, condition)
                write_audio(self.out / place, wave * np.float32(min(1.0, 0.95 / max(1e-9, np.abs(wave).max()))))
                about = {"utterance": example.id, "condition": condition.name}
                clips.append({**about, "file": place.as_posix(), "answer": answer})
        return clips

    def _require_space(self) -> None:
        needed = 0.0
        for task in (task for folds in self.tasks for task in folds if task.config.has_heads):
            numbers = 0.0  # bytes for every number of a frame's states
            probe = self._probe(task)
            for part in ("train", "valid", "test"):
                if probe.pooled_test if part == "test" else probe.pooled:
                    numbers += 4 * len(task.part(part)) * (len(self.stage.conditions) if part == "test" else 1)
                else:  # one condition of the test part at a time
                    numbers += 2 * 50 * sum(example.recording.seconds for example in task.part(part))
            needed += sum(numbers * np.prod(model.shape) for model in self.models)
        require_space(self.out, needed)


def _head_summary(model: ReportedModel, trained: Trained) -> dict[str, Any]:
    """How the first head of (the first training of) a model was chosen."""
    return {
        "model": model.name, "states": list(model.members[0].state_names),
        "weights": [round(weight, 4) for weight in trained.state["mix.weights"].softmax(0).tolist()],
        "learning_rate": trained.learning_rate, "weight_decay": trained.weight_decay, "validation": trained.validation,
    }  # fmt: skip


def _place(example: Example) -> tuple[str, str, float]:
    return example.id, example.recording.path, example.recording.start


def _spread(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` examples of different answers, where there are so many, in an order that never changes."""
    chosen: dict[tuple[str, ...], Example] = {}
    for example in examples:
        chosen.setdefault(example.target or (example.id,), example)
    return list(chosen.values())[:count]
