"""Noise: recorded, babble made of the training speech itself, and what needs no files (white, rain, hum, music, …).

A mixture is described by `NoiseDraw`s, plain values from which `NoiseBank.fetch` makes the same samples again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from ..audio.io import SAMPLE_RATE
from ..audio.manifest import Recording
from ..config import NoiseMix
from ..errors import AudioError, UserError, closest
from ..randomness import generator
from ..synthetic.noises import SYNTHETIC_NOISES
from .clips import FRAME, Clips, Complaints, by_id, looped
from .convolution import LOWEST_HZ, fft_size, irfft, mean_power, rfft

log = logging.getLogger(__name__)

SLOPES = {"white": 0.0, "pink": 0.5, "brown": 1.0}  # amplitude falls as 1 / f ** slope
SYNTHETIC_KINDS = (*SLOPES, *SYNTHETIC_NOISES)  # the kinds that need no recordings
KINDS = ("recorded", "babble", *SYNTHETIC_KINDS)
SILENCE = 1e-14  # power, -140 dB of full scale: below, there is nothing that an SNR could refer to
QUIET = 1e-6  # -60 dB: a stretch so far below its own recording's level is a pause, not a noise
TRIES = 5


@dataclass(frozen=True)
class Voice:
    """One talker of a babble: recordings of one speaker one after the other, from `offset` seconds on, looped."""

    sources: tuple[str, ...]
    offset: float


@dataclass(frozen=True)
class NoiseDraw:
    """One noise as plain values: where it comes from (recorded), or how it is made (all other kinds)."""

    kind: str
    source: str | None = None  # id of the recording
    offset: float = 0.0  # seconds into the recording
    seed: int = 0  # of the synthetic kinds
    voices: tuple[Voice, ...] = ()  # of babble
    note: str | None = None  # what had to be replaced, and why

    @property
    def replaced(self) -> bool:
        """Whether white noise stands for recordings that were asked for but cannot be used."""
        return self.kind == "white" and self.note is not None


class NoiseBank:
    """All noises that may be drawn. A kind that lacks its recordings gives its weight to the others.

    Args:
        recordings: Of noise; their order does not matter.
        kinds: The share of every kind.
        speech: What babble is mixed from.
        cache_mb: Megabytes of decoded audio that a process keeps.
        babble_voices: Fewest and most voices in babble.

    Raises:
        UserError: No kind is left.
    """

    def __init__(
        self,
        recordings: Iterable[Recording] = (),
        kinds: NoiseMix = NoiseMix(),
        speech: Iterable[Recording] = (),
        cache_mb: float = 512.0,
        babble_voices: tuple[int, int] = (3, 7),
    ) -> None:
        self._recordings = by_id(recordings)
        self._ids = list(self._recordings)
        self._speech = by_id(speech)
        self._talkers: dict[str, list[str]] = {}  # speaker -> ids; an unknown speaker talks in one recording only
        for id, recording in self._speech.items():
            self._talkers.setdefault(recording.speaker or f"?{id}", []).append(id)
        self._talker_names = sorted(self._talkers)
        self._babble_voices = babble_voices
        self._clips = Clips(cache_mb)
        self._complaints = Complaints("Recording")
        self.weights = self._usable(kinds)

    def __len__(self) -> int:
        return len(self._ids)

    def _usable(self, kinds: NoiseMix) -> dict[str, float]:
        weights = {kind: getattr(kinds, kind) for kind in KINDS if getattr(kinds, kind) > 0}
        absent = [kind for kind, there in (("recorded", self._ids), ("babble", self._speech)) if not there]
        usable = {kind: weight for kind, weight in weights.items() if kind not in absent}
        if weights and not usable:
            raise UserError(
                f"There are no recordings for {' and '.join(weights)} noise: pass --noise with a folder of them, "
                "or choose synthetic ones, e.g. --set environment.noise_kinds='{recorded: 0, white: 1, pink: 1}'."
            )
        for kind in weights.keys() - usable.keys():
            log.warning("No recordings for %s noise: its share goes to %s.", kind, ", ".join(usable))
        return usable

    def draw(
        self,
        rng: np.random.Generator,
        seconds: float,
        noise: str | None = None,
        utterance: str | None = None,
        speaker: str | None = None,
    ) -> NoiseDraw:
        """Draw one noise for an utterance.

        Args:
            rng: Decides everything.
            seconds: How long the utterance is.
            noise: A kind, the id of a recording, or a label of recordings; by default the kind follows the weights.
            utterance: A recording that is not to be in babble.
            speaker: Who is not to be in babble.

        Returns:
            What `fetch` needs. Pauses inside a recording are drawn anew a few times; a recording that is silent or cannot be
            read gives way, which the draw notes.

        Raises:
            UserError: There is no such noise, or none at all.
        """
        pick, seed = rng.random(2)
        pool = self._ids
        if noise is None:
            if not self.weights:
                raise UserError("All noise_kinds are 0: set one of them above 0.")
            kind = choose_kind(self.weights, pick)
        elif noise in KINDS and not (noise in SYNTHETIC_NOISES and self._has(noise)):
            kind = noise  # a recorded rain goes before a synthetic one
        else:
            kind, pool = "recorded", self._matching(noise)
        count = max(1, round(seconds * SAMPLE_RATE))
        if kind == "recorded":
            return self._draw_recorded(rng, pool, count, int(seed * 2**53))
        if kind == "babble":
            return self._draw_babble(rng, seconds, int(seed * 2**53), utterance, speaker)
        return NoiseDraw(kind, seed=int(seed * 2**53))

    def fetch(self, draws: Sequence[NoiseDraw], num_samples: int) -> np.ndarray:
        """Make noises.

        Args:
            draws: What `draw` gave.
            num_samples: T.

        Returns:
            Their mixture, each at unit power, (T,) float32.

        Raises:
            UserError: A recording is not in this bank.
        """
        total = np.zeros(num_samples, np.float32)
        for draw in draws:
            wave = self._make(draw, num_samples)
            power = mean_power(wave)
            if not power > SILENCE:
                name = draw.source or draw.kind
                self._complaints(name, AudioError("it is silent here, and white noise takes its place.", "silent"))
                wave = coloured("white", draw.seed, num_samples)
                power = mean_power(wave)
            total += wave * np.float32(power**-0.5)
        return total

    def _make(self, draw: NoiseDraw, num_samples: int) -> np.ndarray:
        if draw.kind == "recorded":
            if draw.source not in self._recordings:
                raise UserError(f"The noise '{draw.source}' is not in this bank: pass the --noise it is from.")
            return self._clips.read(self._recordings[draw.source], round(draw.offset * SAMPLE_RATE), num_samples)
        if draw.kind == "babble":
            total = np.zeros(num_samples, np.float32)
            for voice in draw.voices:
                wave = self._talk(voice, num_samples)
                power = mean_power(wave)
                if power > SILENCE:
                    total += wave * np.float32(power**-0.5)
            return total
        if draw.kind in SYNTHETIC_NOISES:
            return SYNTHETIC_NOISES[draw.kind](generator(draw.seed, "noise"), num_samples)
        return coloured(draw.kind, draw.seed, num_samples)

    def _has(self, noise: str) -> bool:
        return noise in self._recordings or any(r.label == noise for r in self._recordings.values())

    def _matching(self, noise: str) -> list[str]:
        if noise in self._recordings:
            return [noise]
        pool = [id for id in self._ids if self._recordings[id].label == noise]
        if not pool:
            labels = {recording.label for recording in self._recordings.values() if recording.label}
            raise UserError(
                f"'{noise}' is no kind of noise, no label and no id of a noise recording: choose one of "
                f"{', '.join([*KINDS, *sorted(labels)[:12]])}.{closest(noise, [*KINDS, *labels, *self._ids])}"
            )
        return pool

    def _draw_recorded(self, rng: np.random.Generator, pool: list[str], count: int, seed: int) -> NoiseDraw:
        if not pool:
            raise UserError("There are no noise recordings: pass --noise with a folder of them.")
        note = None
        for _ in range(TRIES):
            id = pool[int(rng.random() * len(pool))]
            recording = self._recordings[id]
            offsets = rng.random(TRIES)
            try:
                level, total = self._clips.level(recording), self._clips.num_samples(recording)
                if not level > SILENCE:
                    note = f"{id} is silent: white noise in its place"
                    break
                for u in offsets:
                    start = int(u * (total - count + 1 if total >= count else total))
                    if mean_power(self._clips.read(recording, start, count)) > level * QUIET:
                        return NoiseDraw("recorded", id, start / SAMPLE_RATE, seed, note=note)
                return NoiseDraw("recorded", id, self._where_it_sounds(recording, offsets, count) / SAMPLE_RATE, seed)
            except AudioError as error:
                self._complaints(id, error)
                note = f"{id} cannot be read ({error.reason})"
        return NoiseDraw("white", seed=seed, note=note)

    def _where_it_sounds(self, recording: Recording, uniform: np.ndarray, count: int) -> int:
        """The first sample of a stretch around a frame that is not silent, for a recording that is so mostly."""
        frames = self._clips.frame_powers(recording)
        sounding = np.flatnonzero(frames > 0.01 * frames.mean())
        frame = int(sounding[int(uniform[0] * len(sounding))]) * FRAME
        start = frame - int(uniform[1] * max(count - FRAME, 0))
        return min(max(start, 0), max(self._clips.num_samples(recording) - count, 0))

    def _draw_babble(
        self, rng: np.random.Generator, seconds: float, seed: int, utterance: str | None, speaker: str | None
    ) -> NoiseDraw:
        if not self._speech:
            raise UserError("Babble is mixed from speech, and there is none: pass --speech, or take another kind.")
        low, high = self._babble_voices
        count = low + int(rng.random() * (high - low + 1))
        names = self._talker_names
        if speaker is None and utterance in self._speech:
            speaker = self._speech[utterance].speaker
        picked = [names[i] for i in rng.choice(len(names), min(count + 1, len(names)), replace=False, shuffle=True)]
        others = [name for name in picked if name not in (speaker, f"?{utterance}")][:count]
        note = None if others else "no other speaker for the babble"
        # With few speakers some talk twice, but never the one who is to be understood, if there is any other.
        chosen = list(islice(cycle(others or picked), count))
        voices = tuple(self._draw_voice(rng, name, seconds, utterance) for name in chosen)
        return NoiseDraw("babble", seed=seed, voices=voices, note=note)

    def _draw_voice(self, rng: np.random.Generator, name: str, seconds: float, utterance: str | None) -> Voice:
        ids = self._talkers[name]
        order = [ids[i] for i in rng.permutation(len(ids))]
        others = [id for id in order if id != utterance] or order
        offset = int(rng.random() * self._speech[others[0]].seconds * SAMPLE_RATE) / SAMPLE_RATE
        sources, lasting = [], -offset
        for id in others:
            sources.append(id)
            lasting += self._speech[id].seconds
            if lasting >= seconds:
                break
        return Voice(tuple(sources), offset)

    def _talk(self, voice: Voice, num_samples: int) -> np.ndarray:
        lengths: dict[str, int] = {}
        for id in voice.sources:
            if id not in self._speech:
                raise UserError(f"The babble recording '{id}' is not in this bank: pass the --speech it is from.")
            try:
                lengths[id] = self._clips.num_samples(self._speech[id])
            except AudioError as error:
                self._complaints(id, error)
        if not lengths:
            return np.zeros(num_samples, np.float32)

        def read(start: int, count: int) -> np.ndarray:
            """A part of the voice's recordings one after the other; only the recordings that it touches are decoded."""
            pieces = [np.zeros(0, np.float32)]
            for id, length in lengths.items():
                if start < length and count > 0:
                    pieces.append(self._speech_of(id, start, min(count, length - start)))
                    count -= len(pieces[-1])
                start = max(start - length, 0)
            return np.concatenate(pieces)

        return looped(read, sum(lengths.values()), round(voice.offset * SAMPLE_RATE), num_samples)

    def _speech_of(self, id: str, start: int, count: int) -> np.ndarray:
        try:
            return self._clips.read(self._speech[id], start, count)
        except AudioError as error:
            self._complaints(id, error)
            return np.zeros(count, np.float32)


def coloured(kind: str, seed: int, num_samples: int) -> np.ndarray:
    """White, pink (-3 dB an octave) or brown (-6 dB an octave) Gaussian noise: (T,) float32, level arbitrary."""
    if kind not in SLOPES:
        raise UserError(f"Unknown kind of noise '{kind}': choose one of {', '.join(KINDS)}.{closest(kind, KINDS)}")
    rng = generator(seed, "noise")
    if not SLOPES[kind]:
        return rng.standard_normal(num_samples, np.float32)
    size = fft_size(max(num_samples, SAMPLE_RATE))
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    shape = np.where(hertz < LOWEST_HZ, 0.0, np.maximum(hertz, LOWEST_HZ) ** -SLOPES[kind]).astype(np.float32)
    return irfft(rfft(rng.standard_normal(size, np.float32), size) * shape, size)[:num_samples]


def choose_kind(weights: dict[str, float], uniform: float) -> str:
    """The kind that a `uniform` number in [0, 1) stands for, each with a probability of its share of all weights."""
    threshold = uniform * sum(weights.values())
    for kind, weight in weights.items():
        threshold -= weight
        if threshold < 0:
            return kind
    return max(weights, key=lambda kind: weights[kind])  # rounding left a trace
