"""What makes a fair test: answers that can be known, and nothing in test that heads or students had in training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..audio.manifest import Recording
from ..errors import UserError
from .task_file import Task

if TYPE_CHECKING:
    from .evaluated import EvaluatedModel
    from .rendering import ConditionRenderer


def note_overlap(sentence: str, advice: str, allow: bool) -> str:
    """The note about what training and test share. Raises `UserError` where that is not allowed."""
    if not allow:
        raise UserError(f"{sentence}: {advice}, or pass --allow-overlap to report it loudly.")
    return f"OVERLAP: {sentence}; its figures are too good."


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
                notes.append(note_overlap(sentence, "separate the splits", allow))
    return notes


def remark_speakers(task: Task) -> list[str]:
    notes = []
    unknown = sum(e.recording.speaker is None for e in task.test)
    if unknown:
        what = f"{unknown} of {len(task.test)} test utterances have no speaker"
        notes.append(f"{what}: no overlap can be checked for them, and statistics resample each alone.")
    clusters = len({e.cluster for e in task.test})
    if clusters < 10:
        notes.append(
            f"Only {clusters} test speaker{'s' * (clusters > 1)}: intervals over so few are rough, and rather too narrow."
        )
    return notes


def check_exposure(
    subjects: Sequence[EvaluatedModel], tasks: Sequence[Task], stage: ConditionRenderer, allow: bool
) -> list[str]:
    """Notes about the provenance of every student; refuses (or, with `allow`, reports) what training and test share.

    Speakers of test utterances, and the noise recordings and rooms of conditions marked unseen, are compared.
    """
    notes = []
    for subject in subjects:
        if subject.kind != "student":
            continue
        if subject.exposure is None:
            notes.append(f"The folder of {subject.name} does not tell its training: no overlap can be checked.")
            continue
        made = sorted(subject.exposure.noise_kinds & stage.synthetic_noises())
        if made:
            notes.append(f"{subject.name} was trained on {', '.join(made)} noise, which the conditions call unseen.")
        pairs = []
        for task in tasks:
            said = {e.recording.speaker or "" for e in task.test} - {""}
            pairs.append((f"speaker(s) of the task {task.name}", subject.exposure.speakers, said))
        pairs.append(("noise recording(s) marked unseen", subject.exposure.noise_groups, stage.groups("noise")))
        pairs.append(("room(s) marked unseen", subject.exposure.room_groups, stage.groups("rooms")))
        for what, trained, tested in pairs:
            shared = sorted(trained & tested)
            if shared:
                sentence = f"The student {subject.name} was trained on {len(shared)} {what} (for example {shared[0]})"
                notes.append(note_overlap(sentence, "test on others, mark what is seen as seen", allow))
    return notes
