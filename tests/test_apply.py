"""Laws of work on files: windows cover everything once, files equal the model, nothing is written over its input."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustdistiller.apply import enhance_files, enhanced, extract_features, features_of
from robustdistiller.audio.io import read_audio, write_audio
from robustdistiller.config import EnhancementConfig, StudentConfig
from robustdistiller.errors import UserError
from robustdistiller.models.building import build_student
from robustdistiller.models.teacher import load_teacher
from robustdistiller.runtime import windows


@pytest.fixture(scope="module")
def student(checkpoint):
    teacher = load_teacher(str(checkpoint("hubert")), precision="fp32")
    return build_student(teacher, StudentConfig(), EnhancementConfig(hidden=16, layers=1))[0].eval()


@given(st.integers(1, 5000), st.integers(1, 400), st.integers(0, 50), st.sampled_from([(1, 1), (5, 7)]))
def test_windows_cover_every_unit_once_with_their_context(total, size, context, grid):
    stride, field = grid
    wave, kept = np.arange((total - 1) * stride + field + stride - 1), []
    with mock.patch.multiple(windows, WINDOW_SECONDS=size, CONTEXT_SECONDS=context):
        for window in windows.windows(wave, stride, field, stride):
            assert window.wave[0] == window.begin * stride == max(0, window.first - context) * stride
            units = (len(window.wave) - field) // stride + 1
            assert window.begin + units == min(total, window.last + context)
            assert window.last - window.first <= size + 2 * context
            kept += range(window.first, window.last)
            last = window.wave[-1]
    assert kept == list(range(total)) and last == wave[-1]


def test_features_in_files_equal_the_states_of_the_model(student, voice, tmp_path):
    write_audio(tmp_path / "in" / "deep" / "a.wav", voice(1.2))
    write_audio(tmp_path / "in" / "b.flac", voice(0.7, 1), 16_000)
    done = extract_features(student, [tmp_path / "in"], tmp_path / "out", predictions=True)
    assert {item.target.relative_to(tmp_path / "out").as_posix() for item in done} == {"deep/a.npz", "b.npz"}
    with np.load(tmp_path / "out" / "deep" / "a.npz", allow_pickle=False) as stored:
        wave = torch.from_numpy(read_audio(tmp_path / "in" / "deep" / "a.wav"))
        expected, frames = student.states(wave[None], predictions=True)
        np.testing.assert_allclose(stored["states"], expected[0].numpy(), atol=1e-5)
        assert stored["names"].tolist() == [
            "cnn",
            "layer 1",
            "layer 2",
            *(f"teacher layer {k}" for k in student.layers),
        ]
        np.testing.assert_allclose(stored["times"], (np.arange(int(frames)) * 320 + 200) / 16_000)


def test_a_long_recording_has_every_frame_and_sample(student, voice, monkeypatch):
    wave = torch.tensor(voice(7.3))
    whole_states, whole_wave = features_of(student, wave), enhanced(student, wave)
    monkeypatch.setattr(windows, "WINDOW_SECONDS", 2)
    states, clean = features_of(student, wave), enhanced(student, wave)
    assert states.shape == whole_states.shape and clean.shape == whole_wave.shape == wave.shape
    # GroupNorm over time and attention see a window instead of the whole, so equality is approximate.
    assert torch.nn.functional.cosine_similarity(states, whole_states, dim=-1).mean() > 0.95


def test_enhancing_one_file_writes_one_file(student, voice, tmp_path):
    write_audio(tmp_path / "noisy.wav", voice(1.0))
    enhance_files(student, [tmp_path / "noisy.wav"], tmp_path / "clean.wav")
    expected = student.enhance(torch.from_numpy(read_audio(tmp_path / "noisy.wav"))[None])[0]
    np.testing.assert_allclose(read_audio(tmp_path / "clean.wav"), expected.numpy(), atol=2**-15)


def test_files_that_cannot_be_read_are_told_and_the_rest_goes_on(student, voice, tmp_path, caplog):
    folder = tmp_path / "in"
    write_audio(folder / "good.wav", voice(0.5))
    write_audio(folder / "short.wav", voice(0.01))
    for number in range(40):
        (folder / f"worse{number}.wav").write_bytes(b"RIFF nothing")
    (folder / "bad.wav").write_bytes(b"RIFF nothing")
    (folder / "empty.flac").write_bytes(b"")
    done = {item.source.name: item for item in enhance_files(student, [folder], tmp_path / "out")}
    assert done["good.wav"].target is not None
    assert {name: done[name].reason for name in ("short.wav", "bad.wav", "empty.flac")} == {
        "short.wav": "too-short", "bad.wav": "corrupt", "empty.flac": "empty",
    }  # fmt: skip
    assert all(name in caplog.text for name in ("short.wav", "empty.flac"))
    assert len(caplog.records) == 3 and "41 files are left out (corrupt), the first: " in caplog.text


def test_mistakes_are_one_sentence(student, voice, tmp_path):
    write_audio(tmp_path / "a.wav", voice(0.5))
    with pytest.raises(UserError, match="no file or folder"):
        enhance_files(student, [tmp_path / "absent"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no audio in"):
        enhance_files(student, [tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(UserError, match="would replace the input"):
        enhance_files(student, [tmp_path / "a.wav"], tmp_path / "a.wav")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.wav").write_bytes(b"nothing")
    with pytest.raises(UserError, match="None of 1 recordings can be used"):
        enhance_files(student, [tmp_path / "bad"], tmp_path / "out")


def test_inputs_of_one_name_are_refused_before_any_work(student, voice, tmp_path):
    for name in "abcd":
        write_audio(tmp_path / name / "001.wav", voice(0.5))
    folders = [tmp_path / name for name in "abcd"]
    for work in (extract_features, enhance_files):
        with pytest.raises(UserError, match="would both be written to"):
            work(student, folders, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    done = extract_features(student, [tmp_path], tmp_path / "features")
    assert len({item.target for item in done}) == len(list((tmp_path / "features").rglob("*.npz"))) == 4


def test_files_that_differ_in_format_alone_have_outputs_of_their_own(student, voice, tmp_path):
    write_audio(tmp_path / "in" / "a.wav", voice(0.5))
    write_audio(tmp_path / "in" / "a.flac", voice(0.6))
    enhance_files(student, tmp_path / "in", tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.flac.wav", "a.wav.wav"]


def test_enhancing_into_the_folder_of_the_inputs_keeps_them(student, voice, tmp_path):
    write_audio(tmp_path / "a.wav", voice(0.5))
    write_audio(tmp_path / "b.flac", voice(0.5))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UserError, match="would replace the input"):
        enhance_files(student, [tmp_path], tmp_path, overwrite=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_only_earlier_outputs_are_replaced_and_only_when_told_to(student, voice, tmp_path):
    write_audio(tmp_path / "noisy.wav", voice(0.5))
    write_audio(tmp_path / "mine.wav", voice(0.4))
    for work, name in ((enhance_files, "clean.wav"), (extract_features, "states.npz")):
        work(student, [tmp_path / "noisy.wav"], tmp_path / name)
        with pytest.raises(UserError, match="add --overwrite"):
            work(student, [tmp_path / "noisy.wav"], tmp_path / name)
        work(student, [tmp_path / "noisy.wav"], tmp_path / name, overwrite=True)
    with pytest.raises(UserError, match="did not write it"):
        enhance_files(student, [tmp_path / "noisy.wav"], tmp_path / "mine.wav", overwrite=True)
    np.savez(tmp_path / "mine.npz", states=np.zeros(3))
    with pytest.raises(UserError, match="did not write it"):
        extract_features(student, [tmp_path / "noisy.wav"], tmp_path / "mine.npz", overwrite=True)


def test_several_inputs_need_a_folder_for_their_outputs(student, voice, tmp_path):
    write_audio(tmp_path / "in" / "a.wav", voice(0.5))
    write_audio(tmp_path / "in" / "b.wav", voice(0.5))
    for inputs in ([tmp_path / "in"], [tmp_path / "in" / "a.wav", tmp_path / "in" / "b.wav"]):
        with pytest.raises(UserError, match="name of a file"):
            enhance_files(student, inputs, tmp_path / "out.wav")
    with pytest.raises(UserError, match="ends in"):
        extract_features(student, [tmp_path / "in" / "a.wav"], tmp_path / "out.wav")
    assert not (tmp_path / "out.wav").exists()
