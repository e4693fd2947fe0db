"""The built-in spoken corpus, made on the spot by synthetic voices: sentences to distil on, and three labelled tasks.

All of it is synthetic: formant synthesis reading generated texts, with the faint hiss of a microphone. It shows that
the method works where there are no recordings at hand; a number measured on it says nothing about people. The tasks are
modelled on those of the paper:

- ``keywords``: one of ten command words, or another word (``_unknown_``), in a second of audio (as Speech Commands);
- ``intents``: smart-home requests with the slots action, object and location (as Fluent Speech Commands);
- ``styles``: five ways of speaking, set by tempo, melody and vocal effort, in place of emotions (as IEMOCAP).

Speakers of train, valid and test have different voice variants; the sentences of split "train" use only train speakers.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from ..audio.io import SAMPLE_RATE
from ..errors import UserError, closest
from ..files import StrPath, digest, read_json, write_json, write_jsonl, writing
from ..progress import Progress
from ..randomness import generator
from .espeak import Interval, Speech
from .speakers import Manner, Speaker, speakers
from .texts import ACTIONS, CARRIERS, KEYWORDS, LOCATIONS, OTHER_WORDS, intent, sentence

VERSION = 2  # of everything that decides the samples: a cached corpus of another version is not used
TASKS = ("keywords", "intents", "styles")

# Mean manner of each style; every utterance departs from it, and every speaker has habits of their own, so that neither
# pitch nor tempo nor brightness alone tells the style.
STYLES = {
    "neutral": Manner(),
    "excited": Manner(tempo=1.18, pitch=12, melody=1.8, tilt=0.5),
    "sad": Manner(tempo=0.8, pitch=-10, melody=0.4, tilt=-1.5, word_gap=2),
    "angry": Manner(tempo=1.1, pitch=0, melody=0.6, tilt=1.5),
    "afraid": Manner(tempo=1.15, pitch=14, melody=0.5, tilt=-0.5, tremor=0.6),
}


@dataclass(frozen=True)
class Size:
    """How much to make: sentences (train, valid), utterances of each task and speakers (train, valid, test)."""

    sentences: tuple[int, int]
    utterances: tuple[int, int, int]
    speakers: tuple[int, int, int]


SIZES = {
    "quick": Size((480, 40), (600, 200, 400), (80, 16, 30)),  # 25 minutes of sentences, 2.1 h of tasks, 140 MB
    "full": Size((9600, 300), (4000, 800, 1600), (400, 40, 90)),  # 8 h of sentences, 11 h of tasks, 1.1 GB
    "tasks": Size((0, 0), (4000, 800, 1600), (80, 16, 30)),  # what `tasks/spoken-*.yaml` ask for
}


@dataclass(frozen=True)
class SpokenCorpus:
    """A corpus on disk: its manifests, each with a `split` in every line."""

    folder: Path
    speech: Path  # sentences of train and valid speakers
    tasks: dict[str, Path]  # by name: keywords, intents, styles
    hours: dict[str, float]  # of each manifest


def build_corpus(
    out: StrPath,
    seed: int = 0,
    size: str | Size = "quick",
    workers: int | None = None,
    progress: Progress | None = None,
    parts: Sequence[str] = ("speech", *TASKS),
) -> SpokenCorpus:
    """Make the corpus in a folder of its own under `out`, or open it where it was made before.

    The files depend on (version, seed, size) alone, not on `workers` (threads; by default one per
    processor, at most 4), nor on which `parts` are made: "speech" and the tasks.
    FLAC at 16 kHz; manifests in the house format with text, words and phones ([start, end, symbol] in seconds).
    Raises `UserError` when espeakng_loader is missing, the size is unknown or the disk is full; what is half made is
    removed.
    """
    wanted = _size(size)
    name = size if isinstance(size, str) else "custom"
    key = digest({"version": VERSION, "seed": seed, **asdict(wanted)})
    some = "" if set(parts) == {"speech", *TASKS} else "".join(f"-{part}" for part in parts)
    folder = Path(out) / f"spoken-{name}-{key}{some}"
    if not (folder / "corpus.json").exists():
        with _appearing(folder) as temporary:
            _make(temporary, seed, wanted, parts, workers or min(os.cpu_count() or 1, 4), progress)
    summary = read_json(folder / "corpus.json", "corpus")
    tasks = {task: folder / f"{task}.jsonl" for task in TASKS if task in parts}
    return SpokenCorpus(folder, folder / "speech.jsonl", tasks, summary["hours"])


def _size(size: str | Size) -> Size:
    if isinstance(size, Size):
        return size
    if size not in SIZES:
        raise UserError(f"There is no corpus of size '{size}': choose {' or '.join(SIZES)}.{closest(size, SIZES)}")
    return SIZES[size]


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` in one step, or disappears: thousands of files, one replacement."""
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{folder.name}-*"):  # by a process that was killed
            if time.time() - left.stat().st_mtime > 86_400:
                shutil.rmtree(left, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            with contextlib.suppress(OSError):  # another process was faster: the result is the same
                os.replace(temporary, folder)
            if not (folder / "corpus.json").exists():
                raise UserError(f"The folder {folder} holds something else: remove it or choose another --out.")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _make(folder: Path, seed: int, size: Size, parts: Sequence[str], workers: int, progress: Progress | None) -> None:
    """Fill `folder`: plan everything first, speak it in threads (the samples are a function of the plan alone)."""
    splits = ("train", "valid", "test")
    people = {split: speakers(split, count, seed) for split, count in zip(splits, size.speakers, strict=True)}
    counts = zip(splits, size.sentences, strict=False)
    plans: list[tuple[str, str, int]] = [("speech", split, i) for split, count in counts for i in range(count)]
    for task in TASKS:
        plans += [(task, split, i) for split, n in zip(splits, size.utterances, strict=True) for i in range(n)]
    plans = [plan for plan in plans if plan[0] in parts]
    for name in parts:
        (folder / name).mkdir()

    def job(plan: tuple[str, str, int]) -> dict[str, Any]:
        return _utterance(folder, seed, people[plan[1]], *plan)

    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in parts}
    with ThreadPoolExecutor(workers) as pool:
        try:
            for done, (plan, row) in enumerate(zip(plans, pool.map(job, plans), strict=True), 1):
                rows[plan[0]].append(row)
                if progress is not None:
                    progress(done, len(plans))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    for name, lines in rows.items():
        write_jsonl(folder / f"{name}.jsonl", lines)
    hours = {name: round(sum(row["duration"] for row in lines) / 3600, 3) for name, lines in rows.items()}
    about = {"hours": hours, "synthetic": "espeak-ng, generated texts"}
    write_json(folder / "corpus.json", {"version": VERSION, "seed": seed, **asdict(size), **about})


def _utterance(folder: Path, seed: int, people: list[Speaker], name: str, split: str, index: int) -> dict[str, Any]:
    """Speak and write one file; its manifest line."""
    rng = generator(seed, name, split, index)
    # Each speaker once before any twice, independently of the labels, which cycle with the index.
    order = generator(seed, name, split, "speakers", index // len(people)).permutation(len(people))
    speaker = people[int(order[index % len(people)])]
    text, speech, labels = _SAYINGS[name](speaker, split, index, rng)
    # The level says nothing about the label. Peaks stay inside 16 bits.
    level = 10 ** (rng.uniform(-30, -20) / 20) / max(float(np.sqrt(np.mean(speech.wave**2))), 1e-6)
    wave = speech.wave * min(level, 0.9 / max(float(np.abs(speech.wave).max()), 1e-6))
    wave = wave + _microphone(len(wave), float(np.sqrt(np.mean(wave**2))), rng)
    path = f"{name}/{split}-{index:05d}.flac"
    encoded = io.BytesIO()  # in memory, because libsndfile would wait for the disk at every file
    soundfile.write(encoded, wave, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
    (folder / path).write_bytes(encoded.getvalue())
    return {
        "path": path, "duration": round(speech.seconds, 6), "sample_rate": SAMPLE_RATE,
        "id": f"{name}-{split}-{index:05d}", "split": split, "speaker": speaker.id, "voice": speaker.voice,
        "text": text, **labels, "words": [list(interval) for interval in speech.words],
        "phones": [list(interval) for interval in speech.phones],
    }  # fmt: skip


def _microphone(samples: int, rms: float, rng: np.random.Generator) -> np.ndarray:
    """The hiss of a quiet recording, (T,): no microphone gives the digital silence of a synthesiser between its words.

    35 to 55 dB below the speech of level `rms`, its spectrum falling by 3 dB per octave.
    """
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 0.005 * len(spectrum)))
    hiss = np.fft.irfft(spectrum, samples)
    decibels = rng.uniform(-55, -35)
    return (hiss * (rms * 10 ** (decibels / 20) / max(float(np.sqrt(np.mean(hiss**2))), 1e-12))).astype(np.float32)


_Saying = tuple[str, Speech, dict[str, Any]]  # text, speech, labels


def _varied(rng: np.random.Generator) -> Manner:
    tempo, pitch, melody = (float(rng.uniform(*limits)) for limits in ((0.85, 1.2), (-8, 8), (0.6, 1.5)))
    return Manner(tempo, pitch, melody)


def _say_sentence(speaker: Speaker, split: str, index: int, rng: np.random.Generator) -> _Saying:
    text = sentence(rng)
    manner = Manner(tempo=float(rng.uniform(0.9, 1.1)), pitch=float(rng.uniform(-5, 5)))
    return text, _placed(speaker.say(text, manner), rng), {}


def _say_keyword(speaker: Speaker, split: str, index: int, rng: np.random.Generator) -> _Saying:
    """A word said alone, or cut out of a phrase; a quarter of the other words never occur in training."""
    label = (*KEYWORDS, "_unknown_")[index % (len(KEYWORDS) + 1)]
    others = OTHER_WORDS[: -len(OTHER_WORDS) // 4] if split == "train" else OTHER_WORDS
    word = label if label in KEYWORDS else others[int(rng.integers(len(others)))]
    manner = _varied(rng)
    carrier = CARRIERS[int(rng.integers(len(CARRIERS)))].format(word=word)
    alone = word + ".!?,"[int(rng.integers(4))]
    wanted = None
    if rng.random() < 0.5:
        speech = speaker.say(carrier, manner)
        wanted = next((interval for interval in speech.words if interval[2] == word), None)
    if wanted is None:
        speech = speaker.say(alone, manner)
        wanted = (speech.phones[0][0], speech.phones[-1][1], word)
    return word, _second(_cut(speech, *wanted[:2]), rng), {"label": label}


def _say_intent(speaker: Speaker, split: str, index: int, rng: np.random.Generator) -> _Saying:
    pairs = [(thing, action) for thing, actions in ACTIONS.items() for action in actions]
    thing, action = pairs[index % len(pairs)]
    slots = {"action": action, "object": thing, "location": LOCATIONS[int(rng.integers(len(LOCATIONS)))]}
    text = intent(slots, rng)
    manner = _varied(rng)
    return text, _placed(speaker.say(text, manner), rng), {"label": f"{thing} {action}", "slots": slots}


def _say_style(speaker: Speaker, split: str, index: int, rng: np.random.Generator) -> _Saying:
    style = list(STYLES)[index % len(STYLES)]
    mean = STYLES[style]
    manner = Manner(
        tempo=mean.tempo * float(np.exp(rng.normal(0, 0.06))), pitch=mean.pitch + float(rng.normal(0, 5)),
        melody=mean.melody * float(np.exp(rng.normal(0, 0.15))), tilt=mean.tilt + float(rng.normal(0, 0.7)),
        tremor=mean.tremor * float(rng.uniform(0.6, 1.2)), word_gap=mean.word_gap,
    )  # fmt: skip
    text = sentence(rng)
    return text, _placed(speaker.say(text, manner), rng), {"label": style}


_SAYINGS: dict[str, Callable[[Speaker, str, int, np.random.Generator], _Saying]] = {
    "speech": _say_sentence, "keywords": _say_keyword, "intents": _say_intent, "styles": _say_style,
}  # fmt: skip


def _cut(speech: Speech, start: float, end: float) -> Speech:
    """The part from `start` to `end` (s), faded over 5 ms, with the words and phones inside it."""
    first, last = round(start * SAMPLE_RATE), min(round(end * SAMPLE_RATE), len(speech.wave))
    wave = speech.wave[first:last].copy()
    fade = np.linspace(0, 1, min(80, len(wave)), dtype=np.float32)
    wave[: len(fade)] *= fade
    wave[len(wave) - len(fade) :] *= fade[::-1]
    return Speech(wave, _shifted(speech.words, -start, len(wave)), _shifted(speech.phones, -start, len(wave)))


def _padded(speech: Speech, before: int, after: int) -> Speech:
    """Silence of `before` and `after` samples around."""
    wave = np.pad(speech.wave, (before, after))
    shift = before / SAMPLE_RATE
    return Speech(wave, _shifted(speech.words, shift, len(wave)), _shifted(speech.phones, shift, len(wave)))


def _placed(speech: Speech, rng: np.random.Generator) -> Speech:
    """From the first phone to the last, with 50 to 300 ms of silence on either side."""
    speech = _cut(speech, speech.phones[0][0], speech.phones[-1][1])
    before, after = (int(n) for n in rng.integers(SAMPLE_RATE // 20, 3 * SAMPLE_RATE // 10, 2))
    return _padded(speech, before, after)


def _second(speech: Speech, rng: np.random.Generator) -> Speech:
    """Somewhere inside one second (longer words keep their length)."""
    room = max(SAMPLE_RATE - len(speech.wave), 0)
    before = int(rng.integers(room + 1))
    return _padded(speech, before, room - before)


def _shifted(intervals: tuple[Interval, ...], shift: float, length: int) -> tuple[Interval, ...]:
    """Move intervals by `shift` seconds and keep what lies within `length` samples."""
    seconds = length / SAMPLE_RATE
    moved = ((max(start + shift, 0.0), min(end + shift, seconds), symbol) for start, end, symbol in intervals)
    return tuple((round(start, 4), round(end, 4), symbol) for start, end, symbol in moved if end - start > 1e-3)
