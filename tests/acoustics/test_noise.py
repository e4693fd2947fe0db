"""Noise: every kind sounds as described, a draw alone brings back the same samples, and bad recordings do no harm."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from acoustics_material import RATE, Make, decibels, power
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from robustdistiller.acoustics import clips
from robustdistiller.acoustics.clips import FADE, Clips
from robustdistiller.acoustics.convolution import high_pass
from robustdistiller.acoustics.effects import band_limit
from robustdistiller.acoustics.noise import SYNTHETIC_KINDS, NoiseBank, NoiseDraw, Voice, coloured
from robustdistiller.audio.manifest import Recording
from robustdistiller.config import NoiseMix
from robustdistiller.errors import AudioError, UserError
from robustdistiller.randomness import generator

EVERY = NoiseMix(recorded=1, white=1, pink=1, brown=1, babble=1)


@pytest.mark.parametrize(("kind", "slope"), [("white", 0.0), ("pink", -3.01), ("brown", -6.02)])
def test_coloured_noise_falls_by_the_right_decibels_an_octave(kind: str, slope: float) -> None:
    spectrum = np.abs(np.fft.rfft(coloured(kind, 3, 20 * RATE).astype(np.float64))) ** 2
    hertz = np.fft.rfftfreq(20 * RATE, 1 / RATE)
    levels = [decibels(spectrum[(hertz >= f) & (hertz < 2 * f)].mean()) for f in (60, 120, 240, 480, 960, 1920, 3840)]
    assert np.polyfit(range(7), levels, 1)[0] == pytest.approx(slope, abs=0.15)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**9), st.sampled_from(["white", "pink", "brown"]), st.integers(1, 40_000))
def test_made_noise_is_a_function_of_its_seed(seed: int, kind: str, count: int) -> None:
    wave = coloured(kind, seed, count)
    assert wave.shape == (count,) and wave.dtype == np.float32 and np.all(np.isfinite(wave))
    assert np.array_equal(wave, coloured(kind, seed, count))
    assert not np.array_equal(wave, coloured(kind, seed + 1, count))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.05, 7.0))
def test_every_draw_gives_its_samples_again(noises: list, talk: list, seed: int, seconds: float) -> None:
    bank = NoiseBank(noises, EVERY, talk)
    other = NoiseBank(noises[::-1], EVERY, talk[::-1], cache_mb=0.01)  # another order, hardly any memory
    count = round(seconds * RATE)
    draw = bank.draw(generator(seed), seconds, utterance="ann/0", speaker="ann")
    assert draw == other.draw(generator(seed), seconds, utterance="ann/0", speaker="ann")
    wave = bank.fetch([draw], count)
    again = TypeAdapter(NoiseDraw).validate_python(json.loads(json.dumps(asdict(draw))))
    assert again == draw and np.array_equal(other.fetch([again], count), wave)
    assert wave.shape == (count,) and power(wave) == pytest.approx(1.0, rel=1e-4)


def test_several_noises_sound_equally_loud(noises: list) -> None:
    bank = NoiseBank(noises)
    draws = [NoiseDraw("recorded", "hum"), NoiseDraw("recorded", "drip"), NoiseDraw("pink", seed=4)]
    parts = [bank.fetch([draw], 30_000) for draw in draws]
    np.testing.assert_allclose(bank.fetch(draws, 30_000), sum(parts), atol=1e-5)
    assert [power(part) for part in parts] == pytest.approx([1, 1, 1], rel=1e-4)


@pytest.mark.parametrize("kind", ["recorded", "babble"])
@pytest.mark.parametrize(("hertz", "seconds"), [(210.0, 0.37), (333.0, 1.003), (0.0, 0.5), (0.0, 4.0)])
def test_a_short_noise_repeats_without_clicks(make_recording: Make, hertz: float, seconds: float, kind: str) -> None:
    """No step at a seam is larger than those of the noise itself, and the power at the seams is that of the rest."""
    time = np.arange(int(seconds * RATE)) / RATE
    hiss = np.random.default_rng(0).standard_normal(len(time))
    wave = 0.1 * np.sin(2 * np.pi * hertz * time) if hertz else band_limit(hiss.astype(np.float32), 100, 400)
    recording = make_recording("short", wave, speaker="one")
    bank = NoiseBank([recording], speech=[recording])
    offset = 0.3 * seconds
    draw = NoiseDraw("recorded", "short", offset=offset)
    if kind == "babble":
        draw = NoiseDraw("babble", voices=(Voice(("short",), offset),))
    out = bank.fetch([draw], 15 * RATE)
    inside = bank.fetch([draw], int(0.69 * len(time)))  # before the first seam
    scale = np.std(inside) / np.std(out)
    steps = np.abs(np.diff(out * scale))
    assert steps.max() < 1.3 * np.abs(np.diff(inside)).max()
    period = len(time) - min(FADE, len(time) // 4)
    seams = [out[n - 10 : n + FADE + 10] for n in range(period - round(offset * RATE), len(out) - FADE - 10, period)]
    assert np.mean([power(seam) for seam in seams]) == pytest.approx(1.0, rel=0.35)
    np.testing.assert_allclose(out[RATE // 2 + period :], out[RATE // 2 : -period], atol=1e-5)  # and it does repeat


def test_offsets_cover_the_recording_and_stay_inside(make_recording: Make) -> None:
    rng = np.random.default_rng(0)
    bank = NoiseBank([make_recording("long", 0.1 * rng.standard_normal(4 * RATE))], NoiseMix(recorded=1, white=0))
    offsets = [bank.draw(generator(i), 1.0).offset for i in range(60)]
    assert min(offsets) < 0.3 and 2.7 < max(offsets) <= 3.0


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "BLOCK", RATE)
    monkeypatch.setattr(clips, "WHOLE", 2.0)


@pytest.mark.parametrize("rate", [16_000, 44_100, 8_000])
def test_long_recordings_are_read_in_blocks_that_fit_together(
    small_blocks: None, make_recording: Make, rate: int
) -> None:
    rng = np.random.default_rng(0)
    recording = make_recording("long", 0.1 * rng.standard_normal(int(5.3 * rate)), rate=rate)
    whole = high_pass(recording.load())
    period = len(whole) - FADE
    reader, starved = Clips(64), Clips(0.01)
    for start, count in ((0, 5000), (15_990, 20), (12_345, 40_000), (80_000, 30_000), (16_000, 16_000)):
        piece = reader.read(recording, start, count)
        there = min(count, period - start)
        np.testing.assert_allclose(piece[:there], whole[start : start + there], atol=2e-4)
        np.testing.assert_allclose(piece[there + FADE :], whole[FADE:][: max(count - there - FADE, 0)], atol=2e-4)
        assert np.array_equal(piece, starved.read(recording, start, count))
    assert starved._blocks.nbytes <= 0.01 * 2**20
    assert reader.level(recording) == pytest.approx(power(whole), rel=0.05)


def test_memory_stays_bounded_whatever_is_read(noises: list, talk: list) -> None:
    bank = NoiseBank(noises, EVERY, talk, cache_mb=0.2)
    for seed in range(40):
        bank.fetch([bank.draw(generator(seed), 1.0)], RATE)
        assert bank._clips._blocks.nbytes <= 0.2 * 2**20


def test_a_header_that_promises_too_much_does_no_harm(make_recording: Make, small_blocks: None) -> None:
    rng = np.random.default_rng(0)
    there = make_recording("short", 0.1 * rng.standard_normal(RATE))
    recording = Recording("liar", there.path, 1.5)
    assert power(Clips(1).read(recording, 0, 3 * RATE)) > 0.005
    bank = NoiseBank([Recording("liar", there.path, 30.0)], NoiseMix(recorded=1, white=0))
    draws = [bank.draw(generator(i), 1.0) for i in range(5)]
    for draw in draws:
        assert power(bank.fetch([draw], RATE)) == pytest.approx(1.0, rel=1e-3)


def test_babble_avoids_the_speaker_and_the_utterance(talk: list) -> None:
    bank = NoiseBank((), NoiseMix(recorded=0, white=0, babble=1), talk)
    for seed in range(50):
        draw = bank.draw(generator(seed), 2.0, utterance="ann/1", speaker="ann")
        assert draw.kind == "babble" and 3 <= len(draw.voices) <= 7 and draw.note is None
        speakers = [{source.split("/")[0] for source in voice.sources} for voice in draw.voices]
        assert all(len(names) == 1 and names != {"ann"} for names in speakers)
        assert len({next(iter(names)) for names in speakers}) == min(
            4, len(speakers)
        )  # everybody, before anybody twice
    strangers = [Recording(r.id, r.path, r.seconds) for r in talk]
    bank = NoiseBank((), NoiseMix(recorded=0, white=0, babble=1), strangers)
    for seed in range(50):
        sources = [s for v in bank.draw(generator(seed), 2.0, utterance="ann/1").voices for s in v.sources]
        assert "ann/1" not in sources
    bank = NoiseBank((), NoiseMix(recorded=0, white=0, babble=1), talk)
    for seed in range(20):  # the speaker of a known recording need not be told
        sources = [s for v in bank.draw(generator(seed), 2.0, utterance="bob/1").voices for s in v.sources]
        assert not any(source.startswith("bob") for source in sources)


def test_babble_of_a_single_speaker_says_so(talk: list) -> None:
    alone = [r for r in talk if r.speaker == "ann"]
    draw = NoiseBank((), EVERY, alone).draw(generator(1), 1.0, "babble", utterance="ann/1", speaker="ann")
    assert draw.note and "ann/1" not in {s for v in draw.voices for s in v.sources}


def test_all_voices_of_a_babble_are_equally_loud(make_recording: Make) -> None:
    """Voices are sines of very different level at frequencies of their own, so each can be found in the mixture."""
    time = np.arange(RATE) / RATE
    tones = {f"v{k}": 500.0 * (k + 1) for k in range(4)}
    speech = [
        make_recording(name, 10.0 ** -(k + 1) * np.sin(2 * np.pi * hertz * time), speaker=name)
        for k, (name, hertz) in enumerate(tones.items())
    ]
    bank = NoiseBank((), EVERY, speech, babble_voices=(4, 4))
    mixture = bank.fetch([bank.draw(generator(0), 1.0, "babble")], RATE)
    spectrum = np.abs(np.fft.rfft(mixture))
    peaks = [spectrum[round(hertz)] for hertz in tones.values()]
    assert peaks == pytest.approx([peaks[0]] * 4, rel=1e-2)


@pytest.mark.parametrize(("sound", "silence"), [(4.0, 4.0), (0.5, 20.0), (0.5, 60.0), (0.02, 3.0)])
def test_recorded_noise_is_heard_where_it_sounds(make_recording: Make, sound: float, silence: float) -> None:
    """Clips padded with digital silence are never taken for silent, wherever their sound is and however long they are."""
    wave = np.zeros(int((sound + silence) * RATE))
    for first in (0, len(wave) // 3, len(wave) - int(sound * RATE)):
        padded = wave.copy()
        padded[first : first + int(sound * RATE)] = 0.1 * np.random.default_rng(0).standard_normal(int(sound * RATE))
        bank = NoiseBank([make_recording("padded", padded)], NoiseMix(recorded=1, white=0))
        for seed in range(12):
            draw = bank.draw(generator(seed), 1.5)
            assert draw.kind == "recorded" and draw.note is None
            assert -1.5 < draw.offset - first / RATE < sound
            assert 0 <= draw.offset <= len(wave) / RATE - 1.5


def test_a_silent_recording_gives_way_to_white_noise_and_says_so(make_recording: Make) -> None:
    bank = NoiseBank([make_recording("nothing", np.zeros(RATE))], NoiseMix(recorded=1, white=0))
    draw = bank.draw(generator(0), 0.5)
    assert draw.kind == "white" and draw.source is None and "nothing" in (draw.note or "")
    assert power(bank.fetch([draw], 8000)) == pytest.approx(1.0, rel=1e-4)
    assert power(bank.fetch([NoiseDraw("recorded", "nothing")], 8000)) == pytest.approx(1.0, rel=1e-4)


def test_unreadable_recordings_are_passed_over(make_recording: Make, tmp_path: Any) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF nonsense")
    good = make_recording("good", 0.1 * np.random.default_rng(0).standard_normal(RATE))
    gone = Recording("gone", str(tmp_path / "gone.wav"), 3.0)
    hole = make_recording("hole", np.full(RATE, np.nan))
    bank = NoiseBank([Recording("broken", str(broken), 2.0), gone, good, hole], NoiseMix(recorded=1, white=0))
    draws = [bank.draw(generator(i), 0.5) for i in range(30)]
    assert {draw.source for draw in draws if draw.kind == "recorded"} == {"good"}
    assert sum(draw.kind == "recorded" for draw in draws) > 15
    with pytest.raises(AudioError):
        bank.fetch([NoiseDraw("recorded", "gone")], 100)


def test_a_missing_kind_gives_its_weight_to_the_others(noises: list) -> None:
    assert NoiseBank((), NoiseMix(recorded=0.7, white=0.3)).weights == {"white": 0.3}
    assert NoiseBank(noises, NoiseMix(recorded=0.7, white=0, babble=1)).weights == {"recorded": 0.7}
    with pytest.raises(UserError, match="--noise"):
        NoiseBank((), NoiseMix(recorded=1, white=0))
    with pytest.raises(UserError, match="babble"):
        NoiseBank((), NoiseMix(recorded=0, white=0, babble=1))


def test_kinds_come_in_the_shares_asked(noises: list) -> None:
    bank = NoiseBank(noises, NoiseMix(recorded=0.6, white=0.1, pink=0.3))
    kinds = [bank.draw(generator(i), 0.1).kind for i in range(1000)]
    assert kinds.count("recorded") / 1000 == pytest.approx(0.6, abs=0.06)
    assert kinds.count("white") / 1000 == pytest.approx(0.1, abs=0.04)
    assert kinds.count("pink") / 1000 == pytest.approx(0.3, abs=0.06)


def test_noise_can_be_fixed_by_kind_label_or_recording(noises: list) -> None:
    bank = NoiseBank(noises, NoiseMix(recorded=0, white=1))
    assert {bank.draw(generator(i), 0.5, "weather").source for i in range(20)} == {"rain", "drip"}
    assert bank.draw(generator(0), 0.5, "hum").source == "hum"
    assert bank.draw(generator(0), 0.5, "brown").kind == "brown"
    assert bank.draw(generator(0), 0.5, "recorded").kind == "recorded"
    with pytest.raises(UserError, match="Did you mean 'weather'"):
        bank.draw(generator(0), 0.5, "wether")
    with pytest.raises(UserError, match="--noise"):
        NoiseBank().draw(generator(0), 0.5, "recorded")


def test_equal_ids_of_different_files_are_both_heard(make_recording: Make) -> None:
    rng = np.random.default_rng(0)
    twins = [make_recording("noise1", 0.1 * rng.standard_normal(RATE)) for _ in range(2)]
    bank = NoiseBank(twins)
    assert len(bank) == 2
    assert len({bank.draw(generator(i), 0.5, "recorded").source for i in range(20)}) == 2


@pytest.mark.parametrize("kind", SYNTHETIC_KINDS)
def test_a_synthetic_noise_is_its_plain_values(kind: str) -> None:
    bank = NoiseBank(kinds=NoiseMix(recorded=0, **{"white": 0, kind: 1.0}))
    draw = bank.draw(generator("draw", 3), 1.0)
    wave = bank.fetch([draw], RATE)
    assert draw.kind == kind and wave.dtype == np.float32
    np.testing.assert_array_equal(bank.fetch([TypeAdapter(NoiseDraw).validate_python(asdict(draw))], RATE), wave)
    assert power(wave) == pytest.approx(1.0, rel=1e-3)
