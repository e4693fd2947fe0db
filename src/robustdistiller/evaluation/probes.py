"""One task on one model: from features to heads, from heads to predictions per utterance, from predictions to scores.

Predictions are plain rows, written to disk; scores are computed from these rows alone, so anyone can check a figure against
the file.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from ..errors import explained
from ..files import replacing
from ..randomness import generator
from . import ctc, metrics, task_heads
from .conditions import Condition
from .false_alarms import (
    FRAME_RATE,
    THRESHOLDS,
    WINDOW,
    DetectionHead,
    alarms,
    frame_scores,
    hits,
    label_windows,
    part_means,
)
from .features import StoredFeatures
from .metrics import AnyScores, DetectionScores, Metric, Scores, TrialScores
from .scenes import UNKNOWN
from .task_file import Example, Task
from .task_heads import HeadConfig, Tick, Trained, UtteranceHead, fit_averaged, load_head
from .verification import Trials, make_trials, trial_similarities

Row = dict[str, Any]
MOST_CLASSES = 24  # of a confusion matrix that a page can show
MOST_FRAMES = 50_000  # that a frame-wise head learns from


class Probe:
    """How one kind of task trains and reads its heads.

    pooled, pooled_test: which features it wants in training and test, the mean of all frames or all of them
    """

    pooled = True
    pooled_test = True

    def __init__(self, task: Task, config: HeadConfig, seed: int, device: torch.device | str = "cpu"):
        self.task, self.config, self.seed, self.device = task, config, seed, device

    def fit(self, train: StoredFeatures, valid: StoredFeatures, tick: Tick = None) -> list[Trained]:
        """Heads for every seed."""
        raise NotImplementedError

    def predict(self, trained: Sequence[Trained], test: StoredFeatures) -> list[Row]:
        """One row per test utterance (verification: per pair), with the predictions of every head."""
        raise NotImplementedError

    def score(self, rows: Sequence[Row]) -> list[AnyScores]:
        """The task's measures, the main one first."""
        raise NotImplementedError

    def rows(self, targets: Iterable[Sequence[str]], found: Sequence[Sequence[list[str]]]) -> list[Row]:
        """Rows of the test utterances with their `targets` and what every head answered, [seed][utterance]."""
        answers = zip(*found, strict=True)
        rows = zip(self.task.test, targets, answers, strict=True)
        return [{**_about(e), "target": list(target), "predictions": list(given)} for e, target, given in rows]


class UtteranceProbe(Probe):
    """Classification and slots: correct where every slot is; beside that, each slot and the mean of all."""

    def _targets(self, examples: Sequence[Example]) -> NDArray[np.int64]:
        codes = [_numbered(classes) for classes in self.task.classes]
        rows = [[code[answer] for code, answer in zip(codes, e.target, strict=True)] for e in examples]
        return np.array(rows, dtype=np.int64)

    def fit(self, train: StoredFeatures, valid: StoredFeatures, tick: Tick = None) -> list[Trained]:
        targets, valid_targets = (self._targets(examples) for examples in (self.task.train, self.task.valid))
        sizes = list(map(len, self.task.classes))
        better = task_heads.by_answers(valid, valid_targets)
        return fit_averaged(UtteranceHead, train, targets, sizes, better, self.config, self.seed, tick, self.device)

    def _codes(self, trained: Sequence[Trained], test: StoredFeatures) -> list[NDArray[np.int64]]:
        """The class of every row and slot, (N, slots), by each head."""
        shape, sizes = test.rows.shape[1:], list(map(len, self.task.classes))
        return [task_heads.predict(load_head(t, UtteranceHead, shape, sizes), test) for t in trained]

    def predict(self, trained: Sequence[Trained], test: StoredFeatures) -> list[Row]:
        classes = self.task.classes
        found = [[[names[code] for names, code in zip(classes, row, strict=True)] for row in codes]
                 for codes in self._codes(trained, test)]  # fmt: skip
        return self.rows((e.target for e in self.task.test), found)

    def score(self, rows: Sequence[Row]) -> list[AnyScores]:
        if len(self.task.slots) == 1:
            return [accuracy(rows)]
        right = _by_head(rows, np.equal)  # (heads, utterances, slots)
        ones = np.ones(len(rows))
        single = [Scores(Metric(f"slot:{slot}", f"Right, {slot}"), right[..., k], ones)
                  for k, slot in enumerate(self.task.slots)]  # fmt: skip
        return [accuracy(rows), Scores(metrics.SLOTS, right.mean(2), ones), *single]


class FrameProbe(UtteranceProbe):
    """Units of single frames, told by a linear head: phones, cheaply. Frames without a unit do not count."""

    pooled = pooled_test = False

    def _labelled(
        self, examples: Sequence[Example], frames: StoredFeatures, part: str
    ) -> tuple[StoredFeatures, NDArray[np.int64]]:
        """At most `MOST_FRAMES` frames with a known unit, as if each were an utterance, and the classes of these."""
        code = _numbered(self.task.classes[0])
        units = [code.get(unit, -1) for e, count in zip(examples, frames.frames, strict=True)
                 for unit in _of_length(e.target, int(count))]  # fmt: skip
        codes = np.array(units, dtype=np.int64)
        kept = np.flatnonzero(codes >= 0)
        if len(kept) > MOST_FRAMES:
            kept = np.sort(generator(self.seed, "frames", part).permutation(kept)[:MOST_FRAMES])
        return StoredFeatures(frames.rows[kept], np.ones(len(kept), np.int64)), codes[kept][:, None]

    def fit(self, train: StoredFeatures, valid: StoredFeatures, tick: Tick = None) -> list[Trained]:
        labelled = self._labelled(self.task.train, train, "train")
        better = task_heads.by_answers(*self._labelled(self.task.valid, valid, "valid"))
        config, sizes = replace(self.config, batch=512, epochs=min(5, self.config.epochs)), [len(self.task.classes[0])]
        return fit_averaged(UtteranceHead, *labelled, sizes, better, config, self.seed, tick, self.device)

    def predict(self, trained: Sequence[Trained], test: StoredFeatures) -> list[Row]:
        names, cuts = self.task.classes[0], test.starts[1:-1]
        found = [[[names[code] for code in codes] for codes in np.split(column[:, 0], cuts)]
                 for column in self._codes(trained, test)]  # fmt: skip
        frames = test.frames.tolist()
        return self.rows((_of_length(e.target, n) for e, n in zip(self.task.test, frames, strict=True)), found)

    def score(self, rows: Sequence[Row]) -> list[AnyScores]:
        right = _by_head(rows, lambda found, target: sum(a == b != "" for a, b in zip(found, target, strict=True)))
        count = [sum(unit != "" for unit in row["target"]) for row in rows]
        return [Scores(metrics.FRAMES, right, np.array(count, dtype=np.float64))]


class DetectionProbe(Probe):
    """Keywords in running speech: a head that learns from seconds of scenes runs over every frame (false_alarms.py)."""

    pooled = pooled_test = False

    def _windows(self, examples: Sequence[Example], frames: StoredFeatures) -> tuple[StoredFeatures, NDArray[np.int64]]:
        """What a head reads of the scenes of `examples`, as rows, and the class of each, (N, 1)."""
        code, means, classes = _numbered(self.task.classes[0]), list[NDArray[np.float32]](), list[int]()
        for example, start, count in zip(examples, frames.starts[:-1], frames.frames, strict=True):
            begin, end = example.recording.marks()  # type: ignore[attr-defined]
            told = label_windows(begin, end, int(count))
            means.append(part_means(frames.rows[start : start + count], [frame for frame, _ in told]))
            classes += [code[example.target[0] if said else UNKNOWN] for _, said in told]
        rows = np.concatenate(means)
        return StoredFeatures(rows, np.ones(len(rows), np.int64)), np.array(classes, dtype=np.int64)[:, None]

    def fit(self, train: StoredFeatures, valid: StoredFeatures, tick: Tick = None) -> list[Trained]:
        windows = self._windows(self.task.train, train)
        better = task_heads.by_answers(*self._windows(self.task.valid, valid))
        # Dropout does more than decay.
        config = replace(self.config, weight_decays=self.config.weight_decays[:1], epochs=min(8, self.config.epochs))
        sizes = [len(self.task.classes[0])]
        return fit_averaged(DetectionHead, *windows, sizes, better, config, self.seed, tick, self.device)

    def predict(self, trained: Sequence[Trained], test: StoredFeatures) -> list[Row]:
        shape, (labels,), config = test.rows.shape[1:], self.task.classes, self.task.config.detection
        heads = [load_head(t, DetectionHead, shape, [len(labels)]) for t in trained]
        rows = []
        for k, example in enumerate(self.task.test):
            states = torch.from_numpy(np.asarray(test.rows[test.starts[k] : test.starts[k + 1]], np.float32))
            scores = [frame_scores(head, states.transpose(0, 1)[None]).numpy() for head in heads]
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
        metric = replace(metrics.RECALL, title=f"Recall at {config.alarms_per_hour:g} false alarms an hour")
        seconds = np.array([row.get("seconds", 0.0) for row in rows])
        return [DetectionScores(metric, late, np.nan_to_num(counts), seconds, THRESHOLDS, config.alarms_per_hour)]


def _of_length(units: Sequence[str], frames: int) -> list[str]:
    """The units of an utterance on the frames that a model gives it, which may be a frame more or less."""
    return [*units[:frames], *[""] * (frames - len(units))]


class RecognitionProbe(Probe):
    """CTC: phone error rate, or word and character error rate."""

    pooled = pooled_test = False

    @property
    def recurrent(self) -> bool:
        return self.task.config.units == "characters"

    def _targets(self, examples: Sequence[Example]) -> list[NDArray[np.int64]]:
        code = _numbered(self.task.classes[0])
        return [np.array([code[u] + 1 for u in e.target if u in code], dtype=np.int64) for e in examples]

    def fit(self, train: StoredFeatures, valid: StoredFeatures, tick: Tick = None) -> list[Trained]:
        # A CTC head costs a hundred times a linear one: decay hardly matters to it and is not searched.
        most = 800 if self.recurrent else 2000
        decays, steps = self.config.weight_decays[:1], min(most, 3 * self.config.steps)
        return ctc.fit_ctc_heads(
            train, self._targets(self.task.train), valid, self._targets(self.task.valid), len(self.task.classes[0]),
            self.recurrent, replace(self.config, weight_decays=decays, steps=steps), self.seed, self.device, tick,
        )  # fmt: skip

    def predict(self, trained: Sequence[Trained], test: StoredFeatures) -> list[Row]:
        names, found = self.task.classes[0], []
        for t in trained:
            head = load_head(t, ctc.CTCHead, test.rows.shape[1:], len(names), self.recurrent)
            paths = ctc.decode(head.to(self.device), test, self.device)
            found.append([[names[code - 1] for code in path] for path in paths])
        return self.rows((e.target for e in self.task.test), found)

    def score(self, rows: Sequence[Row]) -> list[AnyScores]:
        if self.task.config.units == "phones":
            return [_error_rate(metrics.PER, rows, list)]
        words = _error_rate(metrics.WER, rows, lambda units: "".join(units).split())
        return [words, _error_rate(metrics.CER, rows, list)]


class VerificationProbe(Probe):
    """Speaker verification: one row per compared pair."""

    def _trials(self, examples: Sequence[Example]) -> Trials:
        return make_trials([e.target[0] for e in examples], self.task.config.trials, self.seed)

    def fit(self, train: StoredFeatures, valid: StoredFeatures, tick: Tick = None) -> list[Trained]:
        code = _numbered(self.task.classes[0])
        targets = np.array([[code[e.target[0]]] for e in self.task.train], dtype=np.int64)
        left, right, same = self._trials(self.task.valid)

        def validate(head: torch.nn.Module) -> tuple[float, float]:
            similarity = trial_similarities(task_heads.embeddings(head, valid), left, right)
            rate = metrics.RankedTrials(similarity, same).equal_error_rate()
            return -1.0 if np.isnan(rate) else -rate, 0.0

        kind = task_heads.SpeakerHead
        return fit_averaged(kind, train, targets, [len(code)], validate, self.config, self.seed, tick, self.device)

    def predict(self, trained: Sequence[Trained], test: StoredFeatures) -> list[Row]:
        left, right, same = self._trials(self.task.test)
        shape, sizes = test.rows.shape[1:], [len(self.task.classes[0])]
        found = [task_heads.embeddings(load_head(t, task_heads.SpeakerHead, shape, sizes), test) for t in trained]
        values = np.stack([trial_similarities(each, left, right) for each in found])
        ids = [example.id for example in self.task.test]
        return [
            {"left": ids[a], "right": ids[b], "same": bool(one), "similarity": values[:, k].round(6).tolist()}
            for k, (a, b, one) in enumerate(zip(left, right, same, strict=True))
        ]

    def score(self, rows: Sequence[Row]) -> list[AnyScores]:
        similarity = np.array([row["similarity"] for row in rows]).T
        return [TrialScores(metrics.EER, similarity, *self._trials(self.task.test))]


PROBES: dict[str, type[Probe]] = {
    "ctc": RecognitionProbe, "verification": VerificationProbe, "frames": FrameProbe, "detection": DetectionProbe,
}  # fmt: skip


def make_probe(task: Task, config: HeadConfig, seed: int, device: torch.device | str = "cpu") -> Probe:
    """The probe for a task with heads (all kinds but enhancement)."""
    return PROBES.get(task.config.kind, UtteranceProbe)(task, config, seed, device)


def accuracy(rows: Sequence[Row]) -> Scores:
    """Whether every head answered every utterance right, all of its slots; `rows` are those of `UtteranceProbe.predict`."""
    return Scores(metrics.ACCURACY, _by_head(rows, operator.eq), np.ones(len(rows)))


def _about(example: Example) -> Row:
    return {"id": example.id, "speaker": example.recording.speaker}


def _numbered(names: Sequence[str]) -> dict[str, int]:
    return {name: k for k, name in enumerate(names)}


def _by_head(rows: Sequence[Row], judge: Callable[[Any, Any], Any]) -> NDArray[np.float64]:
    """What `judge` says of every answer beside its target, (heads, utterances, …)."""
    judged = [[judge(answer, row["target"]) for answer in row["predictions"]] for row in rows]
    return np.array(judged, dtype=np.float64).swapaxes(0, 1)


def _error_rate(metric: Metric, rows: Sequence[Row], units: Callable[[Any], list[str]]) -> Scores:
    total = _by_head(rows, lambda found, target: metrics.unit_errors(units(target), units(found))[0])
    return Scores(metric, total, np.array([len(units(row["target"])) for row in rows], dtype=np.float64))


class Confusions:
    """What was taken for what, per model and slot: on clean speech, and in all contaminated conditions together."""

    def __init__(self, task: Task):
        self.task = task
        labelled = task.config.kind in ("classification", "slots")
        self.codes = {
            slot: _numbered(classes)
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
        rows = ((*key, counts.round(3).tolist()) for key, counts in self.counts.items())
        return [{"model": model, "condition": what, "slot": slot, "counts": n} for model, what, slot, n in rows]


def save_heads(path: Path, trained: Sequence[Trained], key: str, about: dict[str, Any]) -> None:
    """Write the heads of all seeds into one safetensors file; `about` (plain JSON) is what using them elsewhere takes."""
    tensors = {f"{k}.{name}": value.contiguous() for k, t in enumerate(trained) for name, value in t.state.items()}
    first = trained[0]
    told = {
        "key": key, "learning_rate": first.learning_rate, "weight_decay": first.weight_decay,
        "validation": [t.validation for t in trained], "about": about,
    }  # fmt: skip
    with replacing(path) as temporary:
        # One entry only: safetensors writes several in an order that changes from run to run.
        save_file(tensors, temporary, metadata={"heads": json.dumps(told)})


def read_heads(path: Path) -> tuple[dict[str, Any], list[dict[str, torch.Tensor]]]:
    """What `save_heads` wrote of the heads in a file, and their weights. Raises whatever a damaged file makes it raise."""
    with safe_open(path, framework="pt") as file:
        told = json.loads((file.metadata() or {})["heads"])
        states: list[dict[str, torch.Tensor]] = [{} for _ in told["validation"]]
        for name in file.keys():  # noqa: SIM118
            number, _, inner = name.partition(".")
            states[int(number)][inner] = file.get_tensor(name)
    return told, states


def load_heads(path: Path, key: str) -> list[Trained] | None:
    """The heads that were trained for exactly this `key`, or None."""
    if not path.is_file():
        return None
    with explained(f"The heads in {path} are damaged", "delete that file and run the same command again."):
        told, states = read_heads(path)
        heads = [Trained(state, told["learning_rate"], told["weight_decay"], value)
                 for state, value in zip(states, told["validation"], strict=True)]  # fmt: skip
        return heads if told["key"] == key else None
