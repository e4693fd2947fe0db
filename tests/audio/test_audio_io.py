"""The laws of reading and writing: what is asked is what comes, whatever the rate, and faults have names."""

import contextlib
import os
import shutil
import struct
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustdistiller.audio import io
from robustdistiller.audio.io import SAMPLE_RATE, find_audio, probe, read_audio, write_audio
from robustdistiller.audio.prepare import prepare
from robustdistiller.errors import AudioError, UserError
from robustdistiller.runtime import read_wave

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


ANTIPHASE = {  # channels of one voice, and how much of it must be left, at least
    "inverted": lambda w, v: (w, -w),
    "inverted and a little louder": lambda w, v: (w, -1.001 * w),
    "inverted over an offset": lambda w, v: (w + 0.2, -w + 0.2),
    "two inverted pairs": lambda w, v: (w, -w, v, -v),
    "a dead channel before": lambda w, v: (0 * w, w, -w),
}


@pytest.mark.parametrize("read", [read_audio, read_wave, lambda path: prepare(path, "speech").recordings[0].load()])
@pytest.mark.parametrize("name", ANTIPHASE)
def test_channels_that_cancel_do_not_leave_silence(tmp_path, name, read):
    w, v = (tone(16000, 0.5, hertz) for hertz in (440, 700))
    soundfile.write(tmp_path / "a.wav", np.stack(ANTIPHASE[name](w, v), axis=1), 16000, "FLOAT")
    wave = read(tmp_path / "a.wav")
    assert abs(np.corrcoef(wave, w)[0, 1]) > 0.999 and np.std(wave) == pytest.approx(np.std(w), rel=0.01)


@pytest.mark.parametrize("read", [read_audio, read_wave, lambda path: prepare(path, "speech").recordings[0].load()])
def test_channels_that_do_not_cancel_are_averaged(tmp_path, read):
    w, v = (tone(16000, 0.5, hertz) for hertz in (440, 700))
    for channels in ((w, w), (w, v), (w, 0 * w), (0.5 * (w + v), 0.5 * (w - v)), (w, -0.4 * w), (0 * w + 0.1, w)):
        wave = np.stack(channels, axis=1)
        soundfile.write(tmp_path / "a.wav", wave, 16000, "FLOAT")
        np.testing.assert_allclose(read(tmp_path / "a.wav"), wave.mean(axis=1), atol=1e-6)


def test_one_part_of_antiphase_stereo_is_the_slice_of_the_whole(tmp_path):
    wave = 0.1 * np.random.default_rng(0).standard_normal(3 * 44100)
    soundfile.write(tmp_path / "a.wav", np.stack([wave, -wave], axis=1), 44100, "FLOAT")
    whole = read_audio(tmp_path / "a.wav")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", 1.5, 0.5), whole[24_000:32_000], atol=1e-6)


@pytest.mark.parametrize(("suffix", "codec"), [("m4a", "aac"), ("webm", "libopus"), ("mp4", "aac")])
def test_files_of_other_containers_are_read_with_pyav(tmp_path, suffix, codec):
    av = pytest.importorskip("av")
    wave = tone(48000, 2.0)
    with av.open(str(tmp_path / f"a.{suffix}"), "w") as container:
        stream = container.add_stream(codec, rate=48000, layout="stereo")
        for begin in range(0, len(wave), 960):
            part = np.stack([wave[begin : begin + 960]] * 2).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = 48000, begin
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    path = tmp_path / f"a.{suffix}"
    whole = read_audio(path)
    assert probe(path).seconds == pytest.approx(2.0, abs=0.1) and len(whole) == pytest.approx(32_000, abs=1600)
    spectrum = np.abs(np.fft.rfft(whole[8000:24_000]))
    assert np.argmax(spectrum) == 440 and np.std(whole[8000:24_000]) == pytest.approx(np.std(wave), rel=0.05)
    np.testing.assert_allclose(read_audio(path, 0.5, 0.5), whole[8000:16_000], atol=1e-5)
    assert [r.id for r in prepare(tmp_path, "speech").recordings] == ["a"]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(AudioError):
        read_audio(path)


def test_files_that_cannot_be_read_are_counted_by_kind(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(io, "readable", lambda: io.SUFFIXES)
    for name in ("a.m4a", "b.M4A", "c.ape", "d.txt"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="no audio files"):
        prepare(tmp_path, "speech")
    assert "1 .ape, 2 .m4a" in caplog.text and "media" in caplog.text
    caplog.clear()
    write_audio(tmp_path / "e.wav", tone(16000, 0.5))
    assert len(prepare(tmp_path, "speech").recordings) == 1
    assert "2 .m4a" in caplog.text


def test_the_decoder_of_mp3_says_nothing_itself(tmp_path, capfd):
    path = tmp_path / "a.mp3"
    soundfile.write(path, tone(16000, 3.0), 16000)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 300] = bytes(range(250)) + bytes(50)
    path.write_bytes(raw[: len(raw) * 3 // 4])
    with contextlib.suppress(AudioError):
        read_audio(path)
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs to become somebody else")
def test_a_file_that_may_not_be_read_is_not_called_corrupt(tmp_path, monkeypatch):
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    write_audio(folder / "a.wav", tone(16000, 0.5))
    write_audio(folder / "b.wav", tone(16000, 0.5))
    (folder / "a.wav").chmod(0)
    (folder / "closed").mkdir(mode=0)
    os.seteuid(65534)
    try:
        with pytest.raises(AudioError, match="may not be read") as caught:
            read_audio(folder / "a.wav")
        assert caught.value.reason == "permission"
        found = prepare(folder, "speech")
    finally:
        os.seteuid(0)
        shutil.rmtree(folder)
    assert {(os.path.basename(row.path), row.reason) for row in found.skipped} == {
        ("a.wav", "permission"),
        ("closed", "folder"),
    }


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
    with pytest.raises(AudioError, match="is a folder"):
        read_audio(tmp_path)


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
