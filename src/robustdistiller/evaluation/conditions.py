"""The acoustic conditions of a benchmark as plain values: clean, noise type × SNR, room × T60 bin, and both.

A conditions file is YAML; `conditions/paper.yaml` and `conditions/quick.yaml` are shipped and can be given by name:

    seed: 0
    clean: true
    noise:
      sources:
        - {name: white, kind: white, seen: true}            # seen: was it part of training? a claim, checked where possible
        - {name: babble, kind: babble}                      # other test speakers talking
        - {name: drills, kind: recorded, source: data/noise.jsonl, where: {label: drilling}}
        - {name: recorded, kind: recorded}                  # what --noise names; left out, with a note, without it
      snr_db: [0, 10, 20]
    rooms:
      sources:
        - {name: simulated, simulated: 24}
        - {name: measured}                                  # what --rooms names
      t60: [[0.2, 0.5], [0.5, 1.0]]                         # seconds
    both: {noise: [babble], rooms: [simulated], snr_db: [10], t60: [[0.2, 1.0]]}
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from ..acoustics.noise import KINDS
from ..config import Count, EnvironmentConfig, Number, Seed
from ..errors import closest
from ..files import read_mapping
from ..presets import find_shipped
from ..schema import Section, validated

Name = Annotated[str, Field(pattern=r"^[\w.-]+$")]
Decibels = Annotated[Number, Field(ge=-30, le=60)]
Bin = tuple[Annotated[Number, Field(ge=0.05)], Annotated[Number, Field(le=10)]]  # of T60, seconds


def _once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """`values`, none of which may come twice: conditions are told apart, and named, by them."""
    twice = next((value for k, value in enumerate(values) if value in values[:k]), None)
    if twice is not None:
        raise ValueError(f"{twice} stands in it twice: name it once")
    return values


def _rising(bins: tuple[Bin, ...]) -> tuple[Bin, ...]:
    for low, high in bins:
        if low >= high:
            raise ValueError(f"a T60 bin must be [lowest, highest], not {[low, high]}")
    return bins


Names = Annotated[tuple[str, ...], AfterValidator(_once)]
Levels = Annotated[tuple[Decibels, ...], AfterValidator(_once)]
Bins = Annotated[tuple[Bin, ...], AfterValidator(_rising), AfterValidator(_once)]


class NoiseSource(Section):
    """A type of noise; recorded noise and babble come from recordings, the others are made."""

    name: Name  # in names of conditions
    kind: str  # recorded, babble, or a made kind: white, pink, brown, hum, rain, …
    source: str | None = None  # recorded: None means --noise; babble: None means the other test utterances of the task
    root: str | None = None  # the folder that paths of a manifest start at
    # without it, the test part of a source that has splits, or else its valid part
    where: dict[str, Any] = Field(default_factory=dict)
    by: str | None = None  # recorded: one type per value of this field, such as label
    seen: bool = False  # whether training had it

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"it must be one of {', '.join(KINDS)}.{closest(kind, KINDS)}")
        return kind


class RoomSource(Section):
    """A set of rooms: simulated ones (so many in every T60 bin), or measured responses."""

    name: Name  # in names of conditions
    simulated: Annotated[Count, Field(le=10_000)] | None = None  # so many rooms in each bin
    source: str | None = None  # None, and not simulated: --rooms
    root: str | None = None  # the folder that paths of a manifest start at
    where: dict[str, Any] = Field(default_factory=dict)  # as of a task
    seen: bool = False  # whether training had it

    @model_validator(mode="after")
    def _check(self) -> RoomSource:
        if self.simulated and self.source:
            raise ValueError("a room source is either simulated or has a source")
        return self


class NoiseGrid(Section):
    """Every noise source at every SNR (dB, against the speech as it arrives, reverberation included)."""

    sources: tuple[NoiseSource, ...] = ()  # types of noise
    snr_db: Levels = ()  # every source at each of them


class RoomGrid(Section):
    """Every room source in every bin of T60 (seconds, measured; lower end included)."""

    sources: tuple[RoomSource, ...] = ()  # sets of rooms
    t60: Bins = ()  # bins [lowest, highest], seconds


class BothGrid(Section):
    """Noise in a room: names of sources (None: all), SNRs and T60 bins (None: those of `rooms`)."""

    noise: Names | None = None  # names of sources; None: all
    rooms: Names | None = None  # names of sources; None: all
    snr_db: Levels = ()  # dB
    t60: Bins | None = None  # bins; None: those of rooms


class ConditionsConfig(Section):
    """A conditions file."""

    name: str = "conditions"
    seed: Seed = 0
    clean: bool = True
    noise: NoiseGrid = NoiseGrid()
    rooms: RoomGrid = RoomGrid()
    both: BothGrid = BothGrid()
    training: EnvironmentConfig = EnvironmentConfig()  # what heads are trained on with train_on: contaminated

    @model_validator(mode="after")
    def _check(self) -> ConditionsConfig:
        for what, sources, named in (
            ("noise", self.noise.sources, self.both.noise),
            ("rooms", self.rooms.sources, self.both.rooms),
        ):
            names = [source.name for source in sources]
            if len(set(names)) < len(names):
                raise ValueError(f"two {what} sources have the same name")
            for name in named or ():
                if name not in names:
                    raise ValueError(f"both.{what} names '{name}', which is no source of {what}.{closest(name, names)}")
        if not (self.clean or (self.noise.sources and self.noise.snr_db) or (self.rooms.sources and self.rooms.t60)):
            raise ValueError("there is no condition: set clean, noise or rooms")
        return self


@dataclass(frozen=True)
class Condition:
    """One cell of the grid."""

    name: str  # short, unique, fit for a file name
    title: str
    kind: str  # clean | noise | reverb | both
    noise: str | None = None  # name of the noise type
    snr_db: float | None = None
    rooms: str | None = None  # name of the room source
    t60: tuple[float, float] | None = None  # seconds
    seen: str | None = None  # seen | unseen | partly seen

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


CLEAN = Condition("clean", "clean", "clean")


def load_conditions(path: str | Path) -> tuple[ConditionsConfig, Path]:
    """Read a conditions file given by path or by the name of a shipped one; also the folder its paths start from."""
    file = find_shipped(path, "conditions")
    return validated(ConditionsConfig, read_mapping(file, "conditions"), f"the conditions {file}"), file.parent


def grid(config: ConditionsConfig, noises: dict[str, tuple[str, bool]], rooms: dict[str, bool]) -> Iterator[Condition]:
    """All cells of a file in reading order.

    noises: type → (its source, seen), for the types that exist; rooms: source → seen, for those that exist.
    """
    if config.clean:
        yield CLEAN
    for noise, (_, seen) in noises.items():
        for snr in config.noise.snr_db:
            yield _noise(noise, snr, seen)
    for room, seen in rooms.items():
        for t60 in config.rooms.t60:
            yield _reverb(room, t60, seen, len(rooms) > 1)
    for noise, (source, noise_seen) in noises.items():
        for room, room_seen in rooms.items():
            if source in (config.both.noise or (source,)) and room in (config.both.rooms or (room,)):
                for t60 in config.both.t60 or config.rooms.t60:
                    for snr in config.both.snr_db:
                        wet = _reverb(room, t60, room_seen, len(rooms) > 1)
                        dry = _noise(noise, snr, noise_seen)
                        mark = dry.seen if dry.seen == wet.seen else "partly seen"
                        name, title = f"{dry.name}_{wet.name}", f"{dry.title}, {wet.title}"
                        yield Condition(name, title, "both", noise, snr, room, t60, mark)


def _noise(noise: str, snr: float, seen: bool) -> Condition:
    return Condition(f"{noise}_{snr:g}dB", f"{noise} {snr:g} dB", "noise", noise, snr, seen=_seen(seen))


def _reverb(room: str, t60: tuple[float, float], seen: bool, say_which: bool) -> Condition:
    low, high = t60
    title = f"T60 {low:g}–{high:g} s" + (f" {room}" if say_which else "")
    return Condition(f"{room}_{low:g}-{high:g}s", title, "reverb", None, None, room, (low, high), _seen(seen))


def _seen(seen: bool) -> str:
    return "seen" if seen else "unseen"
