"""The benchmark: tasks × conditions × models, in one call that can be interrupted and repeated.

    results/
      features/<digest>/        averaged features, one stream per model, part of a task and condition (reused)
      heads/<task>/<model>.safetensors           the heads of all seeds
      predictions/<task>/<model>/<condition>.jsonl    what every head answered to every utterance
      audio/<task>/<utterance>/<condition>.wav   what the conditions sound like
      benchmark.json            everything that the report shows; results.jsonl and results.csv hold its figures

The same call gives the same numbers; work that is already there, for exactly these inputs, is not done again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from .. import __version__
from ..audio.io import write_audio
from ..errors import UserError, closest
from ..files import digest, read_json, write_json
from .checks import check_heard
from .conditions import CLEAN, Condition, load_conditions
from .enhancement import UNPROCESSED, enhance_and_score, score_enhancement
from .features import FeatureModel, Features, Plan, Stream, extract, make_plan, require_space
from .heads import HeadConfig, Trained
from .metrics import METRICS, Scores, TrialScores, available_quality, join_scores
from .probes import Confusions, Probe, load_heads, make_probe, save_heads
from .ranks import Ranks, families
from .results import AVERAGES, Figure, averaged, figures
from .rows import Row, file_name, read_rows, write_rows
from .similarity import similarities
from .stage import TRAINING, Stage
from .statistics import Bootstrap
from .subjects import Subject, open_subjects
from .tables import write_tables
from .tasks import Example, Task, TaskConfig, build_task, load_folds

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
UNLABELLED = "speech"  # the name of the task that is none: only the label-free score


@dataclass(frozen=True)
class Settings:
    """What a benchmark depends on besides its models, tasks and conditions."""

    train_on: Literal["clean", "contaminated"] = "clean"  # what the heads hear: the paper trains them on clean speech
    seeds: int = 3  # heads per model and task
    seed: int = 0
    replicates: int = (
        10_000  # of the bootstrap; corrected for a hundred comparisons, fewer could not show a p below 0.05
    )
    similarity: int = 48  # utterances per task behind the label-free score; 0: leave it out
    save_audio: int = 1  # utterances per task that are written out under every condition
    batch_seconds: float = 48.0
    heads: HeadConfig = field(default_factory=HeadConfig)


def evaluate(
    models: Sequence[str | FeatureModel],
    tasks: Sequence[str | Path | TaskConfig] = (),
    conditions: str | Path = "quick",
    out: str | Path = "results",
    *,
    noise: Sequence[str] = (),
    rooms: Sequence[str] = (),
    speech: str | None = None,
    reference: str | None = None,
    predictions: bool = False,
    allow_overlap: bool = False,
    device: str | None = None,
    settings: Settings = Settings(),
    progress: Progress | None = None,
    ranks: Ranks = Ranks(),
) -> dict[str, Any]:
    """Measure every model on every task under every condition; returns (and writes to `out`) the whole result.

    models: ``log-mel``, ``mfcc``, student folders, teacher folders or hub names, each optionally as ``name=model``; or
        objects that are a `FeatureModel`
    tasks: task files or `TaskConfig` values; without any, `speech` (a source) is enough for the label-free score
    conditions: a conditions file, or ``paper`` or ``quick``
    noise, rooms: sources for the recorded noise and the measured rooms of that file
    reference: the model that the others are compared with; by default the first
    predictions: show the students' predictions of their teacher's layers to the heads as well
    allow_overlap: report, instead of refusing, what training and test share
    ranks: ``Ranks.launched()`` in each of several processes that share the work

    Raises `UserError`, before any work is done, for whatever cannot be measured or would not be a fair test.
    """
    config, folder = load_conditions(conditions)
    scans = Path(out) / "sources"
    with ranks.first():
        stage = Stage(config, folder, noise, rooms, allow_overlap, scans)
        loaded = [load_folds(task, allow_overlap, scans) for task in tasks]
        names = [folds[0].report_name for folds in loaded]
        if len(set(names)) < len(names):
            raise UserError("Two tasks have the same name: change the name in one of the task files.")
        if speech is not None:
            loaded.append([_unlabelled(speech, scans)])
    if not loaded:
        raise UserError("There is nothing to evaluate on: name a task, or speech for the label-free score.")
    place = torch.device(device or (f"cuda:{ranks.local}" if torch.cuda.is_available() else "cpu"))
    subjects = open_subjects(models, predictions, place)
    known = [subject.name for subject in subjects]
    if reference is not None and reference not in known:
        raise UserError(
            f"The reference {reference} is none of the models {', '.join(known)}.{closest(reference, known)}"
        )
    notes = [*stage.notes, *check_heard(subjects, [t for folds in loaded for t in folds], stage, allow_overlap)]
    for task in (t for folds in loaded for t in folds):
        notes += [note if task.name in note else f"{task.report_name}: {note}" for note in task.notes]
    notes = list(dict.fromkeys(notes))
    for note in notes:
        logger.warning("%s", note)
    benchmark = _Benchmark(subjects, loaded, stage, Path(out), place, reference or known[0], settings, notes, progress)
    return benchmark.run(ranks)


def _unlabelled(source: str, scans: Path) -> Task:
    config = TaskConfig.model_validate(
        {
            "name": UNLABELLED,
            "title": "Unlabelled speech",
            "kind": "enhancement",
            "source": source,
            "test": {"where": {}},
        }
    )
    return build_task(config, allow_overlap=True, cache=scans)


class _Benchmark:
    """One run. `work` counts shards and heads for the progress callback."""

    def __init__(
        self, subjects: list[Subject], tasks: list[list[Task]], stage: Stage, out: Path, device: torch.device, reference: str,
        settings: Settings, notes: list[str], progress: Progress | None,
    ):  # fmt: skip
        self.subjects, self.tasks, self.stage, self.out, self.device = subjects, tasks, stage, out, device
        self.reference, self.settings, self.notes, self.progress = reference, settings, notes, progress
        self.done = self.total = self.begun = 0

    def run(self, ranks: Ranks) -> dict[str, Any]:
        """Everything; with several processes the first one finds most of it done."""
        self._require_space()
        self.total = self._work()
        if ranks.world > 1:
            self._do_part(ranks)
        if not ranks.rank:
            result = self._gather()
        ranks.wait()
        return read_json(self.out / "benchmark.json") if ranks.rank else result  # type: ignore[no-any-return]

    def _do_part(self, ranks: Ranks) -> None:
        """This process's part of the features, heads, answers and scores, left where `_gather` looks for them."""
        notes, groups = [*self.notes], families([fold for folds in self.tasks for fold in folds])
        for last in (False, True):
            for number, task in ((k, task) for k, family in enumerate(groups) for task in family):
                subjects = ranks.share(self.subjects, number)
                conditions = ranks.share(self.stage.conditions, number)
                if task.config.kind == "enhancement":
                    if last and task.name != UNLABELLED:
                        self._enhancement(task, conditions)
                else:
                    probe = self._probe(task)
                    heads = self._heads(task, probe, self.subjects if last else subjects)
                    for condition in conditions if last else ():
                        self._predictions(task, probe, heads, condition)
            ranks.wait()
        # Only of the first fold of a task, as in `_task`; after the wait, since it shares no file with the rest.
        for number, folds in enumerate(self.tasks):
            self._similarity(folds[0], ranks.share(self.subjects, number))
        ranks.wait()
        self.notes, self.begun = notes, 0

    def _gather(self) -> dict[str, Any]:
        """All tasks measured, from what is there already as far as it goes, and written down."""
        tasks = []
        for folds in self.tasks:
            logger.info("task %s", folds[0].report_name)
            tasks.append(self._task(folds))
        result = {
            "format": 1,
            "version": __version__,
            "conditions_name": self.stage.config.name,
            "settings": {**asdict(self.settings), "reference": self.reference},
            "models": [self._about(subject) for subject in self.subjects],
            "conditions": [condition.to_dict() for condition in self.stage.conditions],
            "averages": {name: {"title": AVERAGES[name], "members": members}
                         for name, members in averaged(self.stage.conditions).items()},
            "tasks": tasks,
            "notes": self.notes,
        }  # fmt: skip
        write_json(self.out / "benchmark.json", result)
        write_tables(self.out, result)
        return result

    def _about(self, subject: Subject) -> dict[str, Any]:
        about = {name: getattr(subject, name) for name in ("name", "source", "kind", "num_parameters", "digest")}
        return {**about, "states": list(subject.state_names)}

    # One task

    def _task(self, folds: list[Task]) -> dict[str, Any]:
        """Everything about one task; the answers of its folds are scored together."""
        task = folds[0]
        told: dict[str, Any] = {
            "name": task.report_name,
            "title": task.title,
            "kind": task.config.kind,
            "folds": len(folds),
            "slots": list(task.slots),
            "classes": [list(classes) for classes in task.classes] if task.config.kind != "ctc" else [],
            "utterances": {
                "train": len(task.train), "valid": len(task.valid), "test": sum(len(fold.test) for fold in folds)
            },
            "speakers": len({e.recording.speaker for fold in folds for e in fold.test} - {None}),
            "metrics": [],
            "figures": [],
            "heads": [],
            "confusion": [],
        }  # fmt: skip
        if task.config.kind == "enhancement":
            if task.name != UNLABELLED:
                self._figures(told, folds, self._enhancement(task, self.stage.conditions))
        else:
            scored: dict[str, dict[str, list[Scores | TrialScores]]] = {subject.name: {} for subject in self.subjects}
            taken = Confusions(task)
            for fold in folds:
                probe = self._probe(fold)
                heads = self._heads(fold, probe, self.subjects)
                for condition in self.stage.conditions:
                    for name, rows in self._predictions(fold, probe, heads, condition).items():
                        before = scored[name].get(condition.name)
                        scores = probe.score(rows)
                        scored[name][condition.name] = join_scores(before, scores) if before else scores
                        taken.add(name, condition, rows)
                    self._phase(len(self._plan(fold.test).shards))
                told["heads"] = told["heads"] or [self._head_report(s, heads[s.name][0]) for s in self.subjects]
            self._figures(told, folds, scored)
            told["confusion"] = taken.to_list()
        told["similarity"] = self._similarity(task, self.subjects)
        told["audio"] = self._audio(task)
        return told

    def _probe(self, task: Task) -> Probe:
        return make_probe(task, self._head_config(), self.settings.seed, self.device)

    def _head_config(self) -> HeadConfig:
        return replace(self.settings.heads, seeds=self.settings.seeds)

    def _figures(
        self, told: dict[str, Any], folds: Sequence[Task], scored: dict[str, dict[str, list[Scores | TrialScores]]]
    ) -> None:
        """Statistics of every metric of a task."""
        clusters = [example.cluster for fold in folds for example in fold.test]
        bootstrap = Bootstrap(clusters, self.settings.replicates, self.settings.seed)
        metrics = list(dict.fromkeys(s.metric.name for by in scored.values() for found in by.values() for s in found))
        reference = self.reference if self.reference in scored else next(iter(scored), None)
        for name in metrics:
            measured = {
                model: {c: s for c, found in by.items() for s in found if s.metric.name == name}
                for model, by in scored.items()
            }
            found: list[Figure] = figures(
                told["name"], METRICS[name], measured, self.stage.conditions, bootstrap, reference
            )
            told["metrics"].append(asdict(METRICS[name]))
            told["figures"] += [figure.to_dict() for figure in found]

    # Features and heads

    def _stream(self, subject: Subject, task: Task, part: str, condition: Condition, pooled: bool) -> Stream:
        key = {
            "model": subject.digest,
            "audio": task.fingerprints[part],
            "condition": self.stage.digest(condition, task, part),
            "pooled": pooled,
            "batch_seconds": self.settings.batch_seconds,
            "version": __version__,
        }
        return Stream(self.out / "features", key, f"{subject.name}, {task.name} {part}, {condition.title}")

    def _extract(
        self, subjects: Sequence[Subject], task: Task, part: str, condition: Condition, pooled: bool
    ) -> dict[str, Features]:
        """The features of some models, computed where they are missing."""
        streams = [self._stream(subject, task, part, condition, pooled) for subject in subjects]
        todo = [k for k, stream in enumerate(streams) if not stream.finished]
        plan = self._plan(task.part(part))
        if todo:
            extract(
                [subjects[k] for k in todo], [streams[k] for k in todo], plan,
                self.stage.render(condition, task, part, task.part(part)), pooled, self.device, self._tick,
            )  # fmt: skip
        return {subject.name: stream.open() for subject, stream in zip(subjects, streams, strict=True)}

    def _plan(self, examples: Sequence[Example]) -> Plan:
        return make_plan([example.recording.seconds for example in examples], self.settings.batch_seconds)

    def _heads(self, task: Task, probe: Probe, subjects: Sequence[Subject]) -> dict[str, list[Trained]]:
        """The heads of some models, trained where there are none for exactly these inputs."""
        condition = CLEAN if self.settings.train_on == "clean" else TRAINING
        files = {s.name: self.out / "heads" / task.name / f"{file_name(s.name)}.safetensors" for s in subjects}
        keys = {s.name: self._head_key(s, task, probe, condition) for s in subjects}
        heads = {name: load_heads(file, keys[name]) for name, file in files.items()}
        missing = [subject for subject in subjects if heads[subject.name] is None]
        parts = {}
        for part in ("train", "valid"):
            parts[part] = self._extract(missing, task, part, condition, probe.pooled) if missing else {}
        for subject in missing:
            logger.info("heads of %s for %s", subject.name, task.name)
            trained = probe.fit(parts["train"][subject.name], parts["valid"][subject.name], self._tick)
            save_heads(files[subject.name], trained, keys[subject.name], self._about_head(subject, task))
            heads[subject.name] = trained
        self._phase(self._head_work(task))
        return {name: found for name, found in heads.items() if found is not None}

    def _about_head(self, subject: Subject, task: Task) -> dict[str, Any]:
        """What an export of the head needs to know."""
        return {
            "task": task.name,
            "kind": task.config.kind,
            "slots": list(task.slots),
            "classes": [list(classes) for classes in task.classes],
            "level_dbfs": task.config.level_dbfs,
            "states": list(subject.state_names),
            "model": subject.digest,
        }

    def _head_key(self, subject: Subject, task: Task, probe: Probe, condition: Condition) -> str:
        streams = [self._stream(subject, task, part, condition, probe.pooled).key for part in ("train", "valid")]
        answers = [[list(e.target) for e in task.part(part)] for part in ("train", "valid")]
        return digest([streams, answers, asdict(self._head_config()), self.settings.seed, type(probe).__name__])

    def _head_report(self, subject: Subject, trained: Trained) -> dict[str, Any]:
        weights = trained.state["mix.weights"].softmax(0).tolist()
        return {
            "model": subject.name,
            "states": list(subject.state_names),
            "weights": [round(weight, 4) for weight in weights],
            "learning_rate": trained.learning_rate,
            "weight_decay": trained.weight_decay,
            "validation": trained.validation,
        }

    # Predictions

    def _predictions(
        self, task: Task, probe: Probe, heads: dict[str, list[Trained]], condition: Condition
    ) -> dict[str, list[Row]]:
        """What every model's heads answer under a condition, from the files where these are up to date."""
        found: dict[str, list[Row]] = {}
        missing = []
        for subject in self.subjects:
            key = digest([self._head_key(subject, task, probe, CLEAN if self.settings.train_on == "clean" else TRAINING),
                          self._stream(subject, task, "test", condition, probe.pooled).key,
                          [list(e.target) for e in task.test], task.config.trials])  # fmt: skip
            rows = read_rows(self._rows_file(task, subject.name, condition), key)
            if rows is None:
                missing.append((subject, key))
            else:
                found[subject.name] = rows
        if not missing:
            return found
        features = self._extract([subject for subject, _ in missing], task, "test", condition, probe.pooled)
        for subject, key in missing:
            rows = probe.predict(heads[subject.name], features[subject.name])
            write_rows(self._rows_file(task, subject.name, condition), rows, key)
            found[subject.name] = rows
            if not probe.pooled:  # every frame of every condition would fill the disk, and is not needed again
                del features[subject.name]
                shutil.rmtree(self._stream(subject, task, "test", condition, probe.pooled).folder)
        return found

    def _rows_file(self, task: Task, model: str, condition: Condition) -> Path:
        return self.out / "predictions" / task.name / file_name(model) / f"{condition.name}.jsonl"

    def _enhancement(
        self, task: Task, conditions: Sequence[Condition]
    ) -> dict[str, dict[str, list[Scores | TrialScores]]]:
        able = [subject for subject in self.subjects if subject.can_enhance]
        wanted = list(task.config.measures or available_quality())
        names = [UNPROCESSED, *(subject.name for subject in able)]
        scored: dict[str, dict[str, list[Scores | TrialScores]]] = {name: {} for name in names}
        if len(able) < len(self.subjects):
            without = ", ".join(s.name for s in self.subjects if not s.can_enhance)
            self.notes.append(f"{task.name}: {without} cannot enhance speech and take no part.")
        for condition in conditions:
            told = [task.fingerprints["test"], self.stage.digest(condition, task, "test"), wanted, __version__]
            keys = {UNPROCESSED: digest(told)} | {s.name: digest([*told, s.digest]) for s in able}
            rows = {name: read_rows(self._rows_file(task, name, condition), keys[name]) for name in names}
            plan = self._plan(task.test)
            todo = [subject for subject in able if rows[subject.name] is None]
            if todo or rows[UNPROCESSED] is None:
                new = enhance_and_score(todo, task, self.stage, condition, plan, wanted, self.device, self._tick)
                for name, values in new.items():
                    write_rows(self._rows_file(task, name, condition), values, keys[name])
                    rows[name] = values
            self._phase(len(plan.shards))
            for name in names:
                scored[name][condition.name] = score_enhancement(rows[name] or [], wanted)
        return scored

    # Without labels, and to hear

    def _similarity(self, task: Task, subjects: Sequence[Subject]) -> list[dict[str, Any]]:
        """Cosine and CKA of clean and contaminated features per state, on some of the test utterances."""
        count = min(self.settings.similarity, len(task.test))
        contaminated = [c for c in self.stage.conditions if c.kind != "clean"]
        if not count or not contaminated:
            return []
        # Every k-th utterance, so that all speakers of a sorted list are heard.
        examples = [task.test[int(i * len(task.test) / count)] for i in range(count)]
        told = [task.fingerprints["test"], [e.id for e in examples], self.settings.batch_seconds, __version__]
        told.append([self.stage.digest(c, task, "test") for c in contaminated])
        found = []
        for subject in subjects:
            file = self.out / "similarity" / f"{task.name}-{file_name(subject.name)}.jsonl"
            key = digest([told, subject.digest])
            rows = read_rows(file, key)
            if rows is None:
                rows = similarities(
                    subject, self.stage, task, examples, self._plan(examples), contaminated, self.device
                )
                write_rows(file, rows, key)
            self._phase(len(contaminated))
            found += [{"model": subject.name, **row} for row in rows]
        return found

    def _audio(self, task: Task) -> list[dict[str, Any]]:
        """Write a few utterances as they sound under every condition."""
        clips = []
        for example in _spread(task.test, self.settings.save_audio):
            clean, lengths = self.stage.load([example], task)
            for condition in self.stage.conditions:
                wave = self.stage.contaminate(clean, lengths, condition, task, "test", [example])[0].numpy()
                place = Path("audio") / task.name / file_name(example.id) / f"{condition.name}.wav"
                write_audio(self.out / place, wave * np.float32(min(1.0, 0.95 / max(1e-9, np.abs(wave).max()))))
                answer = " ".join(example.target) if task.config.kind in ("classification", "slots") else ""
                clip = {
                    "utterance": example.id,
                    "condition": condition.name,
                    "file": place.as_posix(),
                    "answer": answer,
                }
                clips.append(clip)
        return clips

    # Progress and space

    def _tick(self, units: int = 1) -> None:
        self.done = min(self.done + units, self.total)
        if self.progress:
            self.progress(self.done, self.total)

    def _phase(self, units: int) -> None:
        """The end of a phase that was announced as `units`, however much of it was there already."""
        self.begun += units
        self._tick(max(0, self.begun - self.done))

    def _head_work(self, task: Task) -> int:
        if task.config.kind == "enhancement":
            return 0
        tried = len(self.settings.heads.learning_rates) * len(self.settings.heads.weight_decays)
        shards = sum(len(self._plan(task.part(part)).shards) for part in ("train", "valid"))
        return shards + len(self.subjects) * (tried + self.settings.seeds - 1)

    def _work(self) -> int:
        total = 0
        conditions = self.stage.conditions
        for task in (task for folds in self.tasks for task in folds):
            test = len(self._plan(task.test).shards) * len(conditions)
            total += test
            total += self._head_work(task)
        if self.settings.similarity:
            total += len(self.tasks) * len(self.subjects) * sum(c.kind != "clean" for c in conditions)
        return max(1, total)

    def _require_space(self) -> None:
        needed = 0.0
        for task in (task for folds in self.tasks for task in folds):
            if task.config.kind == "enhancement":
                continue
            per_subject = 0.0
            for part in ("train", "valid", "test"):
                seconds = sum(example.recording.seconds for example in task.part(part))
                if task.config.kind == "ctc":
                    per_subject += 50 * seconds * 2  # one condition of the test part at a time
                else:
                    per_subject += 4 * len(task.part(part)) * (len(self.stage.conditions) if part == "test" else 1)
            needed += sum(per_subject * np.prod(subject.shape) for subject in self.subjects)
        require_space(self.out, needed)


def _spread(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` examples of different answers, where there are so many, in an order that never changes."""
    chosen: dict[tuple[str, ...], Example] = {}
    for example in examples:
        chosen.setdefault(example.target or (example.id,), example)
    return list(chosen.values())[:count]
