"""What makes a task a fair test: answers that can be known, and nothing in test that training had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ..audio.manifest import Recording
from ..errors import UserError
from .task_file import Task


def check_answers(task: Task) -> list[str]:
    """One class only, or answers that training never had."""
    for slot, classes in zip(task.slots or (task.config.text,), task.classes, strict=False):
        if len(classes) < 2 and task.config.kind != "ctc":
            only = f" ({classes[0]!r})" if classes else ""
            raise UserError(f"The task {task.name} has only one class{only} in '{slot}' of its training: give it two.")
    if task.config.kind in ("classification", "slots", "detection"):
        for part in ("valid", "test"):
            for k, slot in enumerate(task.slots):
                new = Counter(e.target[k] for e in task.part(part) if e.target).keys() - set(task.classes[k])
                if new:
                    raise UserError(
                        f"The {part} split of the task {task.name} has the {slot} {sorted(new)[0]!r} that training never "
                        "had: add training examples or leave it out with 'where'."
                    )
    if task.config.kind in ("ctc", "frames"):
        unknown = Counter(u for e in task.test for u in e.target if u and u not in task.classes[0])
        if unknown:
            names = ", ".join(sorted(unknown))
            return [f"{sum(unknown.values())} test units ({names}) are not in training: always errors."]
    if task.config.kind == "verification":
        counts = Counter(e.target for e in task.test)
        if len(counts) < 2 or max(counts.values()) < 2:
            raise UserError(f"The task {task.name} needs at least two test speakers, one of them with two utterances.")
    return []


def check_overlap(task: Task, allow: bool) -> list[str]:
    """Speakers, groups and files that training and test share."""
    notes = []
    told: dict[str, Callable[[Recording], str | None]] = {
        "recording": lambda recording: f"{Path(recording.path).resolve()} at {recording.start:g} s",
        "speaker": lambda recording: recording.speaker,
        "group": lambda recording: recording.group,
    }
    for learnt in ("train", "valid"):
        for what, of in told.items():
            if what == "speaker" and task.config.speakers_are_classes:
                continue
            shared = {of(e.recording) for e in task.part(learnt)} & {of(e.recording) for e in task.test} - {None}
            if shared:
                example = sorted(str(s) for s in shared)[0]
                sentence = (
                    f"The task {task.name} tests on {len(shared)} {what}{'s' * (len(shared) > 1)} of its {learnt} split "
                    f"(for example {example})"
                )
                if not allow:
                    raise UserError(f"{sentence}: separate the splits, or pass --allow-overlap to report it loudly.")
                notes.append(f"OVERLAP: {sentence}; its figures are too good.")
    return notes


def remark_speakers(task: Task) -> list[str]:
    notes = []
    unknown = sum(e.recording.speaker is None for e in task.test)
    if unknown:
        what = f"{unknown} of {len(task.test)} test utterances have no speaker"
        notes.append(f"{what}: no overlap can be checked for them, and statistics resample each alone.")
    clusters = len({e.cluster for e in task.test})
    if clusters < 10:
        notes.append(f"Only {clusters} test speakers: intervals over so few are rough, and rather too narrow.")
    return notes
