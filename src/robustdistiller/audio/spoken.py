"""The built-in spoken corpus: synthetic voices, sentences for distillation, and three labelled tasks, made on the spot."""

from __future__ import annotations

from dataclasses import dataclass

from ..randomness import generator
from .espeak import Speech, speak

ACCENTS = (
    *("en-us", "en", "en-gb-x-rp", "en-gb-scotland"),
    *("en-029", "en-us-nyc", "en-gb-x-gbclan", "en-gb-x-gbcwmd"),
)

# Variants of one family (same resonances, other trimmings) stay on one side; left out are whispers, robots, echoes, near
# duplicates (log-mel spectra of the same phones within 2 dB) and the two whose samples are not reproducible.
VARIANTS = {
    "train": """Alex Andy Annie AnxiousAndy Denis Diogo Gene Hugo Jacky Mike Storm Tweaky adam aunty ed f1 f3 f4 grandma grandpa
iven3 iven4 john m1 m2 m3 m4 m5 m6 m8 max miguel mike2 norbert pablo pedro rob shelby steph victor""".split(),
    "valid": "belinda boris linda m7 marcelo Nguyen paul travis".split(),
    "test": "Andrea Lee Mario Michael anika antonio david edward f2 f5 gustave klatt3 klatt4 quincy sandro".split(),
}


@dataclass(frozen=True)
class Speaker:
    """A synthetic person: a voice variant with an accent, and habits of pitch, tempo, melody and vocal tract length."""

    id: str
    voice: str
    rate: int
    pitch: int
    pitch_range: int
    formants: float

    def say(self, text: str) -> Speech:
        return speak(
            text,
            self.voice,
            rate=self.rate,
            pitch=self.pitch,
            pitch_range=self.pitch_range,
            formants=self.formants,
        )


def speakers(split: str, count: int, seed: int = 0) -> list[Speaker]:
    """`count` speakers of "train", "valid" or "test"; no voice variant occurs in two splits."""
    variants = VARIANTS[split]
    people = []
    for index in range(count):
        rng = generator(seed, "speaker", split, index)
        # Every variant once before any twice; the order changes with the seed.
        order = generator(seed, "variants", split, index // len(variants)).permutation(len(variants))
        variant = variants[int(order[index % len(variants)])]
        people.append(
            Speaker(
                id=f"{split}-{index:03d}",
                voice=f"{ACCENTS[int(rng.integers(len(ACCENTS)))]}+{variant}",
                rate=int(rng.integers(140, 211)),
                pitch=int(rng.integers(30, 76)),
                pitch_range=int(rng.integers(35, 71)),
                formants=round(float(rng.uniform(0.92, 1.14)), 3),
            )
        )
    return people
