"""The laws of reading and writing: what is asked is what comes, whatever the rate, and faults have names."""

import os
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustdistiller.audio.io import SAMPLE_RATE, find_audio, probe, read_audio, write_audio
from robustdistiller.errors import AudioError, UserError

RATES = (8000, 11025, 16000, 22050, 44100, 48000, 192_000)
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tone(rate: int, seconds: float, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


@pytest.fixture(scope="module")
def noises(tmp_path_factory):
    """The same kind of stereo noise at every rate: white, so that an error of one sample shows."""
    folder = tmp_path_factory.mktemp("noises")
    for rate in RATES:
        wave = 0.1 * np.random.default_rng(rate).standard_normal((2 * rate + 17, 2))
        soundfile.write(folder / f"{rate}.wav", wave, rate, "FLOAT")
    return folder


@few
@given(st.sampled_from(RATES), st.floats(0, 1.9), st.floats(0.001, 3))
def test_a_segment_is_the_same_slice_of_the_whole_file(noises, rate, start, seconds):
    path = noises / f"{rate}.wav"
    whole = read_audio(path)
    first, count = round(start * SAMPLE_RATE), round(seconds * SAMPLE_RATE)
    part = read_audio(path, start, seconds)
    assert part.dtype == np.float32 and part.shape == (min(count, len(whole) - first),)
    np.testing.assert_allclose(part, whole[first : first + count], atol=1e-6)


@pytest.mark.parametrize("rate", RATES)
def test_resampling_keeps_level_pitch_and_time(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(rate, 1.0), rate, "FLOAT")
    wave = read_audio(tmp_path / "a.wav")
    assert len(wave) == SAMPLE_RATE
    inner = slice(1000, -1000)  # the file's ends ring
    np.testing.assert_allclose(wave[inner], tone(SAMPLE_RATE, 1.0)[inner], atol=2e-4)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_compressed_files_seek_exactly(tmp_path, suffix, rate):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(3 * rate), rate)
    part = read_audio(path, 1.25, 0.5)
    np.testing.assert_allclose(part, read_audio(path)[20_000:28_000], atol=1e-5)


def test_channels_are_averaged_or_one_is_taken(tmp_path):
    wave = np.stack([tone(16000, 0.1), -tone(16000, 0.1), tone(16000, 0.1, 1000)], axis=1)
    soundfile.write(tmp_path / "a.wav", wave, 16000, "FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), wave.mean(axis=1), atol=1e-7)
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", channel=1), wave[:, 1])
    with pytest.raises(AudioError, match="no channel 3"):
        read_audio(tmp_path / "a.wav", channel=3)


def test_double_precision_and_integers_arrive_as_float32(tmp_path):
    for subtype in ("DOUBLE", "PCM_24", "PCM_U8"):
        soundfile.write(tmp_path / "a.wav", tone(16000, 0.1).astype(np.float64), 16000, subtype)
        assert read_audio(tmp_path / "a.wav").dtype == np.float32
    soundfile.write(tmp_path / "a.wav", np.full(100, 1e300), 16000, "DOUBLE")  # beyond float32
    with pytest.raises(AudioError) as caught:
        read_audio(tmp_path / "a.wav")
    assert caught.value.reason == "nan"


def _lying_flac(path, frames: int) -> None:
    """Overwrite the 36-bit length in the header of a FLAC file."""
    raw = bytearray(path.read_bytes())
    at = 8 + 13
    raw[at] = (raw[at] & 0xF0) | (frames >> 32)
    raw[at + 1 : at + 5] = struct.pack(">I", frames & 0xFFFFFFFF)
    path.write_bytes(raw)


def test_a_header_that_promises_too_much_costs_no_memory(tmp_path):
    path = tmp_path / "a.flac"
    write_audio(path, tone(16000, 1.0))
    _lying_flac(path, (1 << 36) - 16)
    assert probe(path).seconds > 1e6
    tracemalloc.start()
    assert len(read_audio(path)) == 16000
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_a_stream_that_does_not_tell_its_length_is_read(tmp_path):
    path = tmp_path / "a.flac"
    write_audio(path, tone(16000, 1.0))
    _lying_flac(path, 0)
    assert probe(path).frames == 16000
    assert len(read_audio(path)) == 16000 and len(read_audio(path, 0.9, 0.5)) == 1600


def test_long_files_are_read_in_bounded_memory(tmp_path):
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 48000, 2, "PCM_16") as file:
        for _ in range(60):
            file.write(np.zeros((48000 * 4, 2), np.int16))
    tracemalloc.start()
    assert len(read_audio(path, 200.0, 2.0)) == 32000
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "missing"), (b"", "empty"), (b"no audio at all" * 99, "corrupt"), ("none", "empty")]
)
def test_every_fault_has_its_reason(tmp_path, content, reason):
    path = tmp_path / "a.wav"
    if content == "none":
        soundfile.write(path, np.zeros(0), 16000)
    elif content is not None:
        path.write_bytes(content)
    for read in (probe, read_audio):
        with pytest.raises(AudioError, match=r"a\.wav") as caught:
            read(path)
        assert caught.value.reason == reason


def test_truncated_nan_and_short_files_have_their_reasons(tmp_path):
    write_audio(tmp_path / "cut.flac", tone(16000, 2.0))
    raw = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(raw[: len(raw) // 2])
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan, 0]), 16000, "FLOAT")
    write_audio(tmp_path / "one.wav", np.ones(1, np.float32))
    for name, start, reason in (("cut.flac", 0, "corrupt"), ("nan.wav", 0, "nan"), ("one.wav", 1, "too-short")):
        with pytest.raises(AudioError) as caught:
            read_audio(tmp_path / name, start)
        assert caught.value.reason == reason
    assert read_audio(tmp_path / "one.wav").shape == (1,)
    with pytest.raises(AudioError, match="does not exist"):
        read_audio(tmp_path)  # a folder


def test_what_is_written_is_read_back(tmp_path):
    wave = tone(16000, 0.2)
    for suffix, error in ((".wav", 2**-15), (".flac", 2**-15), (".ogg", 0.1)):
        write_audio(tmp_path / f"a{suffix}", wave)
        np.testing.assert_allclose(read_audio(tmp_path / f"a{suffix}"), wave, atol=error)
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"
    write_audio(tmp_path / "loud.wav", 4 * wave, 8000)
    np.testing.assert_array_equal(read_audio(tmp_path / "loud.wav", sampling_rate=8000), 4 * wave)
    write_audio(tmp_path / "loud.flac", 4 * wave)
    assert np.abs(read_audio(tmp_path / "loud.flac")).max() <= 1
    write_audio(tmp_path / "none.wav", np.zeros(0))
    assert soundfile.info(tmp_path / "none.wav").frames == 0


def test_writing_replaces_whole_files_or_nothing(tmp_path):
    path = tmp_path / "a.wav"
    write_audio(path, tone(16000, 0.1))
    before = path.read_bytes()
    with pytest.raises(AudioError):
        write_audio(path, np.array([np.inf]))
    with pytest.raises(UserError, match=r"\.wav, \.flac or \.ogg"):
        write_audio(tmp_path / "a.mp3", tone(16000, 0.1))
    with pytest.raises(ValueError, match="shape"):
        write_audio(path, np.zeros((2, 10)))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.wav"]


@pytest.mark.parametrize("fails", ["write", "silently"])
def test_a_full_disk_is_told_and_leaves_the_old_file(tmp_path, monkeypatch, fails):
    path = tmp_path / "a.wav"
    write_audio(path, tone(16000, 0.1))
    before = path.read_bytes()

    def write(self, data):
        if fails == "write":
            raise soundfile.LibsndfileError(2)

    monkeypatch.setattr(soundfile.SoundFile, "write", write)
    with pytest.raises(UserError, match=r"a\.wav"):
        write_audio(path, tone(16000, 0.2))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.wav"]


def test_folders_are_searched_to_their_ends_without_circles(tmp_path):
    for name in ("b/2.FLAC", "a/1.wav", "a/.hidden.wav", ".cache/3.wav", "a/readme.txt", "4.ogg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "circle").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in find_audio(tmp_path)]
    assert found == ["4.ogg", "a/1.wav", "b/2.FLAC"]
