"""Synthetic people: a voice variant with an accent and habits of pitch, tempo, melody and vocal tract; and their moods.

The voices of train, valid and test are different variants, not the same ones at another pitch: a model that is tested
on a test speaker was never trained on its resonances.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft

from ..audio.io import SAMPLE_RATE
from ..randomness import generator
from .espeak import Speech, speak

ACCENTS = tuple(
    ["en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-us-nyc", "en-gb-x-gbclan", "en-gb-x-gbcwmd"]
)

_TRAIN = """Alex Andy Annie AnxiousAndy Denis Diogo Gene Hugo Jacky Mike Storm Tweaky adam aunty ed f1 f3 f4 grandma
grandpa iven3 iven4 john m1 m2 m3 m4 m5 m6 m8 max miguel mike2 norbert pablo pedro rob shelby steph victor"""
_VALID = "belinda boris linda m7 marcelo Nguyen paul travis"
_TEST = "Andrea Lee Mario Michael anika antonio david edward f2 f5 gustave klatt3 klatt4 quincy sandro"

# Variants of one family (the same resonances, other trimmings) are on one side. Left out are whispers, robots, echoes,
# near duplicates (log-mel spectra of the same phones within 2 dB) and the two that are not reproducible to the sample.
VARIANTS = {"train": tuple(_TRAIN.split()), "valid": tuple(_VALID.split()), "test": tuple(_TEST.split())}


@dataclass(frozen=True)
class Manner:
    """How something is said, relative to the speaker's habits; the default is neutral."""

    tempo: float = 1.0  # factor on the rate
    pitch: float = 0.0  # steps of espeak-ng's scale of 0 to 99
    melody: float = 1.0  # factor on the pitch range
    tilt: float = 0.0  # dB per octave above 200 Hz: vocal effort, pressed (+) to slack (-)
    tremor: float = 0.0  # depth of a slow wavering of the amplitude, 0 to 1
    word_gap: int = 0  # pause between words in units of 10 ms


@dataclass(frozen=True)
class Speaker:
    """One synthetic person; `pitch` and `pitch_range` are espeak-ng's 0 to 99, `rate` words per minute."""

    id: str
    voice: str
    rate: int
    pitch: int
    pitch_range: int
    formants: float  # factor on the resonances: above 1 a shorter vocal tract

    def say(self, text: str, manner: Manner | None = None) -> Speech:
        """Speak `text`; the same speaker, text and manner give the same samples. Raises as `espeak.speak`."""
        manner = manner or Manner()
        speech = speak(
            text, self.voice, rate=round(self.rate * manner.tempo), pitch=round(self.pitch + manner.pitch),
            pitch_range=round(self.pitch_range * manner.melody), word_gap=manner.word_gap, formants=self.formants,
        )  # fmt: skip
        wave = speech.wave
        if manner.tilt:
            wave = _tilted(wave, manner.tilt)
        if manner.tremor:
            time = np.arange(len(wave)) / SAMPLE_RATE
            wave = wave * (1 - manner.tremor * (0.5 + 0.5 * np.sin(2 * np.pi * 6.5 * time))).astype(np.float32)
        return Speech(wave, speech.words, speech.phones)


def speakers(split: str, count: int, seed: int = 0) -> list[Speaker]:
    """`count` speakers of "train", "valid" or "test"; no voice variant occurs in two splits."""
    variants = VARIANTS[split]
    people = []
    for index in range(count):
        # Every variant once before any twice; the order changes with the seed.
        order = generator(seed, "variants", split, index // len(variants)).permutation(len(variants))
        rng = generator(seed, "speaker", split, index)
        people.append(
            Speaker(
                id=f"{split}-{index:03d}",
                voice=f"{ACCENTS[int(rng.integers(len(ACCENTS)))]}+{variants[int(order[index % len(variants)])]}",
                rate=int(rng.integers(140, 211)),
                pitch=int(rng.integers(30, 76)),
                pitch_range=int(rng.integers(35, 71)),
                formants=round(float(rng.uniform(0.92, 1.14)), 3),
            )
        )
    return people


def _tilted(wave: np.ndarray, slope: float) -> np.ndarray:
    """Add `slope` dB per octave from 200 Hz to 4 kHz, flat outside."""
    length = scipy.fft.next_fast_len(len(wave), real=True)
    octaves = np.log2(np.clip(scipy.fft.rfftfreq(length, 1 / SAMPLE_RATE), 200, 4000) / 200)
    shaped = scipy.fft.irfft(scipy.fft.rfft(wave, length) * 10 ** (slope * octaves / 20), length)
    return shaped[: len(wave)].astype(np.float32)
