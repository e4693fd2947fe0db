"""A downstream task: which utterances, which answers, which of them train the head, select it and test it.

A task file is YAML:

    name: intents
    kind: slots                          # classification | slots | ctc | verification | enhancement
    slots: [action, object, location]    # all of them right = correct
    source: fluent_speech_commands:data/fluent_speech_commands   # or a manifest, or a folder
    train: {where: {split: train}}
    valid: {where: {split: valid}}       # or {hold_out: 0.15}: that share of the training speakers
    test:  {where: {split: test}}

Every split may name a `source` and `root` of its own. Relative paths start at the task file, or else at the working folder.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..audio.manifest import Recording
from ..errors import UserError, closest
from ..files import digest
from ..randomness import fraction
from .fairness import check_answers, check_overlap, remark_speakers
from .options import Options, load_options
from .phones import FOLDINGS
from .sources import fingerprint, matches, read_source, value_of

Kind = Literal["classification", "slots", "ctc", "verification", "enhancement"]
PARTS = ("train", "valid", "test")


class SplitConfig(Options):
    """Where the utterances of one split are."""

    source: str | None = None  # None: the task's
    root: str | None = None
    where: dict[str, Any] = Field(default_factory=dict)  # field: value, or field: [values]; all must hold
    hold_out: Annotated[float, Field(gt=0, lt=1)] | None = None  # valid only: this share of the training speakers
    limit: Annotated[int, Field(ge=1)] | None = None  # at most so many, balanced over labels, always the same ones


class TaskConfig(Options):
    """A task file."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    title: str | None = None
    kind: Kind
    source: str | None = None
    root: str | None = None
    label: str = "label"  # classification: the field with the class; dots enter nested fields
    slots: tuple[str, ...] = ()  # slots: one field each; a single field that holds a mapping stands for all its keys
    speaker: str = "speaker"  # the field that says who speaks: splits must not share it, and statistics resample it
    text: str = "text"  # ctc: a string, a list of units, or a list of [start, end, unit]
    units: Literal["characters", "phones"] = "characters"
    fold: str | None = None  # ctc: a named folding of phones, such as timit39
    folds: str | None = None  # cross-validation: every value of this field is the test part once, the others train
    train: SplitConfig = SplitConfig(where={"split": "train"})
    valid: SplitConfig = SplitConfig(where={"split": "valid"})
    test: SplitConfig = SplitConfig(where={"split": "test"})
    level_dbfs: Annotated[float, Field(ge=-60, le=-10)] | None = None  # RMS level every utterance is brought to
    min_seconds: Annotated[float, Field(ge=0.1)] = 0.1
    max_seconds: Annotated[float, Field(gt=0.1)] = 29.0  # longer utterances are cut
    measures: tuple[Literal["si_sdr", "stoi", "pesq", "dnsmos"], ...] | None = None  # enhancement; None: all installed
    trials: Annotated[int, Field(ge=10)] = (
        20_000  # verification: pairs compared, half of them of one speaker if possible
    )

    @model_validator(mode="after")
    def _check(self) -> TaskConfig:
        if self.kind == "slots" and not self.slots:
            raise ValueError("a task of kind slots must list its slots")
        if self.fold is not None and self.fold not in FOLDINGS:
            raise ValueError(f"fold must be one of {', '.join(FOLDINGS)}")
        if self.train.hold_out or self.test.hold_out:
            raise ValueError("hold_out belongs to valid")
        if self.folds and self.kind not in ("classification", "slots", "ctc"):
            raise ValueError(f"a task of kind {self.kind} has no folds")
        return self

    @property
    def speakers_are_classes(self) -> bool:
        """Closed-set speaker identification: the one task whose test speakers must be known from training."""
        return self.kind == "classification" and self.label == "speaker"


@dataclass(frozen=True)
class Example:
    """One utterance with its answer: a class per slot, the units of a transcript, or nothing (enhancement)."""

    recording: Recording
    target: tuple[str, ...]

    @property
    def id(self) -> str:
        return self.recording.id

    @property
    def cluster(self) -> str:
        """The unit that statistics resample: the speaker, or the utterance itself where no speaker is known."""
        return self.recording.speaker or f"utterance {self.id}"


@dataclass(frozen=True)
class Task:
    """A loaded and checked task. `classes` has the sorted answers of training per slot (ctc: one list of all units)."""

    config: TaskConfig
    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    test: tuple[Example, ...]
    slots: tuple[str, ...] = ()
    classes: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)
    fold_of: str | None = None  # the task file that this is one fold of

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def report_name(self) -> str:
        """The name in the report, where all folds of a task are one."""
        return self.fold_of or self.name

    @property
    def title(self) -> str:
        return self.config.title or self.report_name

    def part(self, name: str) -> tuple[Example, ...]:
        return getattr(self, name)  # type: ignore[no-any-return]

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """A digest of the audio of each part: what the features of that part depend on, besides model and condition."""
        shape = [self.config.level_dbfs, self.config.max_seconds]
        return {name: digest([shape, fingerprint(e.recording for e in self.part(name))]) for name in PARTS}


def load_task(path: str | Path, allow_overlap: bool = False, cache: Path | None = None) -> Task:
    """Read a task file with its manifests and check it.

    allow_overlap: turn the refusal of speakers or files that training and test share into a note of the task
    cache: a folder that keeps the scans of corpora
    Raises `UserError` for a missing file, an utterance without its field, a split without utterances, one class only,
    a label that training never had, and an overlap of the splits.
    """
    return build_task(*_read_config(path), allow_overlap, cache)


def _read_config(path: str | Path) -> tuple[TaskConfig, Path]:
    file = Path(path)
    if not os.path.isfile(file):
        known = [str(p) for p in sorted(file.parent.glob("*.yaml"))] if os.path.isdir(file.parent) else []
        raise UserError(f"There is no task file {path}.{closest(str(path), known)} Give the path of a YAML task file.")
    return load_options(file, TaskConfig, "task"), file.parent


def load_folds(task: str | Path | TaskConfig, allow_overlap: bool = False, cache: Path | None = None) -> list[Task]:
    """The tasks behind a task file (or its values): one, or one per value of its `folds`, called ``name-value``."""
    config, folder = (task, Path()) if isinstance(task, TaskConfig) else _read_config(task)
    if config.folds is None:
        return [build_task(config, folder, allow_overlap, cache)]
    # Without folds, `where` picks the split; here the fold does.
    base = {name: getattr(config, name) if name in config.model_fields_set else SplitConfig() for name in PARTS}
    if "valid" not in config.model_fields_set:
        base["valid"] = SplitConfig(hold_out=0.2)
    whole = _select(config.model_copy(update={"train": base["train"]}), "train", _cached_reader(folder, cache))
    values = sorted({str(value) for r in whole if (value := value_of(r, config.folds)) is not None})
    if len(values) < 2:
        raise UserError(
            f"The field '{config.folds}' of the task {config.name} has fewer than two values: no folds can be made."
        )
    tasks = []
    for value in values:
        others = [other for other in values if other != value]
        wheres = {"train": others, "valid": others, "test": value}
        parts = {
            name: part.model_copy(update={"where": {**part.where, config.folds: wheres[name]}})
            for name, part in base.items()
        }
        fold = config.model_copy(update={"name": f"{config.name}-{value}", "folds": None, **parts})
        tasks.append(replace(build_task(fold, folder, allow_overlap, cache), fold_of=config.name))
    if len({task.classes for task in tasks}) > 1 and config.kind != "ctc":
        raise UserError(
            f"The folds of the task {config.name} do not have the same answers in training: leave out the rare ones."
        )
    return tasks


def build_task(
    config: TaskConfig, folder: Path = Path(), allow_overlap: bool = False, cache: Path | None = None
) -> Task:
    """`load_task` for values that are already validated; `folder` is where relative paths start."""
    read = _cached_reader(folder, cache)
    parts: dict[str, list[Recording]] = {}
    for name in PARTS:
        if not (name == "train" and config.kind == "enhancement") and not (name == "valid" and _no_valid(config)):
            parts[name] = _select(config, name, read)
    if config.valid.hold_out is not None and config.kind != "enhancement":
        parts["train"], parts["valid"] = _hold_out(parts["train"], config.valid.hold_out, config.speakers_are_classes)
    for name, recordings in parts.items():
        if not recordings:
            raise UserError(
                f"The {name} split of the task {config.name} has no utterances: check its source and where."
            )
    slots = _slot_fields(config, parts)
    targets = {name: [Example(r, _target(config, slots, r)) for r in recordings] for name, recordings in parts.items()}
    limited = {name: _limit(examples, getattr(config, name).limit) for name, examples in targets.items()}
    classes = _classes(config, limited.get("train", []), len(slots))
    train, valid, test = (tuple(limited.get(name, ())) for name in PARTS)
    task = Task(config, train, valid, test, tuple(name.rpartition(".")[2] for name in slots), classes)
    notes = [*check_answers(task), *check_overlap(task, allow_overlap), *remark_speakers(task)]
    return replace(task, notes=tuple(notes))


def _no_valid(config: TaskConfig) -> bool:
    return config.valid.hold_out is not None or config.kind == "enhancement"


def _cached_reader(folder: Path, cache: Path | None) -> Callable[[str, str | None], list[Recording]]:
    known: dict[tuple[str, str | None], list[Recording]] = {}

    def read(source: str, root: str | None) -> list[Recording]:
        key = (source, root)
        if key not in known:
            known[key] = read_source(source, "speech", folder, root, cache)
        return known[key]

    return read


def _select(config: TaskConfig, name: str, read: Callable[[str, str | None], list[Recording]]) -> list[Recording]:
    split: SplitConfig = getattr(config, name)
    source = split.source or config.source
    if source is None:
        raise UserError(f"The task {config.name} names no source for its {name} split: add 'source' to the task file.")
    # A split with its own source is that whole source unless it says otherwise.
    where = {} if split.source and "where" not in split.model_fields_set else split.where
    recordings = read(source, split.root or config.root)
    for field_name in where:
        if recordings and all(value_of(r, field_name) is None for r in recordings):
            raise UserError(
                f"No utterance of {source} has the field '{field_name}' that the {name} split of the task {config.name} "
                "filters by: correct 'where'."
            )
    kept = [r for r in recordings if matches(r, where) and r.seconds >= config.min_seconds]
    return [_shaped(r, config) for r in kept]


def _shaped(recording: Recording, config: TaskConfig) -> Recording:
    """Not longer than allowed, and with the task's idea of who speaks."""
    speaker = value_of(recording, config.speaker)
    seconds = min(recording.seconds, config.max_seconds)
    return replace(recording, seconds=seconds, speaker=None if speaker is None else str(speaker))


def _hold_out(recordings: list[Recording], share: float, by_utterance: bool) -> tuple[list[Recording], list[Recording]]:
    """Give `share` of the training speakers (or utterances) to validation: always the same ones, at least one."""

    def unit(recording: Recording) -> str:
        return f"utterance {recording.id}" if by_utterance or not recording.speaker else recording.speaker

    units = sorted({unit(r) for r in recordings}, key=lambda u: fraction("hold out", u))
    if len(units) < 2:
        raise UserError("hold_out needs at least two training speakers: name a validation source instead.")
    held = set(units[: max(1, round(share * len(units)))])
    return [r for r in recordings if unit(r) not in held], [r for r in recordings if unit(r) in held]


def _slot_fields(config: TaskConfig, parts: dict[str, list[Recording]]) -> tuple[str, ...]:
    if config.kind == "classification":
        return (config.label,)
    if config.kind == "verification":
        return ("speaker",)
    if config.kind != "slots":
        return ()
    if len(config.slots) == 1:
        inner = [value_of(r, config.slots[0]) for r in parts["train"]]
        if inner and all(isinstance(value, dict) for value in inner):
            keys = sorted({key for value in inner for key in value})
            return tuple(f"{config.slots[0]}.{key}" for key in keys)
    return config.slots


def _target(config: TaskConfig, slots: Sequence[str], recording: Recording) -> tuple[str, ...]:
    if config.kind == "enhancement":
        return ()
    if config.kind == "ctc":
        return _units(config, recording)
    answers = []
    for name in slots:
        value = value_of(recording, name)
        if value is None and config.kind != "slots":
            raise UserError(
                f"Utterance {recording.id} of the task {config.name} has no field '{name}': add it to the manifest, or "
                "leave the utterance out with 'where'."
            )
        answers.append("none" if value is None else str(value))
    return tuple(answers)


def _units(config: TaskConfig, recording: Recording) -> tuple[str, ...]:
    value = value_of(recording, config.text)
    if value is None:
        raise UserError(
            f"Utterance {recording.id} of the task {config.name} has no field '{config.text}': correct 'text' in the task file."
        )
    if isinstance(value, str):
        if config.units == "characters":
            return tuple(" ".join(re.sub(r"[^\w' ]+|_", " ", value.lower()).split()))
        value = value.split()
    units = [str(item[2] if isinstance(item, list | tuple) else item) for item in value]
    folding = FOLDINGS[config.fold] if config.fold else {}
    folded = [folding.get(unit, unit) for unit in units]
    return tuple(unit for unit in folded if unit)


def _limit(examples: list[Example], limit: int | None) -> list[Example]:
    """At most `limit` examples, taken in turn from every answer in an order that depends on ids alone."""
    if limit is None or len(examples) <= limit:
        return examples
    groups: dict[tuple[str, ...], list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda e: fraction("limit", e.id)):
        groups[example.target[:1]].append(example)
    ranked = sorted((rank, key, e.id) for key, group in groups.items() for rank, e in enumerate(group))
    kept = {name for _, _, name in ranked[:limit]}
    return [e for e in examples if e.id in kept]


def _classes(config: TaskConfig, train: list[Example], slots: int) -> tuple[tuple[str, ...], ...]:
    if config.kind == "ctc":
        return (tuple(sorted({unit for e in train for unit in e.target})),)
    return tuple(tuple(sorted({e.target[k] for e in train})) for k in range(slots))
