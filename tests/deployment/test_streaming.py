"""A stream gives the same frames whatever its chunks, each once and in order, and never later than it says."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustdistiller.errors import AudioError
from robustdistiller.runtime import Classifier, Encoder, Enhancer
from robustdistiller.runtime.windows import Cutter, WindowedStream, Windows

rules = st.builds(
    Windows,
    left=st.integers(0, 9),
    hop=st.integers(1, 9),
    right=st.integers(0, 9),
    stride=st.sampled_from([1, 4]),
    field=st.sampled_from([1, 4, 6]),
)


def windows_of(rule, wave, cuts):
    cutter = Cutter(rule)
    edges = [0, *sorted(cut % (len(wave) + 1) for cut in cuts), len(wave)]
    found = []
    for begin, end in itertools.pairwise(edges):
        found += list(cutter.push(wave[begin:end]))
    return found + list(cutter.close())


@settings(max_examples=200, deadline=None)
@given(rule=rules, samples=st.integers(0, 300), cuts=st.lists(st.integers(0, 10_000), max_size=20))
def test_windows_do_not_depend_on_the_chunks(rule, samples, cuts):
    wave = np.arange(samples, dtype=np.float32)
    found, whole = windows_of(rule, wave, cuts), windows_of(rule, wave, [])
    assert [(w.begin, w.first, w.last) for w in found] == [(w.begin, w.first, w.last) for w in whole]
    assert all(np.array_equal(a.wave, b.wave) for a, b in zip(found, whole, strict=True))


@settings(max_examples=200, deadline=None)
@given(rule=rules, samples=st.integers(0, 300), cuts=st.lists(st.integers(0, 10_000), max_size=20))
def test_every_unit_is_given_once_in_its_context(rule, samples, cuts):
    wave = np.arange(samples, dtype=np.float32)
    units = []
    for window in windows_of(rule, wave, cuts):
        units += range(window.first, window.last)
        assert window.begin == max(0, window.first - rule.left)
        assert window.wave[0] == window.begin * rule.stride  # the window is the part of the audio that it says
        stop = window.first + rule.hop + rule.right
        closing = stop > rule.units(samples)  # the last window hears the audio to its end, beyond the last whole unit
        end = samples if closing else (stop - 1) * rule.stride + rule.field
        assert len(window.wave) == end - window.begin * rule.stride
    assert units == list(range(rule.units(samples)))


@settings(max_examples=100, deadline=None)
@given(rule=rules, samples=st.integers(1, 300))
def test_no_unit_is_later_than_the_latency(rule, samples):
    """Sample by sample: when unit u appears, at most `latency` samples have passed since its first one."""
    cutter = Cutter(rule)
    for heard in range(1, samples + 1):
        for window in cutter.push(np.zeros(1, np.float32)):
            assert heard - window.first * rule.stride <= rule.latency
            assert heard - window.first * rule.stride == rule.latency  # and it is not stated larger than it is


def test_memory_is_bounded():
    cutter = Cutter(Windows(left=50, hop=10, right=5, stride=4, field=10))
    for _ in range(1000):
        list(cutter.push(np.zeros(37, np.float32)))
        assert sum(map(len, cutter.chunks)) <= (50 + 10 + 5) * 4 + 10 + 37


@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(0, 40_000), max_size=12))
def test_an_encoder_stream_is_the_same_to_the_last_bit(exported, cuts):
    encoder = Encoder(exported[0] / "encoder.onnx", threads=1, verify=False)
    wave = (0.1 * np.random.default_rng(1).standard_normal(40_000)).astype(np.float32)
    edges = [0, *sorted(cuts), len(wave)]
    chunks = [wave[a:b] for a, b in itertools.pairwise(edges)]
    parts = list(encoder.stream(0.5, 0.3, 0.2).run(chunks))
    whole = list(encoder.stream(0.5, 0.3, 0.2).run([wave]))
    assert np.array_equal(np.concatenate([p.states for p in parts], 1), np.concatenate([p.states for p in whole], 1))
    times = np.concatenate([p.times for p in parts])
    np.testing.assert_allclose(times, (np.arange(124) * 320 + 200) / 16_000)


def test_a_stream_shorter_than_its_window_is_the_offline_result(exported, voice):
    encoder, enhancer = Encoder(exported[0] / "encoder.onnx"), Enhancer(exported[0] / "enhancer.onnx")
    wave = voice(1.3)
    (features,) = encoder.stream(2.0).run([wave[:777], wave[777:]])
    assert np.array_equal(features.states, encoder(wave).states)
    (enhanced,) = enhancer.stream(2.0).run([wave])
    assert np.array_equal(enhanced, enhancer(wave))


def test_enhanced_pieces_follow_each_other(exported, voice):
    enhancer, wave = Enhancer(exported[0] / "enhancer.onnx"), voice(2.0)
    pieces = list(enhancer.stream(0.4, 0.3, 0.1).run(np.array_split(wave, 7)))
    assert len(pieces) == 5 and sum(map(len, pieces)) == len(wave)


def test_a_classifier_hears_the_last_window_every_hop(exported, voice):
    classifier, wave = Classifier(exported[0] / "smart-home.onnx"), voice(2.0)
    answers = list(classifier.stream(1.0, 0.25).run(np.array_split(wave, 11)))
    assert [a.time for a in answers] == [0.25 * k for k in range(1, 9)]
    for answer in answers:
        heard = wave[max(0, round((answer.time - 1) * 16_000)) : round(answer.time * 16_000)]
        assert answer.labels == classifier(heard).labels


def test_latency_and_overhead_are_stated(exported):
    stream = Encoder(exported[0] / "encoder.onnx").stream(hop=12.0, left=0.8, right=0.4)
    assert stream.latency == pytest.approx(12.4 + 0.005) and stream.overhead == pytest.approx(0.1)


def test_what_is_no_audio_stops_a_stream():
    stream = WindowedStream(Windows(0, 1, 0, 1, 1), lambda window: window.last, 16_000)
    assert stream.push(np.zeros(0, np.float32)) == [] and stream.push(np.zeros(2, np.float32)) == [1, 2]
    with pytest.raises(AudioError):
        stream.push(np.array([np.nan], np.float32))
    with pytest.raises(AudioError):
        stream.push(np.zeros(3, np.int16))
    assert stream.close() == []
    with pytest.raises(AudioError, match="closed"):
        stream.push(np.zeros(1, np.float32))
