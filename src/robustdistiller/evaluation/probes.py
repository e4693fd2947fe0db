"""One task on one model: from features to heads, from heads to predictions per utterance, from predictions to scores.

Predictions are plain rows, written to disk; scores are computed from these rows alone, so anyone can check a figure against
the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from ..errors import UserError
from ..files import replacing
from ..randomness import generator
from . import ctc, task_heads
from .conditions import Condition
from .detection import FRAME_RATE, THRESHOLDS, WINDOW, alarms, hits, pooled_scores
from .features import StoredFeatures
from .metrics import (
    ACCURACY,
    CER,
    EER,
    FRAMES,
    PER,
    RECALL,
    SLOTS,
    WER,
    AnyScores,
    DetectionScores,
    Metric,
    RankedTrials,
    Scores,
    TrialScores,
    unit_errors,
)  # fmt: skip
from .task_file import Example, Task
from .task_heads import HeadConfig, Trained
from .verification import make_trials, trial_similarities

Row = dict[str, Any]
Tick = Callable[[], None] | None
MOST_CLASSES = 24  # of a confusion matrix that a page can show
MOST_FRAMES = 50_000  # that a frame-wise head learns from


class Probe(Protocol):
    """How one kind of task trains and reads its heads.

    pooled, pooled_test: which features it wants in training and test, the mean of all frames, of so many last ones, or all
    """

    pooled: bool | int
    pooled_test: bool

    def fit(self, train: StoredFeatures, valid: StoredFeatures, tick: Tick = None) -> list[Trained]:
        """Heads for every seed."""
        ...

    def predict(self, trained: Sequence[Trained], test: StoredFeatures) -> list[Row]:
        """One row per test utterance (verification: per pair), with the predictions of every head."""
        ...

    def score(self, rows: Sequence[Row]) -> list[AnyScores]:
        """The task's measures, the main one first."""
        ...


def make_probe(task: Task, config: HeadConfig, seed: int, device: torch.device | str = "cpu") -> Probe:
    """The probe for a task with heads (all kinds but enhancement)."""
    if task.config.kind == "ctc":
        return RecognitionProbe(task, config, seed, device)
    if task.config.kind == "verification":
        return VerificationProbe(task, config, seed)
    if task.config.kind == "frames":
        return FrameProbe(task, config, seed)
    if task.config.kind == "detection":
        return DetectionProbe(task, config, seed)
    return UtteranceProbe(task, config, seed)


class UtteranceProbe:
    """Classification and slots: correct where every slot is; beside that, each slot and the mean of all."""

    pooled: bool | int = True
    pooled_test = True

    def __init__(self, task: Task, config: HeadConfig, seed: int):
        self.task, self.config, self.seed = task, config, seed
        self.sizes = [len(classes) for classes in task.classes]

    def _targets(self, examples: Sequence[Example]) -> NDArray[np.int64]:
        codes = [{name: k for k, name in enumerate(classes)} for classes in self.task.classes]
        rows = [[code[answer] for code, answer in zip(codes, e.target, strict=True)] for e in examples]
        return np.array(rows, dtype=np.int64)

    def fit(self, train: StoredFeatures, valid: StoredFeatures, tick: Tick = None) -> list[Trained]:
        task = self.task
        return task_heads.fit_utterance_heads(
            train, self._targets(task.train), valid, self._targets(task.valid), self.sizes, self.config, self.seed, tick
        )

    def predict(self, trained: Sequence[Trained], test: StoredFeatures) -> list[Row]:
        shape = test.rows.shape[1:]
        found = [
            task_heads.predict(task_heads.load_head(t, task_heads.UtteranceHead, shape, self.sizes), test)
            for t in trained
        ]
        rows = []
        for k, example in enumerate(self.task.test):
            answers = [
                [classes[code] for classes, code in zip(self.task.classes, codes[k], strict=True)] for codes in found
            ]
            rows.append({**_about(example), "target": list(example.target), "predictions": answers})
        return rows

    def score(self, rows: Sequence[Row]) -> list[AnyScores]:
        if len(self.task.slots) == 1:
            return [accuracy(rows)]
        # (heads, utterances, slots)
        right = np.array([[np.equal(found, row["target"]) for row, found in zip(rows, column, strict=True)]
                          for column in _by_seed(rows)], dtype=np.float64)  # fmt: skip
        ones = np.ones(len(rows))
        single = [Scores(Metric(f"slot:{slot}", f"Right, {slot}"), right[..., k], ones)
                  for k, slot in enumerate(self.task.slots)]  # fmt: skip
        return [accuracy(rows), Scores(SLOTS, right.mean(2), ones), *single]


class FrameProbe:
    """Units of single frames, told by a linear head: phones, cheaply. Frames without a unit do not count."""

    pooled = pooled_test = False

    def __init__(self, task: Task, config: HeadConfig, seed: int):
        self.task, self.seed = task, seed
        self.config = replace(config, batch=512, epochs=min(5, config.epochs))
        self.code = {unit: k for k, unit in enumerate(task.classes[0])}

    def _labelled(
        self, examples: Sequence[Example], frames: StoredFeatures, part: str
    ) -> tuple[StoredFeatures, NDArray[np.int64]]:
        """At most `MOST_FRAMES` frames with a known unit, as if each were an utterance, and the classes of these."""
        units = [self.code.get(unit, -1) for e, count in zip(examples, frames.frames, strict=True)
                 for unit in _of_length(e.target, int(count))]  # fmt: skip
        codes = np.array(units, dtype=np.int64)
        kept = np.flatnonzero(codes >= 0)
        if len(kept) > MOST_FRAMES:
            kept = np.sort(generator(self.seed, "frames", part).permutation(kept)[:MOST_FRAMES])
        return StoredFeatures(frames.rows[kept], np.ones(len(kept), np.int64)), codes[kept][:, None]

    def fit(self, train: StoredFeatures, valid: StoredFeatures, tick: Tick = None) -> list[Trained]:
        parts = self._labelled(self.task.train, train, "train"), self._labelled(self.task.valid, valid, "valid")
        return task_heads.fit_utterance_heads(*parts[0], *parts[1], [len(self.code)], self.config, self.seed, tick)

    def predict(self, trained: Sequence[Trained], test: StoredFeatures) -> list[Row]:
        names, shape = self.task.classes[0], test.rows.shape[1:]
        found = [
            task_heads.predict(task_heads.load_head(t, task_heads.UtteranceHead, shape, [len(names)]), test)[:, 0]
            for t in trained
        ]
        rows = []
        for k, example in enumerate(self.task.test):
            frames = slice(test.starts[k], test.starts[k + 1])
            answers = [[names[code] for code in codes[frames]] for codes in found]
            rows.append(
                {**_about(example), "target": _of_length(example.target, len(answers[0])), "predictions": answers}
            )
        return rows

    def score(self, rows: Sequence[Row]) -> list[AnyScores]:
        right = [[sum(a == b != "" for a, b in zip(found, row["target"], strict=True))
                  for row, found in zip(rows, column, strict=True)] for column in _by_seed(rows)]  # fmt: skip
        count = [sum(unit != "" for unit in row["target"]) for row in rows]
        return [Scores(FRAMES, np.array(right, dtype=np.float64), np.array(count, dtype=np.float64))]


class DetectionProbe(UtteranceProbe):
    """Keywords in running speech: a head that learns from seconds runs over every frame (detection.py)."""

    pooled, pooled_test = WINDOW, False

    def predict(self, trained: Sequence[Trained], test: StoredFeatures) -> list[Row]:
        shape, (labels,), config = test.rows.shape[1:], self.task.classes, self.task.config.detection
        heads = [task_heads.load_head(t, task_heads.UtteranceHead, shape, self.sizes) for t in trained]
        rows = []
        for k, example in enumerate(self.task.test):
            states = torch.from_numpy(np.asarray(test.rows[test.starts[k] : test.starts[k + 1]], np.float32))
            scores = [pooled_scores(head, states.transpose(0, 1)[None]).numpy() for head in heads]
            row = {**_about(example), "target": list(example.target)}
            if example.target:
                ends = example.recording.marks()  # type: ignore[attr-defined]
                row["late"] = [hits(s, labels, example.target[0], ends, config) for s in scores]
            else:
                row["seconds"] = example.recording.seconds - WINDOW / FRAME_RATE
                row["alarms"] = [alarms(s, labels, config) for s in scores]
            rows.append(row)
        return rows

    def score(self, rows: Sequence[Row]) -> list[AnyScores]:
        config = self.task.config.detection
        heads = len(rows[0].get("late") or rows[0]["alarms"])
        none = [[None] * len(THRESHOLDS)] * heads
        late = np.array([row.get("late", none) for row in rows], dtype=np.float64).swapaxes(0, 1)
        counts = np.array([row.get("alarms", none) for row in rows], dtype=np.float64).swapaxes(0, 1)
        metric = replace(RECALL, title=f"Recall at {config.alarms_per_hour:g} false alarms an hour")
        seconds = np.array([row.get("seconds", 0.0) for row in rows])
        return [DetectionScores(metric, late, np.nan_to_num(counts), seconds, THRESHOLDS, config.alarms_per_hour)]


def _of_length(units: Sequence[str], frames: int) -> list[str]:
    """The units of an utterance on the frames that a model gives it, which may be a frame more or less."""
    return [*units[:frames], *[""] * (frames - len(units))]


class RecognitionProbe:
    """CTC: phone error rate, or word and character error rate."""

    pooled = pooled_test = False

    def __init__(self, task: Task, config: HeadConfig, seed: int, device: torch.device | str = "cpu"):
        # A CTC head costs a hundred times a linear one: decay hardly matters to it and is not searched.
        self.recurrent = task.config.units == "characters"
        steps = 800 if self.recurrent else 2000
        self.config = replace(config, weight_decays=config.weight_decays[:1], steps=min(steps, 3 * config.steps))
        self.task, self.seed, self.device = task, seed, device
        self.code = {unit: k + 1 for k, unit in enumerate(task.classes[0])}

    def _targets(self, examples: Sequence[Example]) -> list[NDArray[np.int64]]:
        return [np.array([self.code[u] for u in e.target if u in self.code], dtype=np.int64) for e in examples]

    def fit(self, train: StoredFeatures, valid: StoredFeatures, tick: Tick = None) -> list[Trained]:
        return ctc.fit_ctc_heads(
            train, self._targets(self.task.train), valid, self._targets(self.task.valid), len(self.code),
            self.recurrent, self.config, self.seed, self.device, tick,
        )  # fmt: skip

    def predict(self, trained: Sequence[Trained], test: StoredFeatures) -> list[Row]:
        names = self.task.classes[0]
        found = []
        for t in trained:
            states, size = test.rows.shape[1:]
            head = ctc.CTCHead(states, size, len(names), self.recurrent)
            head.load_state_dict(t.state)
            paths = ctc.decode(head.eval().to(self.device), test, self.device)
            found.append([[names[code - 1] for code in path] for path in paths])
        return [
            {**_about(e), "target": list(e.target), "predictions": [units[k] for units in found]}
            for k, e in enumerate(self.task.test)
        ]

    def score(self, rows: Sequence[Row]) -> list[AnyScores]:
        if self.task.config.units == "phones":
            return [_error_rate(PER, rows, list)]
        return [_error_rate(WER, rows, lambda units: "".join(units).split()), _error_rate(CER, rows, list)]


class VerificationProbe:
    """Speaker verification: one row per compared pair."""

    pooled: bool | int = True
    pooled_test = True

    def __init__(self, task: Task, config: HeadConfig, seed: int):
        self.task, self.config, self.seed = task, config, seed
        self.speakers = task.classes[0]
        self.trials = make_trials([e.target[0] for e in task.test], task.config.trials, seed)

    def fit(self, train: StoredFeatures, valid: StoredFeatures, tick: Tick = None) -> list[Trained]:
        code = {name: k for k, name in enumerate(self.speakers)}
        targets = np.array([[code[e.target[0]]] for e in self.task.train], dtype=np.int64)
        left, right, same = make_trials([e.target[0] for e in self.task.valid], self.task.config.trials, self.seed)

        def score(embeddings: torch.Tensor) -> float:
            rate = RankedTrials(trial_similarities(embeddings, left, right), same).equal_error_rate()
            return -1.0 if np.isnan(rate) else -rate

        return task_heads.fit_speaker_heads(
            train, targets, len(self.speakers), score, valid, self.config, self.seed, tick
        )

    def predict(self, trained: Sequence[Trained], test: StoredFeatures) -> list[Row]:
        left, right, same = self.trials
        shape, sizes = test.rows.shape[1:], [len(self.speakers)]
        values = np.stack(
            [
                trial_similarities(
                    task_heads.embeddings(task_heads.load_head(t, task_heads.SpeakerHead, shape, sizes), test),
                    left,
                    right,
                )
                for t in trained
            ]
        )
        ids = [example.id for example in self.task.test]
        return [
            {"left": ids[a], "right": ids[b], "same": bool(one), "similarity": values[:, k].round(6).tolist()}
            for k, (a, b, one) in enumerate(zip(left, right, same, strict=True))
        ]

    def score(self, rows: Sequence[Row]) -> list[AnyScores]:
        left, right, same = self.trials
        return [TrialScores(EER, np.array([row["similarity"] for row in rows]).T, left, right, same)]


def _about(example: Example) -> Row:
    return {"id": example.id, "speaker": example.recording.speaker}


def accuracy(rows: Sequence[Row]) -> Scores:
    """Whether every head answered every utterance right, all of its slots; `rows` are those of `UtteranceProbe.predict`."""
    right = [[found == row["target"] for row, found in zip(rows, column, strict=True)] for column in _by_seed(rows)]
    return Scores(ACCURACY, np.array(right, dtype=np.float64), np.ones(len(rows)))


def _by_seed(rows: Sequence[Row]) -> list[list[Any]]:
    """Predictions of every head, [seed][utterance]."""
    return [list(column) for column in zip(*(row["predictions"] for row in rows), strict=True)]


def _error_rate(metric: Any, rows: Sequence[Row], units: Callable[[Any], list[str]]) -> Scores:
    total = [[unit_errors(units(row["target"]), units(found))[0] for row, found in zip(rows, column, strict=True)]
             for column in _by_seed(rows)]  # fmt: skip
    return Scores(metric, np.array(total, dtype=np.float64), np.array([len(units(r["target"])) for r in rows], float))


class Confusions:
    """What was taken for what, per model and slot: on clean speech, and in all contaminated conditions together."""

    def __init__(self, task: Task):
        self.task = task
        labelled = task.config.kind in ("classification", "slots")
        self.codes = {
            slot: {name: k for k, name in enumerate(classes)}
            for slot, classes in (zip(task.slots, task.classes, strict=True) if labelled else ())
            if len(classes) <= MOST_CLASSES
        }
        self.counts: dict[tuple[str, str, str], NDArray[np.float64]] = {}

    def add(self, model: str, condition: Condition, rows: Sequence[Row]) -> None:
        """Count predictions; those of several heads count as parts of one."""
        what = "clean" if condition.kind == "clean" else "contaminated"
        for slot, code in self.codes.items():
            place = self.task.slots.index(slot)
            counts = self.counts.setdefault((model, what, slot), np.zeros((len(code), len(code))))
            for row in rows:
                for answer in row["predictions"]:
                    counts[code[row["target"][place]], code[answer[place]]] += 1 / len(row["predictions"])

    def to_list(self) -> list[dict[str, Any]]:
        """Plain JSON: rows are what was said, columns what was answered."""
        return [
            {"model": model, "condition": what, "slot": slot, "counts": counts.round(3).tolist()}
            for (model, what, slot), counts in self.counts.items()
        ]


def save_heads(path: Path, trained: Sequence[Trained], key: str, about: dict[str, Any]) -> None:
    """Write the heads of all seeds into one safetensors file; `about` (plain JSON) is what using them elsewhere takes."""
    tensors = {f"{k}.{name}": value.contiguous() for k, t in enumerate(trained) for name, value in t.state.items()}
    first = trained[0]
    told = {
        "key": key,
        "learning_rate": first.learning_rate,
        "weight_decay": first.weight_decay,
        "validation": [t.validation for t in trained],
        "about": about,
    }
    with replacing(path) as temporary:
        # One entry only: safetensors writes several in an order that changes from run to run.
        save_file(tensors, temporary, metadata={"heads": json.dumps(told)})


def load_heads(path: Path, key: str) -> list[Trained] | None:
    """The heads that were trained for exactly this `key`, or None."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {})["heads"])
            if told["key"] != key:
                return None
            states: list[dict[str, torch.Tensor]] = [{} for _ in told["validation"]]
            for name in file.keys():  # noqa: SIM118
                number, _, inner = name.partition(".")
                states[int(number)][inner] = file.get_tensor(name)
    except Exception as error:
        raise UserError(f"The heads in {path} are damaged: delete that file and run the same command again.") from error
    return [
        Trained(state, told["learning_rate"], told["weight_decay"], value)
        for state, value in zip(states, told["validation"], strict=True)
    ]
