"""Rooms: where the direct path is, how long they reverberate, and what happens to responses that are no good."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
from acoustics_material import RATE, Make, synthetic_response
from hypothesis import given, settings
from hypothesis import strategies as st

from robustdistiller.acoustics.rooms import RoomBank
from robustdistiller.acoustics.simulation import simulate_room
from robustdistiller.audio.manifest import Recording
from robustdistiller.audio.rir import LEAD, direct_path, measure_t60, prepare_rir
from robustdistiller.errors import AudioError, UserError
from robustdistiller.randomness import generator


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 3000), st.sampled_from([-1.0, 1.0]), st.floats(0.15, 1.5), st.integers(0, 99))
def test_direct_path_is_found_whatever_its_delay_and_sign(delay: int, sign: float, t60: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    response = synthetic_response(rng, delay, t60, sign) + 0.003 * rng.standard_normal(delay + int(1.1 * t60 * RATE))
    assert direct_path(response) == delay


def test_direct_path_comes_before_a_stronger_reflection() -> None:
    response = np.zeros(2000)
    response[100], response[220] = -0.7, 1.0
    assert direct_path(response) == 100


@pytest.mark.parametrize("t60", [0.15, 0.25, 0.5, 0.9, 1.5])
def test_t60_of_an_exponential_decay(t60: float) -> None:
    """No bias; a spread that falls with the root of T60, as that of any estimate from a random decay must.

    Background noise 45 dB below the beginning, lasting on, changes neither.
    """
    errors = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        time = np.arange(int(1.3 * t60 * RATE)) / RATE
        decay = rng.standard_normal(len(time)) * 10 ** (-3 * time / t60)
        noisy = np.concatenate([decay, np.zeros(RATE // 2)]) + 10 ** (-45 / 20) * rng.standard_normal(
            len(time) + RATE // 2
        )
        errors.append([float(measure_t60(wave, 0) or np.nan) / t60 - 1 for wave in (decay, noisy)])
    assert np.abs(np.mean(errors, axis=0)).max() < 0.01
    assert np.sqrt(np.mean(np.square(errors), axis=0)).max() < 0.013 / np.sqrt(t60)


def test_t60_of_nothing_measurable_is_none() -> None:
    assert measure_t60(np.ones(1)) is None
    assert measure_t60(np.eye(1, 5000, 40)[0]) is None
    assert measure_t60(np.random.default_rng(0).standard_normal(8000), 0) is None


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 10**6), st.floats(0.12, 1.4))
def test_simulated_rooms_reverberate_as_long_as_asked(seed: int, t60: float) -> None:
    for response in simulate_room(generator(seed), (t60, t60)):
        assert response.t60 == pytest.approx(t60, rel=0.05)
        assert response.t60 == measure_t60(response.samples, response.direct)
        assert np.argmax(np.abs(response.samples)) == response.direct == direct_path(response.samples) == LEAD
        assert response.samples[LEAD] > 0
        assert np.sum(response.samples.astype(np.float64) ** 2) == pytest.approx(1.0, rel=1e-5)


def test_simulated_t60_is_spread_over_the_range() -> None:
    measured = [simulate_room(generator(seed), (0.3, 0.9))[0].t60 for seed in range(24)]
    assert min(measured) < 0.42 and max(measured) > 0.78
    assert min(measured) > 0.28 and max(measured) < 0.95


def test_early_reflections_are_those_of_the_image_source_method() -> None:
    """The first echoes of a response lie where mirror images of the source say, computed here by hand."""
    from robustdistiller.acoustics.simulation import SOUND, _reflections

    size, source, microphone = np.array([5.0, 4.0, 3.0]), np.array([1.0, 1.5, 1.2]), np.array([3.5, 2.0, 1.8])
    distance = float(np.linalg.norm(source - microphone))
    early = _reflections(size, source, microphone, 0.3, distance, 0.02)
    expected = np.zeros(len(early) + 200)
    axis = [[(2 * m * s + sign * x, abs(2 * m + (sign < 0) * -1)) for m in range(-4, 5) for sign in (1, -1)]
            for s, x in zip(size, source, strict=True)]  # fmt: skip
    for x, i in axis[0]:
        for y, j in axis[1]:
            for z, k in axis[2]:
                way = np.linalg.norm(np.array([x, y, z]) - microphone)
                delay = LEAD + (way - distance) / SOUND * RATE
                if way <= distance + SOUND * 0.03:
                    t = np.arange(len(expected)) - delay
                    window = np.where(np.abs(t) <= 41, 0.5 + 0.5 * np.cos(np.pi * t / 41), 0)
                    expected += np.sqrt(1 - 0.3) ** (i + j + k) / way * np.sinc(t) * window
    stop = LEAD + int(0.02 * RATE)
    np.testing.assert_allclose(early[:stop], expected[:stop], atol=2e-3 * expected.max())


def test_simulated_rooms_are_repeatable_and_differ_between_splits_seeds_and_positions() -> None:
    banks = [
        RoomBank().add_simulated(3, (0.2, 0.5), seed, split)
        for seed, split in ((0, "train"), (0, "valid"), (1, "train"))
    ]
    waves = [bank.load(id).samples for bank in banks for id in bank.ids]
    assert len({wave.tobytes() for wave in waves}) == len(waves) == 18
    assert not set(banks[0].ids) & set(banks[1].ids)
    again = RoomBank().add_simulated(3, (0.2, 0.5), 0, "train")
    for id in reversed(again.ids):
        assert np.array_equal(again.load(id).samples, banks[0].load(id).samples)
        assert again.load(id).t60 == banks[0].load(id).t60


@pytest.mark.parametrize("delay", [0, 7, 40, 41, 5000])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_recorded_response_is_trimmed_to_its_direct_path(delay: int, sign: float) -> None:
    raw = synthetic_response(np.random.default_rng(0), delay, 0.4, sign)
    response = prepare_rir(raw)
    assert response.direct == min(delay, LEAD) == np.argmax(response.samples)
    tail = raw[delay : delay + len(response.samples) - response.direct] * sign
    kept = response.samples[response.direct :]
    np.testing.assert_allclose(kept / kept[0], tail[: len(kept)], atol=1e-6)
    assert response.t60 == measure_t60(raw)


def test_a_very_long_response_is_cut_without_a_click() -> None:
    rng = np.random.default_rng(0)
    response = prepare_rir(np.concatenate([[5.0], 0.1 * rng.standard_normal(10 * RATE)]))
    assert 1.99 * RATE < len(response.samples) <= 2 * RATE
    assert abs(response.samples[-20:]).max() < 0.2 * abs(response.samples[-500:-300]).max()


def test_a_response_of_one_sample_only_scales() -> None:
    response = prepare_rir(np.array([-0.3]))
    assert response.samples.tolist() == [1.0] and response.direct == 0 and response.t60 is None


@pytest.mark.parametrize("bad", [np.zeros(500), np.zeros(0), np.array([0.0, np.nan, 1.0]), np.array([np.inf])])
def test_an_unusable_response_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(AudioError):
        prepare_rir(bad)


def test_unusable_responses_are_passed_over(make_recording: Make, caplog: pytest.LogCaptureFixture) -> None:
    good = make_recording("good", synthetic_response(np.random.default_rng(0), 10, 0.3))
    bank = RoomBank([make_recording("silent", np.zeros(800)), good, make_recording("broken", np.full(9, np.nan))])
    assert {bank.draw(generator(i)) for i in range(20)} == {"good"}
    assert "silent" in caplog.text and "broken" in caplog.text
    assert len(caplog.records) == 2  # one line each, however often they are met
    with pytest.raises(AudioError):
        bank.load("silent")
    hopeless = RoomBank([make_recording("silent", np.zeros(800))])
    with pytest.raises(UserError, match="--rooms"):
        hopeless.draw(generator(0))
    hopeless.add_simulated(1, (0.2, 0.3))
    assert hopeless.draw(generator(0)).startswith("simulated")


def test_draws_do_not_depend_on_the_order_of_the_recordings(responses: list) -> None:
    bank, shuffled = RoomBank(responses), RoomBank(responses[::-1])
    assert [bank.draw(generator(i)) for i in range(20)] == [shuffled.draw(generator(i)) for i in range(20)]


def test_neighbours_are_other_responses_of_the_same_room(responses: list, make_recording: Make) -> None:
    single = make_recording("closet", synthetic_response(np.random.default_rng(0), 10, 0.3))
    bank = RoomBank([*responses, single])
    bank.add_simulated(2, (0.2, 0.3))
    for id in bank.ids:
        neighbours = {bank.neighbour(id, u) for u in (0.0, 0.4, 0.6, 0.999)}
        if id == "closet":
            assert neighbours == {"closet"}
        else:
            assert id not in neighbours and {bank.room(n) for n in neighbours} == {bank.room(id)}
    assert bank.find("hall") == ["hall-0", "hall-1", "hall-2"] and bank.find("den-1") == ["den-1"]
    with pytest.raises(UserError, match="hall"):
        bank.find("hal")


def test_the_share_of_simulated_rooms_is_the_share_asked(responses: list) -> None:
    bank = RoomBank(responses, simulated_share=0.25)
    bank.add_simulated(2, (0.2, 0.25))
    drawn = sum(bank.draw(generator(i)).startswith("simulated") for i in range(800))
    assert 150 < drawn < 250
    bank = RoomBank(responses)
    bank.add_simulated(2, (0.2, 0.25))
    assert not any(bank.draw(generator(i)).startswith("simulated") for i in range(50))


def test_t60_agrees_with_an_independent_band_filtered_slope() -> None:
    """The label also describes what speech excites: the 1 kHz octave of a simulated room decays about as fast."""
    band = scipy.signal.butter(4, [707, 1414], "bandpass", fs=RATE, output="sos")
    for seed in range(4):
        response = simulate_room(generator(seed), (0.4, 0.8))[0]
        octave = scipy.signal.sosfiltfilt(band, response.samples.astype(np.float64))
        assert measure_t60(octave, response.direct) == pytest.approx(response.t60, rel=0.35)


def test_scanned_responses_are_not_decoded_to_be_drawn(responses: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the scan knows (that a response can be used, its T60) is not found out again by every process."""
    scanned = [replace(r, extra={"t60": 0.1 * k if k else None}) for k, r in enumerate(responses)]
    bank = RoomBank(scanned)
    monkeypatch.setattr(Recording, "load", lambda *_: pytest.fail("decoded"))
    drawn = {bank.draw(generator(seed)) for seed in range(100)}
    assert drawn == {r.id for r in responses}
    assert [bank.t60(r.id) for r in responses] == [r.extra["t60"] for r in scanned]


def test_responses_that_are_gone_are_passed_over_and_only_a_few_are_named(
    responses: list, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = [Recording(f"gone-{k}", str(tmp_path / f"{k}.wav"), 1.0, extra={"t60": 0.3}) for k in range(9)]
    bank = RoomBank([*responses, *gone])
    for seed in range(60):
        assert not bank.draw(generator(seed)).startswith("gone")
    assert caplog.text.count("is passed over") == 3 and "not named" in caplog.text
