"""Laws of the 8-bit front end: it hears the quiet beside the loud, and neither padding nor stretches change what it says."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustdistiller.deployment import quantise as quantise_module
from robustdistiller.deployment.front_end import STRETCH
from robustdistiller.deployment.parity import voice_like
from robustdistiller.deployment.quantise import feeds, quantise


def session(model):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def cosine(a, b):
    return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


@pytest.fixture(scope="module")
def fp32(exported):
    return onnx.load(exported[0] / "encoder.onnx")


@pytest.fixture(scope="module")
def pair(fp32):
    """The encoder in float32 and in 8 bits."""
    return session(fp32), session(quantise(fp32, [voice_like(16_000, k) for k in range(3)]))


def test_a_quiet_passage_beside_a_loud_one_is_heard(fp32, pair, monkeypatch):
    wave = voice_like(32_000, 1)
    wave[16_000:] *= 0.003
    monkeypatch.setattr(quantise_module, "convolutions", lambda graph: [])
    static = session(quantise(fp32, [wave]))
    wanted, by_rows, by_tensor = (s.run(None, feeds(wave))[0][0, 0, 52:] for s in (*pair, static))
    assert cosine(wanted, by_rows).mean() > 0.999 > 0.99 > cosine(wanted, by_tensor).mean()


@settings(max_examples=12, deadline=None)
@given(length=st.integers(400, 320 * 3 * STRETCH), offset=st.integers(0, 15))
def test_every_length_gives_the_frames_of_float32(pair, length, offset):
    wave = voice_like(length + offset, offset)[offset:]
    (wanted, frames), (found, counted) = (s.run(None, feeds(wave)) for s in pair)
    assert found.shape == wanted.shape and counted == frames == (length - 400) // 320 + 1
    # A frame from the wrong place would be far off: neighbours here have a cosine of 0.6. Single frames lose up to 0.015.
    assert cosine(wanted, found)[0, 0].min() > 0.95


def test_padding_and_neighbours_change_nothing(pair):
    waves = [voice_like(n, n) for n in (9_000, 400, 23_456, 16_000)]
    batch = np.zeros((len(waves), max(map(len, waves))), np.float32)
    for row, wave in zip(batch, waves, strict=True):
        row[: len(wave)] = wave
    together, frames = pair[1].run(None, {"wave": batch, "lengths": np.array([len(w) for w in waves], np.int64)})
    for row, count, wave in zip(together, frames, waves, strict=True):
        alone = pair[1].run(None, feeds(wave))[0][0, 0]
        assert cosine(row[0, :count], alone).min() > 0.99999  # a value between two codes may fall either way
