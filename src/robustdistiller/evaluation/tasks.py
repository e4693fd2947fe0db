"""A downstream task: which utterances, which answers, which of them train the head, select it and test it.

A task file is YAML:

    name: intents
    kind: slots                          # or classification, frames, ctc, verification, detection, enhancement, unlabelled
    slots: [action, object, location]    # all of them right = correct
    source: fluent_speech_commands:data/fluent_speech_commands   # or a manifest, or a folder
    train: {where: {split: train}}
    valid: {where: {split: valid}}       # or {hold_out: 0.15}: that share of the training speakers
    test:  {where: {split: test}}

Every split may name a `source` and `root` of its own. Relative paths start at the task file, or else at the working folder.
"""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..audio.io import SAMPLE_RATE
from ..audio.manifest import Recording
from ..errors import UserError, closest
from ..files import read_mapping, unique_name
from ..models.frames import GRID
from ..randomness import fraction
from ..schema import validated
from .fairness import check_answers, check_overlap, remark_speakers
from .phones import FOLDINGS
from .scenes import STRETCH_SECONDS, UNKNOWN, deal, keyword_scenes, stretches
from .sources import matches, read_source, value_of
from .task_file import PARTS, Example, SplitConfig, Task, TaskConfig

__all__ = ["Example", "SplitConfig", "Task", "TaskConfig", "build_task", "families", "load_folds", "load_task"]


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
    return validated(TaskConfig, read_mapping(file, "task"), f"the task {file}"), file.parent


def load_folds(task: str | Path | TaskConfig, allow_overlap: bool = False, cache: Path | None = None) -> list[Task]:
    """The tasks behind a task file (or its values): one, or one per fold, called ``name-0``, … or ``name-value``.

    With ``folds: N`` the speakers are dealt into N folds, always the same ones; an utterance without a speaker counts as one.
    Every utterance is tested once, by heads that never had its speaker.
    """
    config, folder = (task, Path()) if isinstance(task, TaskConfig) else _read_config(task)
    if config.folds is None:
        return [build_task(config, folder, allow_overlap, cache)]
    # Without folds, `where` picks the split; here the fold does.
    base = {name: getattr(config, name) if name in config.model_fields_set else SplitConfig() for name in PARTS}
    if "valid" not in config.model_fields_set:
        base["valid"] = SplitConfig(hold_out=0.2)
    read = _cached_reader(folder, cache)
    parts = {name: _select(config.model_copy(update={name: part}), name, read)
             for name, part in base.items() if part.hold_out is None}  # fmt: skip
    fold_of = _folding(config, [r for recordings in parts.values() for r in recordings])
    values = sorted({fold_of(r) for r in parts["test"]} - {None}, key=str)
    if len(values) < 2:
        raise UserError(f"'folds' of the task {config.name} makes fewer than two test parts: name another field.")
    tasks = []
    for value in values:
        own = {name: [r for r in part if (fold_of(r) == value) is (name == "test") and fold_of(r) is not None]
               for name, part in parts.items()}  # fmt: skip
        fold = config.model_copy(update={"name": f"{config.name}-{unique_name(str(value))}", "folds": None, **base})
        tasks.append(replace(_assemble(fold, own, allow_overlap), fold_of=config.name))
    if len({task.classes for task in tasks}) > 1 and config.kind in ("classification", "slots"):
        raise UserError(f"The folds of {config.name} have different answers in training: leave out the rare ones.")
    return tasks


def _folding(config: TaskConfig, recordings: Sequence[Recording]) -> Callable[[Recording], str | int | None]:
    """Which fold an utterance belongs to; None: to no test part."""
    if isinstance(config.folds, str):
        field = config.folds
        return lambda recording: None if (value := value_of(recording, field)) is None else str(value)
    count = config.folds or 1
    speakers = sorted({_speaker(r) for r in recordings}, key=lambda speaker: fraction("fold", speaker))
    if len(speakers) < count:
        raise UserError(f"The task {config.name} has {len(speakers)} speakers for {count} folds: ask for fewer.")
    number = {speaker: k % count for k, speaker in enumerate(speakers)}
    return lambda recording: number[_speaker(recording)]


def _speaker(recording: Recording) -> str:
    return recording.speaker or f"utterance {recording.id}"


def build_task(
    config: TaskConfig, folder: Path = Path(), allow_overlap: bool = False, cache: Path | None = None
) -> Task:
    """`load_task` for values that are already validated; `folder` is where relative paths start."""
    read = _cached_reader(folder, cache)
    parts: dict[str, list[Recording]] = {}
    for name in PARTS:
        if name == "test" or (config.has_heads and getattr(config, name).hold_out is None):
            parts[name] = _select(config, name, read)
    return _assemble(config, parts, allow_overlap, _select(config, "negatives", read) if config.negatives else ())


def _assemble(
    config: TaskConfig, parts: dict[str, list[Recording]], allow_overlap: bool, negatives: Sequence[Recording] = ()
) -> Task:
    """The task with these recordings in its parts, checked."""
    if config.valid.hold_out is not None and config.has_heads:
        parts["train"], parts["valid"] = _hold_out(parts["train"], config.valid.hold_out, config.speakers_are_classes)
    for name, recordings in parts.items():
        if not recordings:
            raise UserError(f"The {name} split of the task {config.name} has no utterances: check source and where.")
    slots = _slot_fields(config, parts)
    targets = {name: [Example(r, _target(config, slots, r)) for r in recordings] for name, recordings in parts.items()}
    limited = {name: _limit(examples, getattr(config, name).limit) for name, examples in targets.items()}
    left_out = []
    if config.kind == "detection":
        words = {e.target[0].lower() for examples in limited.values() for e in examples}
        free = [r for r in negatives if not words & _words(r.extra.get("text"))]
        limited = _running(config, limited, deal(free))
        if len(free) < len(negatives):
            left_out = [f"{len(negatives) - len(free)} of {len(negatives)} negatives hold a keyword and are left out."]
    classes = _classes(config, limited.get("train", []), len(slots))
    train, valid, test = (tuple(limited.get(name, ())) for name in PARTS)
    task = Task(config, train, valid, test, tuple(name.rpartition(".")[2] for name in slots), classes)
    notes = [*left_out, *check_answers(task), *check_overlap(task, allow_overlap), *remark_speakers(task)]
    return replace(task, notes=tuple(notes))


def _words(text: Any) -> set[str]:
    """The words of a transcript in lower case; none where there is no text."""
    return set(re.findall(r"[\w']+", text.lower())) if isinstance(text, str) else set()


def _running(
    config: TaskConfig, words: dict[str, list[Example]], flow: dict[str, list[Recording]]
) -> dict[str, list[Example]]:
    """The examples of a detection task: scenes to learn from, scenes with a keyword, stretches without."""
    told = {part: [(e.recording, UNKNOWN if e.target[0] in config.detection.background else e.target[0])
                   for e in examples] for part, examples in words.items()}  # fmt: skip
    parts = {part: [Example(clip, (label,)) for clip, label in keyword_scenes(told[part], flow[part], silent=True)]
             for part in ("train", "valid")}  # fmt: skip
    keywords = [(word, label) for word, label in told["test"] if label != UNKNOWN]
    scenes = [Example(scene, (label,)) for scene, label in keyword_scenes(keywords, flow["test"])]
    without = [Example(stretch, ()) for stretch in stretches(flow["test"])]
    if not scenes or not without:
        raise UserError(f"The test split of {config.name} needs keywords, and {STRETCH_SECONDS:g} s of negatives.")
    return {**parts, "test": scenes + without}


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
            what = f"the field '{field_name}' that the {name} split of the task {config.name} filters by"
            raise UserError(f"No utterance of {source} has {what}: correct 'where'.")
    kept = [r for r in recordings if matches(r, where) and r.seconds >= config.min_seconds]
    if where and recordings and not kept:
        found = {key: sorted({str(value_of(r, key)) for r in recordings}) for key in where}
        there = "; ".join(f"{key}: {', '.join(values[:8])}{', …' * (len(values) > 8)}" for key, values in found.items())
        raise UserError(
            f"The {name} split of the task {config.name} has no utterances: {source} has {there}. Correct its 'where'."
        )
    return kept if name == "negatives" else [_shaped(r, config) for r in kept]


def _shaped(recording: Recording, config: TaskConfig) -> Recording:
    """Not longer than allowed, and with the task's idea of who speaks."""
    speaker = value_of(recording, config.speaker)
    seconds = min(recording.seconds, config.max_seconds)
    return replace(recording, seconds=seconds, speaker=None if speaker is None else str(speaker))


def _hold_out(recordings: list[Recording], share: float, by_utterance: bool) -> tuple[list[Recording], list[Recording]]:
    """Give `share` of the training speakers (or utterances) to validation: always the same ones, at least one."""

    def unit(recording: Recording) -> str:
        return f"utterance {recording.id}" if by_utterance else _speaker(recording)

    units = sorted({unit(r) for r in recordings}, key=lambda u: fraction("hold out", u))
    if len(units) < 2:
        raise UserError("hold_out needs at least two training speakers: name a validation source instead.")
    held = set(units[: max(1, round(share * len(units)))])
    return [r for r in recordings if unit(r) not in held], [r for r in recordings if unit(r) in held]


def _slot_fields(config: TaskConfig, parts: dict[str, list[Recording]]) -> tuple[str, ...]:
    if config.kind in ("classification", "detection"):
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
    if not config.has_heads:
        return ()
    if config.kind == "ctc":
        return _units(config, recording)
    if config.kind == "frames":
        return _frame_units(config, recording)
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


def _transcript(config: TaskConfig, recording: Recording) -> Any:
    value = value_of(recording, config.text)
    if value is None:
        raise UserError(f"Utterance {recording.id} has no field '{config.text}': correct 'text' in the task file.")
    return value


def _frame_units(config: TaskConfig, recording: Recording) -> tuple[str, ...]:
    """The unit at the centre of every frame of the models' grid, "" where there is none."""
    folding = FOLDINGS[config.fold] if config.fold else {}
    frames = max(0, (round(recording.seconds * SAMPLE_RATE) - GRID.field) // GRID.stride + 1)
    units = [""] * frames
    try:
        for start, end, unit in _transcript(config, recording):
            first, last = (math.ceil((float(t) * SAMPLE_RATE - GRID.offset) / GRID.stride) for t in (start, end))
            for frame in range(max(0, first), min(last, frames)):
                units[frame] = folding.get(str(unit), str(unit))
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"The field '{config.text}' of utterance {recording.id} of the task {config.name} must be a list of "
            "[start, end, unit] with times in seconds."
        ) from error
    return tuple(units)


def _units(config: TaskConfig, recording: Recording) -> tuple[str, ...]:
    value = _transcript(config, recording)
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
    if config.kind in ("ctc", "frames"):
        return (tuple(sorted({unit for e in train for unit in e.target} - {""})),)
    more = {UNKNOWN} if config.kind == "detection" and train else set()
    return tuple(tuple(sorted({e.target[k] for e in train} | more)) for k in range(slots))


def families(folds: Sequence[Task]) -> list[list[Task]]:
    """Tasks that share audio together, since they share its features, which two processes must not write at once."""
    found: list[tuple[set[str], list[Task]]] = []
    for task in folds:
        known = {*task.fingerprints.values(), *([f"folds of {task.fold_of}"] if task.fold_of else ())}
        related = [family for family in found if family[0] & known]
        found = [family for family in found if family not in related]
        found.append((known.union(*(f[0] for f in related)), [*(t for f in related for t in f[1]), task]))
    return [tasks for _, tasks in found]
