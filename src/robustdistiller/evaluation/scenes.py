"""The audio of a detection task, put together from recordings when it is read.

A head of a running detector learns from scenes: a word, keyword or not, between running speech or in silence, with known ends.
It is tested on scenes of keywords, and on stretches of running speech without any, whose detections are all false alarms.
Recordings of running speech follow each other without a gap, so that short ones make minutes. A scene has more before its word
than a stream attends to, as there always is on a device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..audio.io import SAMPLE_RATE
from ..audio.manifest import SPLITS, Recording
from ..errors import UserError
from ..models.frames import GRID
from ..randomness import fraction, generator

Wave = NDArray[np.float32]

UNKNOWN = "_unknown_"
SCENE_SECONDS, WORD_AT, LONGEST_WORD = 6.0, 2.5, 2.0
STRETCH_SECONDS = 20.0
FAINT = 1e-4  # standard deviation of what stands for silence


@dataclass(frozen=True)
class Montage(Recording):
    """A recording made of others.

    Attributes:
        word: The recording of one word, trimmed to where it is loud; None in a stretch.
        flow: Running speech, one recording after the other; empty for silence.
        offset: Seconds into the first of them.
    """

    word: Recording | None = field(default=None, hash=False)
    flow: tuple[Recording, ...] = field(default=(), hash=False)
    offset: float = 0.0

    @property
    def parts(self) -> list[Recording]:
        """What it is made of."""
        return [*([self.word] if self.word else []), *self.flow]

    @property
    def cluster(self) -> str:
        """What the bootstrap draws: all scenes of a keyword's speaker, or one stretch."""
        return self.speaker if self.word and self.speaker else f"utterance {self.id}"

    def load(self, offset: float = 0.0, seconds: float | None = None) -> Wave:
        wave, word, begin = self._silence_and_word()
        if self.flow:
            running = self._running(len(wave))
            wave[: len(running)] += running
            if self.word is not None:
                # As loud as the speech around it, which may pause just there, so that an SNR is one of the word too.
                around = max(_power(running), *(_power(recording.load(0.0, 10.0)) for recording in self.flow))
                word = word * np.sqrt(around / max(_power(word), 1e-12))
        wave[begin : begin + len(word)] = word
        start = round(offset * SAMPLE_RATE)
        return wave[start:] if seconds is None else wave[start : start + round(seconds * SAMPLE_RATE)]

    def marks(self) -> tuple[float, float]:
        """Seconds in which the word begins and ends."""
        _, word, begin = self._silence_and_word()
        return begin / SAMPLE_RATE, (begin + len(word)) / SAMPLE_RATE

    def _silence_and_word(self) -> tuple[Wave, Wave, int]:
        """What stands for silence (T,), the word as it is cut (nothing without one), and the sample at which it begins."""
        size, rng = round(self.seconds * SAMPLE_RATE), generator("montage", self.id)
        silence = (FAINT * rng.standard_normal(size)).astype(np.float32)
        if self.word is None:
            return silence, np.zeros(0, np.float32), 0
        word = trimmed(self.word.load())[: round(LONGEST_WORD * SAMPLE_RATE)]
        return silence, word, round(WORD_AT * SAMPLE_RATE)

    def _running(self, size: int) -> Wave:
        pieces, offset, missing = [], self.offset, size
        for recording in self.flow:
            pieces.append(recording.load(offset, missing / SAMPLE_RATE)[:missing])
            missing, offset = missing - len(pieces[-1]), 0.0
            if missing <= 0:
                break
        return np.concatenate(pieces)


def _frame_powers(wave: Wave) -> NDArray[np.float64]:
    """The mean square of every whole frame of 20 ms."""
    frames = wave[: len(wave) // GRID.stride * GRID.stride].reshape(-1, GRID.stride)
    return np.square(frames, dtype=np.float64).mean(1)


def _power(wave: Wave) -> float:
    """Mean square of the louder half of 20 ms frames: pauses do not count."""
    powers = np.sort(_frame_powers(wave))
    if not len(powers):
        return float(np.square(wave, dtype=np.float64).mean()) if len(wave) else 0.0
    return float(powers[len(powers) // 2 :].mean())


def trimmed(wave: Wave) -> Wave:
    """A word (T,) without what is around it: from the first to the last 20 ms within 30 dB of the loudest."""
    power = _frame_powers(wave)
    if not len(power):
        return wave
    loud = np.flatnonzero(power >= power.max() * 1e-3)
    return wave[int(loud[0]) * GRID.stride : int(loud[-1] + 1) * GRID.stride]


def deal(recordings: Sequence[Recording]) -> dict[str, list[Recording]]:
    """Running speech by part: as its manifest says where that names all parts, else 3, 1 and 6 tenths of the speakers.

    Of fewer than four speakers the recordings are dealt.
    """
    if {r.split for r in recordings} >= set(SPLITS):
        return {part: [r for r in recordings if r.split == part] for part in SPLITS}
    few = len({r.speaker for r in recordings} - {None}) < 4
    units = sorted({_unit(r, few) for r in recordings}, key=lambda unit: fraction("negatives", unit))
    if len(units) < 3:
        raise UserError("The negatives of a detection task need at least three recordings: give more running speech.")
    ends = [0, max(1, round(0.3 * len(units))), 0, len(units)]
    ends[2] = max(ends[1] + 1, round(0.4 * len(units)))
    part_of = {unit: part for k, part in enumerate(SPLITS) for unit in units[ends[k] : ends[k + 1]]}
    return {part: [r for r in recordings if part_of[_unit(r, few)] == part] for part in SPLITS}


def _unit(recording: Recording, few: bool) -> str:
    return recording.id if few or recording.speaker is None else recording.speaker


def keyword_scenes(
    words: Sequence[tuple[Recording, str]], flow: Sequence[Recording], silent: bool = False
) -> list[tuple[Montage, str]]:
    """(recording of one word, its label) and running speech → one scene for each word in the middle of it, and its label.

    silent: another scene for each, in silence
    """
    running, scenes = _Flow(flow, "scenes"), []
    for word, label in words:
        around, offset = running.draw(SCENE_SECONDS)
        scenes.append((_montage(f"keyword {word.id}", SCENE_SECONDS, word, around, offset, word), label))
        if silent:
            scenes.append((_montage(f"silent {word.id}", SCENE_SECONDS, word, (), 0.0, word), label))
    return scenes


def stretches(flow: Sequence[Recording]) -> list[Montage]:
    """All running speech, one stretch after the other; what is left of less than a stretch is left out."""
    found: list[Montage] = []
    pieces: list[Recording] = []
    offset = filled = 0.0
    for recording in flow:
        begin = 0.0
        while recording.seconds - begin > 0.5:
            if not pieces:
                offset = begin
            pieces.append(recording)
            used = min(recording.seconds - begin, STRETCH_SECONDS - filled)
            filled, begin = filled + used, begin + used
            if filled >= STRETCH_SECONDS - 1e-9:
                parts = tuple(pieces)
                name = f"stretch {len(found)}"
                found.append(_montage(name, STRETCH_SECONDS, None, parts, offset, pieces[0]))
                pieces, filled = [], 0.0
    return found


def _montage(
    name: str, seconds: float, word: Recording | None, flow: tuple[Recording, ...], offset: float, first: Recording
) -> Montage:  # fmt: skip
    """A montage that stands for `first` where speakers, files and groups are compared."""
    speakers = {r.speaker for r in flow} if word is None else {word.speaker}
    speaker = speakers.pop() if len(speakers) == 1 else None
    start = first.start + (offset if word is None and flow else 0.0)
    group = first.group
    return Montage(name, first.path, seconds, start, speaker, first.label, None, group, {}, word, flow, offset)


class _Flow:
    """Draws places in running speech: a function of the number of the draw."""

    def __init__(self, recordings: Iterable[Recording], purpose: str):
        self.recordings = [r for r in recordings if r.seconds > 0.5]
        if not self.recordings:
            raise UserError("The negatives of a detection task have no speech of half a second or more: give more.")
        self.ends = np.cumsum([r.seconds for r in self.recordings])
        self.rng = generator("flow", purpose)

    def draw(self, seconds: float) -> tuple[tuple[Recording, ...], float]:
        """Recordings that follow each other for `seconds` from somewhere on, from the first again after the last."""
        at = float(self.rng.random()) * float(self.ends[-1])
        number = int(np.searchsorted(self.ends[:-1], at, side="right"))
        first = self.recordings[number]
        offset = max(0.0, min(at - float(self.ends[number]) + first.seconds, first.seconds - 0.1))
        chosen, left = [first], seconds - (first.seconds - offset)
        while left > 0:
            number = (number + 1) % len(self.recordings)
            chosen.append(self.recordings[number])
            left -= self.recordings[number].seconds
        return tuple(chosen), offset
