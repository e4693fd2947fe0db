"""What a student was trained on must not be tested as unseen: its provenance against tasks and conditions."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UserError
from .evaluated import EvaluatedModel
from .rendering import ConditionRenderer
from .task_file import Task


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
            if not shared:
                continue
            sentence = f"The student {subject.name} was trained on {len(shared)} {what} (for example {shared[0]})"
            if not allow:
                raise UserError(f"{sentence}: test on others, mark what is seen as seen, or pass --allow-overlap.")
            notes.append(f"OVERLAP: {sentence}; its figures there are too good.")
    return notes
