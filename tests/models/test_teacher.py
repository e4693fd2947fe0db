"""Laws of the teacher: frozen, clean of dropout, right layers, right input, right time."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModel, WhisperFeatureExtractor

from robustdistiller.errors import UserError
from robustdistiller.models.teacher import load_teacher, scaled_layers

KINDS = [
    "hubert", "wav2vec2", "wavlm", "data2vec-audio", "unispeech", "unispeech-sat", "wav2vec2-conformer", "wav2vec2-bert", "sew",
    "sew-d", "whisper",
]  # fmt: skip
LONGEST_FIRST_FRAME = {"wav2vec2-bert": 560, "sew": 720, "sew-d": 720}


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_is_frozen_and_in_eval_whatever_the_trainer_does(checkpoint, voice, kind):
    teacher = load_teacher(str(checkpoint(kind)), precision="fp32")
    wave = torch.tensor(voice(1.0))[None]
    before = teacher(wave).hidden
    holder = torch.nn.ModuleList([teacher]).train()
    assert not any(module.training for module in holder[0].modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    torch.testing.assert_close(teacher(wave).hidden, before, atol=0, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_stored_as_they_are_multiplied_change_no_bit(checkpoint, voice, kind, monkeypatch):
    monkeypatch.setattr("robustdistiller.models.precision._cpu_needs_fp32", lambda module: False)
    teacher = load_teacher(str(checkpoint(kind)), precision="bf16")
    wave = torch.tensor(voice(1.0))[None]
    before = teacher(wave).hidden
    teacher.settle(torch.device("cpu"))
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32, torch.bfloat16}
    torch.testing.assert_close(teacher(wave).hidden, before, atol=0, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_have_the_frames_of_the_student(checkpoint, voice, kind):
    teacher = load_teacher(str(checkpoint(kind)), precision="fp32")
    shortest = LONGEST_FIRST_FRAME.get(kind, 400)
    for samples in (shortest, 720, 1039, 1040, 8000, 12345):
        output = teacher(torch.tensor(voice(2.0))[None, :samples])
        assert output.hidden.shape[2] == (samples - 400) // 320 + 1 == int(output.lengths)
    if shortest > 400:
        with pytest.raises(UserError, match=f"{shortest}"):
            teacher(torch.tensor(voice(2.0))[None, : shortest - 1])


@pytest.mark.parametrize("stable", [False, True])
def test_stopping_at_the_highest_target_changes_nothing(checkpoint, voice, stable):
    folder = str(checkpoint("hubert", stable=stable))
    wave = torch.tensor(voice(0.6))[None]
    for layers in ((1, 2), (2, 3), (1,)):
        whole = load_teacher(folder, layers, precision="fp32")
        short = load_teacher(folder, layers, precision="fp32", target_norm=whole.target_norm).stop_at_highest()
        torch.testing.assert_close(short(wave).hidden, whole(wave).hidden, atol=0, rtol=0)
        assert short.encoder.num_layers == max(layers)


def test_the_last_layer_of_a_pre_norm_teacher_is_its_normalised_output(checkpoint, voice):
    folder = checkpoint("wav2vec2", stable=True)
    wave = torch.tensor(voice(0.6))[None]
    teacher = load_teacher(str(folder), (3,), precision="fp32", target_norm="none")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folder).eval()(wave).last_hidden_state
    torch.testing.assert_close(teacher(wave).hidden[:, 0], expected, atol=1e-5, rtol=0)


def test_pre_norm_targets_are_normalised_by_default_and_post_norm_ones_are_not(checkpoint, voice):
    wave = torch.tensor(voice(0.6))[None]
    assert load_teacher(str(checkpoint("hubert"))).target_norm == "none"
    for folder in (checkpoint("hubert", stable=True), checkpoint("whisper")):
        hidden = load_teacher(str(folder), precision="fp32")(wave).hidden
        torch.testing.assert_close(hidden.mean(-1), torch.zeros(hidden.shape[:-1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(hidden.var(-1, unbiased=False), torch.ones(hidden.shape[:-1]), atol=1e-2, rtol=0)


def test_input_normalisation_of_the_checkpoint_is_followed(checkpoint, voice):
    wave = torch.tensor(voice(0.6))[None]
    plain = load_teacher(str(checkpoint("wav2vec2", normalize=False)), precision="fp32")
    normal = load_teacher(str(checkpoint("wav2vec2", normalize=True)), precision="fp32")
    assert (plain.normalize, normal.normalize) == (False, True)
    torch.testing.assert_close(normal(wave).hidden, normal(wave * 0.1).hidden, atol=1e-3, rtol=0)


def test_whisper_log_mel_equals_that_of_the_hub(checkpoint, voice):
    teacher = load_teacher(str(checkpoint("whisper")))
    for seconds in (0.5, 1.234, 3.0):
        wave = voice(seconds, 3)
        expected = WhisperFeatureExtractor()(wave, sampling_rate=16_000, return_tensors="pt").input_features
        padded = torch.nn.functional.pad(torch.tensor(wave), (0, 16_000))[None]
        ours = teacher.encoder.log_mel(padded, torch.tensor([len(wave)]))
        torch.testing.assert_close(ours, expected[:, :, : ours.shape[-1]], atol=1e-4, rtol=0)


def test_a_whole_window_of_whisper_equals_transformers(checkpoint):
    folder = checkpoint("whisper")
    wave = torch.tensor(np.random.default_rng(0).standard_normal(480_000) * 0.05, dtype=torch.float32)[None]
    encoder = load_teacher(str(folder), precision="fp32").encoder
    features = WhisperFeatureExtractor()(wave[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folder).eval().encoder(features).last_hidden_state
        ours = encoder(wave).states[-1]
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_layers_scale_with_the_depth():
    assert scaled_layers(12) == (4, 8, 12)
    assert scaled_layers(24) == (8, 16, 24)
    assert scaled_layers(4) == (1, 3, 4)
    assert scaled_layers(1) == (1,)


def test_wrong_teachers_are_one_sentence(checkpoint, tmp_path):
    with pytest.raises(UserError, match="3 layers, not 7"):
        load_teacher(str(checkpoint("hubert")), (1, 7))
    with pytest.raises(UserError, match=r"no config\.json"):
        load_teacher(str(tmp_path))
    with pytest.raises(UserError, match="no model folder"):
        load_teacher("./nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="'bert' model"):
        load_teacher(str(tmp_path))
    (tmp_path / "config.json").write_text("not json")
    with pytest.raises(UserError, match="not valid JSON"):
        load_teacher(str(tmp_path))


def test_a_whisper_whose_mel_bands_do_not_fit_is_refused_in_a_sentence(checkpoint, tmp_path):
    folder = tmp_path / "whisper"
    shutil.copytree(checkpoint("whisper"), folder)
    file = folder / "preprocessor_config.json"
    WhisperFeatureExtractor(feature_size=1).save_pretrained(folder)
    assert json.loads(file.read_text())["feature_size"] == 1
    with pytest.raises(UserError, match="mel bands"):
        load_teacher(str(folder))
