"""The synthetic voices and the corpus they speak: reproducible to the sample, disjoint speakers, complete labels."""

import hashlib
import json
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from robustdistiller.audio.manifest import read_manifest
from robustdistiller.errors import UserError
from robustdistiller.randomness import generator
from robustdistiller.synthetic import espeak
from robustdistiller.synthetic.speakers import ACCENTS, VARIANTS, Manner, speakers
from robustdistiller.synthetic.spoken import STYLES, TASKS, Size, build_corpus
from robustdistiller.synthetic.texts import ACTIONS, KEYWORDS, LOCATIONS, OTHER_WORDS, intent, sentence

voices = pytest.mark.skipif(not espeak.available(), reason="espeakng_loader is not installed")
TINY = Size(sentences=(8, 3), utterances=(14, 14, 14), speakers=(5, 3, 4))
FEW = Size(sentences=(2, 1), utterances=(2, 2, 2), speakers=(1, 1, 1))
TEXT = "Please choose a yellow sweater, and bring nine boxes to the garage."


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_corpus(tmp_path_factory.mktemp("spoken"), seed=3, size=TINY, workers=1)


def recordings(corpus):
    return {name: read_manifest(path) for name, path in {"speech": corpus.speech, **corpus.tasks}.items()}


def contents(folder):
    """Digest of every file by its name."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# Texts


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32))
def test_a_text_is_finished_and_a_function_of_its_seed(seed):
    text = sentence(generator(seed))
    assert text == sentence(generator(seed))
    assert "{" not in text and "_" not in text and "|" not in text and "  " not in text
    assert text[0].isupper() and text[-1] in ".?"
    assert 3 <= len(text.split()) <= 40


def test_sentences_rarely_repeat_and_use_many_words():
    texts = [sentence(generator("many", i)) for i in range(3000)]
    assert len(set(texts)) > 2900
    assert len({word.strip(".,?").lower() for text in texts for word in text.split()}) > 800


def test_a_request_names_its_place_only_where_one_is_asked():
    for thing, actions in ACTIONS.items():
        for action in actions:
            for place in LOCATIONS:
                text = intent({"action": action, "object": thing, "location": place}, generator(thing, action, place))
                said = any(word in text.lower() for word in ("kitchen", "bed", "lounge", "living", "sofa", "bath"))
                assert said == (place != "none"), text


def test_no_other_word_is_a_keyword():
    assert not set(OTHER_WORDS) & set(KEYWORDS)
    assert len(set(OTHER_WORDS)) == len(OTHER_WORDS)


# Voices


@voices
def test_what_is_said_does_not_depend_on_what_was_said_before():
    voice = "en-us+f3"
    program = (
        "import hashlib; from robustdistiller.synthetic.espeak import speak;"
        f"print(hashlib.sha256(speak({TEXT!r}, {voice!r}).wave.tobytes()).hexdigest())"
    )
    fresh = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    for other in ("en+m4", "en-029+f5", "en-us+klatt4", voice):
        espeak.speak("Something else was said before.", other, rate=200, pitch=80)
        assert hashlib.sha256(espeak.speak(TEXT, voice).wave.tobytes()).hexdigest() == fresh


@voices
def test_every_voice_of_the_corpus_exists_and_is_reproducible():
    names = [variant for variants in VARIANTS.values() for variant in variants]
    text = "Why so late?"
    first = [espeak.speak(text, f"en-us+{name}").wave for name in names]
    second = [espeak.speak(text, f"en-us+{name}").wave for name in reversed(names)][::-1]
    for name, a, b in zip(names, first, second, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
        assert 0.01 < np.abs(a).max() <= 1.0, name
    assert all(len(espeak.speak(text, accent).wave) > 4000 for accent in ACCENTS)


@voices
def test_alignments_are_ordered_inside_the_wave_and_cover_the_words():
    for variant in ("f3", "m4", "klatt4"):
        for formants in (0.9, 1.0, 1.15):
            speech = espeak.speak("The owl had too much rice, in the kitchen.", f"en-us+{variant}", formants=formants)
            for intervals in (speech.words, speech.phones):
                assert all(0 <= start < end <= speech.seconds for start, end, _ in intervals)
                assert all(a[1] <= b[0] for a, b in pairwise(intervals))
            assert " ".join(word for *_, word in speech.words) == "the owl had too much rice in the kitchen"
            assert {"ə", "k", "tʃ"} <= {phone for *_, phone in speech.phones}


@voices
def test_a_fricative_is_heard_where_its_interval_says():
    speech = espeak.speak("A sea, a sea, a sea.", "en-us+m3")
    high = {True: [], False: []}
    for start, end, phone in speech.phones:
        wave = speech.wave[round(start * 16_000) : round(end * 16_000)]
        spectrum = np.abs(np.fft.rfft(wave)) ** 2
        high[phone == "s"].append(spectrum[len(spectrum) * 3 // 8 :].sum() / spectrum.sum())  # above 3 kHz
    assert len(high[True]) == 3 and min(high[True]) > 0.7 > max(high[False])


@voices
def test_formants_and_rate_and_pitch_do_what_they_say():
    slow, fast = (espeak.speak(TEXT, rate=rate).seconds for rate in (120, 240))
    assert 1.5 < slow / fast < 2.5
    plain, small = (espeak.speak(TEXT, formants=factor) for factor in (1.0, 1.2))
    assert small.seconds == pytest.approx(plain.seconds, rel=0.08)  # the tempo is kept
    low, high = (_pitch(espeak.speak("Oh no, all alone.", pitch=pitch).wave) for pitch in (20, 80))
    assert high > 1.3 * low


def _pitch(wave):
    frames = wave[: len(wave) // 1024 * 1024].reshape(-1, 1024)
    loud = frames[np.sqrt((frames**2).mean(1)) > 0.02]
    correlation = np.fft.irfft(np.abs(np.fft.rfft(loud, 2048)) ** 2)[:, 40:260]
    return float(np.median(16_000 / (correlation.argmax(1) + 40)))


@voices
@pytest.mark.parametrize(
    ("text", "voice", "hint"),
    [("...", "en-us", "words"), ("hi", "xx-yy", "en-us"), ("hi", "en-us+f33", "Did you mean 'f3'")],
)
def test_a_mistake_gets_one_sentence(text, voice, hint):
    with pytest.raises(UserError, match=hint):
        espeak.speak(text, voice)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    espeak._files.cache_clear()
    with pytest.raises(UserError, match=r"robustdistiller\[speech\]"):
        espeak.speak("hello")
    espeak._files.cache_clear()


# Speakers


def test_voice_variants_of_the_splits_are_disjoint():
    people = {split: speakers(split, 60, seed=1) for split in VARIANTS}
    used = {split: {person.voice.split("+")[1] for person in them} for split, them in people.items()}
    assert not used["train"] & used["valid"] and not used["train"] & used["test"] and not used["valid"] & used["test"]
    assert all(used[split] == set(VARIANTS[split]) for split in used)
    assert speakers("train", 10, seed=1) == people["train"][:10] != speakers("train", 10, seed=2)


@voices
def test_a_manner_changes_what_it_names():
    speaker = speakers("train", 1)[0]
    plain = speaker.say(TEXT)
    assert speaker.say(TEXT, Manner(tempo=0.7)).seconds > 1.2 * plain.seconds
    bright, dark = (speaker.say(TEXT, Manner(tilt=tilt)).wave for tilt in (3.0, -3.0))
    share = [
        np.abs(np.fft.rfft(wave))[len(wave) // 8 :].sum() / np.abs(np.fft.rfft(wave)).sum() for wave in (bright, dark)
    ]
    assert share[0] > 1.2 * share[1]
    assert speaker.say(TEXT, Manner(tremor=0.5)).phones == plain.phones


# Corpus


@voices
def test_the_corpus_is_a_function_of_its_seed_whatever_the_workers(corpus, tmp_path):
    again = build_corpus(tmp_path / "a", seed=3, size=TINY, workers=3)
    assert again.folder.name == corpus.folder.name
    assert contents(again.folder) == contents(corpus.folder)
    a, b = (contents(build_corpus(tmp_path / "b", seed=seed, size=FEW).folder) for seed in (3, 4))
    assert all(a[name] != b[name] for name in a)


@voices
def test_a_finished_corpus_is_opened_not_made_again(corpus, monkeypatch):
    monkeypatch.setattr("robustdistiller.synthetic.spoken._make", lambda *_: pytest.fail("made again"))
    assert build_corpus(corpus.folder.parent, seed=3, size=TINY) == corpus


@voices
def test_a_part_alone_is_the_same_as_among_the_others(corpus, tmp_path):
    alone = build_corpus(tmp_path, seed=3, size=TINY, parts=["intents"])
    whole = contents(corpus.folder)
    found = {name: sum for name, sum in contents(alone.folder).items() if name != "corpus.json"}
    assert found == {name: sum for name, sum in whole.items() if name.startswith("intents")}
    assert list(alone.tasks) == ["intents"]


@voices
def test_what_is_half_made_disappears(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        build_corpus(tmp_path, size=FEW, progress=lambda done, total: _interrupt(done))
    assert list(tmp_path.iterdir()) == []


@voices
def test_what_a_killed_process_left_is_removed_when_it_is_old(tmp_path):
    folder = build_corpus(tmp_path / "a", size=FEW).folder
    old, young = (tmp_path / f".{folder.name}-{name}" for name in ("old", "young"))
    old.mkdir()
    young.mkdir()
    os.utime(old, (0, 0))
    build_corpus(tmp_path, size=FEW)
    assert not old.exists() and young.exists()


def _interrupt(done):
    if done == 5:
        raise KeyboardInterrupt


@voices
def test_progress_counts_every_utterance(tmp_path):
    seen = []
    build_corpus(tmp_path, size=FEW, progress=lambda done, total: seen.append((done, total)))
    total = sum(FEW.sentences) + 3 * sum(FEW.utterances)
    assert seen == [(i, total) for i in range(1, total + 1)]


def test_an_unknown_size_is_named(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'quick'"):
        build_corpus(tmp_path, size="quik")


@voices
def test_manifests_agree_with_the_files(corpus):
    for name, rows in recordings(corpus).items():
        assert len({row.id for row in rows}) == len(rows)
        for row in rows:
            info = soundfile.info(row.path)
            assert (info.samplerate, info.channels, info.format) == (16_000, 1, "FLAC")
            assert info.frames / 16_000 == pytest.approx(row.seconds, abs=1e-5)
            wave = row.load()
            assert np.sqrt(np.mean(wave**2)) > 0.01 and np.abs(wave).max() < 1
            for kind in ("words", "phones"):
                intervals = row.extra[kind]
                assert intervals, row.id
                assert all(0 <= start < end <= row.seconds + 1e-4 for start, end, _ in intervals)
                assert all(a[1] <= b[0] for a, b in pairwise(intervals))
            if name == "keywords":
                assert row.seconds == pytest.approx(1.0, abs=0.3)
    summary = json.loads((corpus.folder / "corpus.json").read_text())
    assert "espeak" in summary["synthetic"] and set(summary["hours"]) == {"speech", *TASKS}


@voices
def test_speakers_of_a_split_are_heard_in_no_other(corpus):
    splits: dict[str, set[str]] = {}
    for rows in recordings(corpus).values():
        for row in rows:
            splits.setdefault(row.extra["voice"].split("+")[1], set()).add(row.split)
            assert row.speaker.startswith(row.split)
    assert all(len(where) == 1 for where in splits.values())
    assert {row.split for row in recordings(corpus)["speech"]} == {"train", "valid"}


@voices
def test_labels_are_complete_in_every_split(corpus):
    labels = {
        "keywords": {*KEYWORDS, "_unknown_"},
        "styles": set(STYLES),
        "intents": {f"{thing} {action}" for thing, actions in ACTIONS.items() for action in actions},
    }
    for task, expected in labels.items():
        rows = recordings(corpus)[task]
        for split in ("train", "valid", "test"):
            assert {row.label for row in rows if row.split == split} == expected, (task, split)
    for row in recordings(corpus)["intents"]:
        slots = row.extra["slots"]
        assert row.label == f"{slots['object']} {slots['action']}" and slots["location"] in LOCATIONS
    for row in recordings(corpus)["keywords"]:
        assert row.label == (row.extra["text"] if row.extra["text"] in KEYWORDS else "_unknown_")
        assert row.extra["words"][0][2] == row.extra["text"]


def test_pauses_are_quiet_but_not_digital_silence(corpus):
    """35 to 55 dB below the speech: no recording is digitally silent."""
    for recording in read_manifest(corpus.tasks["keywords"])[:6]:
        wave = recording.load()
        first = recording.extra["phones"][0][0]
        pause = wave[: int(16_000 * first)]
        if len(pause) < 400:
            continue
        level = 10 * np.log10(np.mean(pause**2) / np.mean(wave**2))
        assert -62 < level < -30
