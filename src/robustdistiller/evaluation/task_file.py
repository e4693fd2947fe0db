"""A downstream task as values: its file, its utterances with their answers, and its parts for training, selection and test."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ..audio.manifest import Recording
from ..config import Count, Number
from ..errors import printable
from ..files import digest
from ..runtime.detection import BACKGROUND
from ..schema import Section
from .phones import FOLDINGS
from .scenes import Montage
from .sources import fingerprint

Kind = Literal[
    "classification", "slots", "frames", "ctc", "verification", "detection", "enhancement", "unlabelled"
]  # fmt: skip
PARTS = ("train", "valid", "test")


class SplitConfig(Section):
    """Where the utterances of one split are."""

    source: str | None = None  # None: the task's
    root: str | None = None  # None: the task's
    where: dict[str, Any] = Field(default_factory=dict)  # field: value, or field: [values]; all must hold
    hold_out: Annotated[Number, Field(gt=0, lt=1)] | None = None  # valid only: this share of the training speakers
    limit: Count | None = None  # at most so many, balanced over labels, always the same ones


class DetectionConfig(Section):
    """How a running head is read, and what counts as found; times in seconds."""

    smoothing: Annotated[Number, Field(ge=0.02, le=2)] = 0.2  # over which probabilities are averaged
    refractory: Annotated[Number, Field(ge=0, le=10)] = 1.0  # after a detection, in which there is no other
    tolerance: Annotated[Number, Field(ge=0, le=2)] = 1.0  # after the end of a word, until which it may be detected
    alarms_per_hour: Annotated[Number, Field(gt=0)] = 0.5  # false ones that are allowed where recall is told
    background: tuple[str, ...] = BACKGROUND  # labels that are no keyword


class TaskConfig(Section):
    """A task file."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=80)]  # in file names and tables
    title: Annotated[str, Field(max_length=200)] | None = None  # in the report
    kind: Kind  # the kind of answer
    source: str | None = None  # of all parts, unless they name their own
    root: str | None = None  # the folder that paths of a manifest start at
    label: str = "label"  # classification, detection: the field with the class; dots enter nested fields
    slots: tuple[str, ...] = ()  # slots: one field each; a single field that holds a mapping stands for all its keys
    speaker: str = "speaker"  # the field that says who speaks: splits must not share it, and statistics resample it
    # ctc: a string, a list of units, or a list of [start, end, unit]; frames: the latter, in seconds
    text: str = "text"
    units: Literal["characters", "phones"] = "characters"  # ctc
    fold: str | None = None  # ctc, frames: a named folding of phones, such as timit39
    # Cross-validation: so many folds of speakers, or a field, each of whose values is the test part once; the others train.
    folds: Annotated[Count, Field(ge=2, le=100)] | str | None = None
    train: SplitConfig = SplitConfig(where={"split": "train"})  # what heads learn from
    valid: SplitConfig = SplitConfig(where={"split": "valid"})  # what chooses among heads
    test: SplitConfig = SplitConfig(where={"split": "test"})  # what is reported
    level_dbfs: Annotated[Number, Field(ge=-60, le=-10)] | None = None  # RMS level every utterance is brought to
    min_seconds: Annotated[Number, Field(ge=0.1)] = 0.1  # shorter utterances are left out
    max_seconds: Annotated[Number, Field(gt=0.1)] = 29.0  # longer utterances are cut
    measures: tuple[Literal["si_sdr", "stoi", "pesq", "dnsmos"], ...] | None = None  # enhancement; None: all installed
    negatives: SplitConfig | None = None  # detection: running speech without any of the words, dealt to the three parts
    detection: DetectionConfig = DetectionConfig()  # detection: smoothing, refractory time, allowed false alarms
    # verification: pairs compared, half of them of one speaker if possible
    trials: Annotated[Count, Field(ge=10, le=10**8)] = 20_000

    @field_validator("title")
    @classmethod
    def _one_line(cls, title: str | None) -> str | None:
        return printable(title) if title else title

    @model_validator(mode="after")
    def _check(self) -> TaskConfig:
        if self.kind == "detection" and self.negatives is None:
            raise ValueError("a task of kind detection needs negatives: running speech without its words")
        if self.kind == "slots" and not self.slots:
            raise ValueError("a task of kind slots must list its slots")
        if self.fold is not None and self.fold not in FOLDINGS:
            raise ValueError(f"fold must be one of {', '.join(FOLDINGS)}")
        if self.train.hold_out or self.test.hold_out:
            raise ValueError("hold_out belongs to valid")
        if self.folds is not None and self.kind not in ("classification", "slots", "frames", "ctc"):
            raise ValueError(f"a task of kind {self.kind} has no folds")
        if isinstance(self.folds, int) and self.speakers_are_classes:
            raise ValueError("who speaks cannot be told of speakers that training never had: leave out folds")
        return self

    @property
    def speakers_are_classes(self) -> bool:
        """Closed-set speaker identification: the one task whose test speakers must be known from training."""
        return self.kind == "classification" and self.label == "speaker"

    @property
    def has_heads(self) -> bool:
        """Whether heads are trained for it; else the label-free score, or the student's own enhancement, is all there is."""
        return self.kind not in ("enhancement", "unlabelled")


@dataclass(frozen=True)
class Example:
    """One utterance with its answer: a class per slot, a unit per frame ("" for none), those of a transcript, or nothing.

    Detection: the keyword of a scene, nothing for running speech without any.
    """

    recording: Recording
    target: tuple[str, ...]

    @property
    def id(self) -> str:
        return self.recording.id

    @property
    def cluster(self) -> str:
        """The unit that statistics resample: the speaker, or the utterance itself where no speaker is known."""
        if isinstance(self.recording, Montage):
            return self.recording.cluster
        return self.recording.speaker or f"utterance {self.id}"


@dataclass(frozen=True)
class Task:
    """A loaded and checked task. `classes` has the sorted answers of training per slot (ctc, frames: one list of all units)."""

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

    def voices(self, name: str) -> list[Recording]:
        """The recordings of a part that babble is mixed from; of a detection task, its running speech without keywords."""
        made = [e.recording for e in self.part(name)]
        flow = [r for m in made if isinstance(m, Montage) for r in m.flow]
        return list({(r.path, r.start): r for r in flow}.values()) if flow else made

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """A digest of the audio of each part: what the features of that part depend on, besides model and condition."""
        shape = [self.config.level_dbfs, self.config.max_seconds]
        return {name: digest([shape, fingerprint(e.recording for e in self.part(name))]) for name in PARTS}
