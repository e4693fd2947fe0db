"""Make the synthetic part of the mini teacher's training speech with eSpeak NG: many voices, accents, pitches and rates.

    python benchmarks/mini_teacher_speech.py --out DATA/espeak --hours 12

writes FLAC files at 16 kHz and `manifest.jsonl`. Each recording is a pure function of (seed, number). The voices are the
human-like variants of the pip package `espeakng-loader`; nothing but clean synthetic speech is made.
"""

from __future__ import annotations

from robustdistiller.process import prepare_process

prepare_process()  # before torch is imported

import argparse
from pathlib import Path

import numpy as np

from robustdistiller.audio.io import SAMPLE_RATE, write_audio
from robustdistiller.errors import UserError
from robustdistiller.files import write_jsonl
from robustdistiller.randomness import generator
from robustdistiller.synthetic.espeak import speak


def _words(text: str) -> list[str]:
    return text.split()


def _phrases(text: str) -> list[str]:
    return text.replace("\n", "|").split("|")


ACCENTS = _words("en en-us en-gb-scotland en-gb-x-rp en-gb-x-gbclan en-gb-x-gbcwmd en-029 en-us-nyc")
VARIANTS = _words("""\
f1 f2 f3 f4 f5 m1 m2 m3 m4 m5 m6 m7 m8 Denis edward caleb Mike Nguyen Gene Gene2 belinda antonio gustave pablo
ed quincy klatt2 klatt3 sandro mike2 RicishayMax adam robert Diogo steph3 Lee anika RicishayMax3 Mario Reed Annie Storm
pedro Andrea rob john kaukovalta Henrique iven2 aunty benjamin grandma klatt boris edward2 ian Hugo Michael paul steph2
norbert steph miguel Alicia klatt4 victor linda Andy iven3 Alex Jacky grandpa iven RicishayMax2 marcelo david
zac max michel klatt6 klatt5 shelby announcer travis Marco""")
COMMANDS = _words("""\
yes no up down left right on off stop go bed bird cat dog happy house marvin sheila tree wow zero one two three
four five six seven eight nine backward forward follow learn visual open close start play pause louder quieter lights""")
SUBJECTS = _phrases("""\
the children|my sister|an old man|the teacher|our neighbour|she|he|they|we|the doctor|a young woman|the driver
the farmer|nobody|everyone in the village|the captain|this machine|the black dog|his mother|her brother|the judge
the king|two soldiers|the kitchen light|the radio|the weather|a strange noise|the paper|the president|these people""")
VERBS = _phrases("""\
wanted|opened|carried|found|liked|watched|bought|forgot|turned on|turned off|asked for|talked about|looked at
painted|measured|broke|washed|followed|described|heard|kept|finished|remembered|moved|pushed|joined|chose|thanked
was thinking of|would rather have|could never stand|had always known|gave away|laughed at""")
OBJECTS = _phrases("""\
the yellow house|a cup of coffee|the bedroom lamp|three boxes of oranges|a large iced latte with milk|the window
some fresh bread|the volume|the old church|a good story|every single word|the measure of things|her azure eyes
the garage door|a small espresso|the answer|his greasy shirt|an hour of music|the heating in the kitchen|the first page
a dark suit|the long road|the ship in the harbour|enough sugar|the noise of the engine|a thousand pounds|her own voice
the joy of youth|his pleasure|the usual vision|a boy with a toy|the thin cloth|both of them
the sharp edge of a judge""")
ENDINGS = _phrases("""\
|| yesterday morning| before lunch| at the end of the year| very quickly| in the rain| without a word
 again and again| for the last time| near the river| on Thursday| when the sun came up| under the bridge
 because it was cheap| with great care
 as usual| in nineteen eighty four| at half past seven| though nobody believed it| please""")
ONSETS = _phrases("|b|p|t|d|k|g|f|v|th|s|z|sh|ch|j|m|n|l|r|w|y|h|st|tr|pl|gr|sk|bl|fr|qu|spr")
NUCLEI = _words("a e i o u ee oo ay ow oy ar er or igh air ear oa")
CODAS = _phrases("|n|m|t|d|s|z|k|l|p|b|g|ng|sh|ch|th|f|v|st|nd|lk|mp|x")


def text(rng: np.random.Generator) -> str:
    """A sentence (half of the time), one to four command words, or invented words that cover rare sound sequences."""
    kind = rng.random()
    pick = lambda words: words[rng.integers(len(words))]  # noqa: E731
    if kind < 0.5:
        start = pick(["", "", "", "well, ", "and then ", "I think ", "why do you say that ", "please tell me if "])
        return f"{start}{pick(SUBJECTS)} {pick(VERBS)} {pick(OBJECTS)}{pick(ENDINGS)}"
    if kind < 0.8:
        return ", ".join(pick(COMMANDS) for _ in range(rng.integers(1, 5)))
    syllable = lambda: pick(ONSETS) + pick(NUCLEI) + pick(CODAS)  # noqa: E731
    return " ".join("".join(syllable() for _ in range(rng.integers(1, 4))) for _ in range(rng.integers(2, 6)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=12.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows, total, number = [], 0.0, 0
    while total < options.hours * 3600:
        rng = generator(options.seed, "mini teacher", number)
        voice = f"{ACCENTS[rng.integers(len(ACCENTS))]}+{VARIANTS[rng.integers(len(VARIANTS))]}"
        pitch, spread, rate = (int(rng.integers(low, high)) for low, high in ((15, 90), (20, 95), (110, 260)))
        words, number = text(rng), number + 1
        try:
            wave = speak(words, voice, rate=rate, pitch=pitch, pitch_range=spread).wave
        except UserError:  # an invented word that the voice cannot say
            continue
        peak = float(np.abs(wave).max())
        if wave.size < SAMPLE_RATE // 3 or peak < 0.01:
            continue
        path = f"{number // 1000:03d}/{number:06d}.flac"
        write_audio(options.out / path, wave * min(1.0, 0.9 / peak))
        seconds = wave.size / SAMPLE_RATE
        row = {"id": f"espeak-{number:06d}", "path": path, "duration": round(seconds, 4), "speaker": voice}
        rows.append(row | {"split": "train", "text": words})
        total += seconds
    write_jsonl(options.out / "manifest.jsonl", rows)
    print(f"{len(rows)} recordings, {total / 3600:.2f} h, {len({r['speaker'] for r in rows})} voices in {options.out}")


if __name__ == "__main__":
    main()
