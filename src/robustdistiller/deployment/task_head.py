"""A head that the benchmark trained (``results/heads/<task>/<model>.safetensors``), ready to be exported with its student."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AudioError, UserError, explained
from ..evaluation.evaluated import open_models
from ..evaluation.false_alarms import DetectionHead
from ..evaluation.probes import read_heads
from ..evaluation.rendering import load_wave
from ..evaluation.task_heads import UtteranceHead
from ..evaluation.tasks import load_task
from ..files import StrPath
from ..models.student import Student


@dataclass(frozen=True)
class TaskHead:
    """head: averaged states (B, S, D), or windows, → logits per slot; labels by slot; level in dBFS, or None.

    model: the digest of the student that it was trained on; states: the names of the states that it reads
    """

    head: UtteranceHead | DetectionHead
    task: str
    labels: dict[str, tuple[str, ...]]
    level: float | None
    states: tuple[str, ...]
    model: str

    def answers(self, probabilities: Sequence[Any]) -> list[tuple[str, ...]]:
        """Probabilities per slot, [(B, classes), …], as arrays or tensors → the labels of every utterance."""
        best = [np.asarray(p).argmax(-1) for p in probabilities]
        names = [[labels[k] for k in column] for labels, column in zip(self.labels.values(), best, strict=True)]
        return list(zip(*names, strict=True))


def read_head(path: StrPath) -> TaskHead:
    """The best of the heads in a file, by its validation result.

    Raises `UserError` for a file that is none, a damaged one, or a head that does not classify utterances.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise UserError(f"There is no head {path}: give RESULTS/heads/TASK of `evaluate`, or a file in it.")
    with explained(f"{path} is no head of this version", "run `evaluate` again and give its heads/ file."):
        told, heads = read_heads(path)
        about, state = told["about"], heads[int(np.argmax(told["validation"]))]
    if about["kind"] not in ("classification", "slots", "detection"):
        kinds = "classification, slots and detection"
        raise UserError(f"The head {path} is for a task of kind {about['kind']}: only {kinds} are exported.")
    with explained(f"The head {path} does not fit together", "run `evaluate` again."):
        labels = {str(slot): tuple(classes) for slot, classes in zip(about["slots"], about["classes"], strict=True)}
        states, size = state["mix.mean"].shape
        kind = DetectionHead if about["kind"] == "detection" else UtteranceHead
        head = kind(states, size, [len(classes) for classes in labels.values()])
        head.load_state_dict(state)
        told_states = tuple(about["states"])
        return TaskHead(head.eval(), about["task"], labels, about["level_dbfs"], told_states, about["model"])


def find_head(path: StrPath, name: str, student: Student) -> TaskHead:
    """The head that was trained on a student, from its file or from a folder of heads (``RESULTS/heads/TASK``).

    Args:
        path: The file or folder.
        name: What the student is opened by.
        student: The same, opened.

    Raises:
        UserError: As `read_head`, and where no head, or more than one, is of this student.
    """
    files = sorted(Path(path).glob("*.safetensors")) if os.path.isdir(path) else [Path(path)]
    if not files:
        raise UserError(f"The folder {path} holds no heads: give RESULTS/heads/TASK of `evaluate`, or a file in it.")

    @functools.cache
    def digest(predictions: bool) -> str:
        return open_models([name], predictions)[0].digest

    heads = {file: read_head(file) for file in files}
    mine = [file for file, head in heads.items() if head.model == digest(len(head.states) > len(student.states_names))]
    if not mine:
        some = f"The head {path} was" if files == [Path(path)] else f"None of the heads in {path} was"
        raise UserError(f"{some} trained on {name}: evaluate {name} on the task and give RESULTS/heads/TASK.")
    if len(mine) > 1:
        raise UserError(f"{path} holds several heads of {name}: give one of {', '.join(map(str, mine))}.")
    return heads[mine[0]]


def labelled_audio(task_file: str, head: TaskHead) -> tuple[list[NDArray[np.float32]], list[tuple[str, ...]]]:
    """The validation utterances of a task, as they are, with their answers. Raises `UserError` for another task's file."""
    task = load_task(task_file, allow_overlap=True)
    if dict(zip(task.slots, task.classes, strict=True)) != head.labels:
        raise UserError(f"{task_file} is not the task {head.task} of the head: its answers differ.")
    examples = task.valid or task.test
    waves, answers = [], []
    for example in examples:
        try:
            waves.append(load_wave(example.recording, None))
        except AudioError:
            continue
        answers.append(example.target)
    return waves, answers
