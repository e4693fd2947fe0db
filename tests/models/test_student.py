"""Laws of the student: opened by plain transformers, equal after saving, initialised from its teacher, batch-independent."""

import copy
import functools
import io
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel

from robustdistiller.config import EnhancementConfig, StudentConfig
from robustdistiller.errors import UserError
from robustdistiller.models import pruning
from robustdistiller.models.building import build_student
from robustdistiller.models.heads import EnhancementHead, stft
from robustdistiller.models.hub import SUPPORTED
from robustdistiller.models.initialise import PruningPlan
from robustdistiller.models.student import load_student
from robustdistiller.models.teacher import load_teacher

SMALL = EnhancementConfig(hidden=16, layers=2)


def build(checkpoint, kind="hubert", enhancement=SMALL, stable=False, normalize=False, **fields):
    teacher = load_teacher(str(checkpoint(kind, stable=stable, normalize=normalize)), precision="fp32")
    return teacher, *build_student(teacher, StudentConfig(**fields), enhancement)


@pytest.mark.parametrize("kind", SUPPORTED)
@pytest.mark.parametrize("normalize", [False, True])
def test_a_student_folder_opens_in_plain_transformers(checkpoint, voice, tmp_path, kind, normalize):
    _, student, _ = build(checkpoint, kind, normalize=normalize)
    student.eval().save(tmp_path / "student")
    wave = voice(0.8)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "student")
    model, report = AutoModel.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert type(model).__name__ == ("WavLMModel" if kind == "wavlm" else "HubertModel")
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        theirs = model.eval()(extractor(wave, sampling_rate=16_000, return_tensors="pt").input_values).last_hidden_state
        ours, _ = student.states(torch.tensor(wave)[None])
    torch.testing.assert_close(theirs, ours[:, -1], atol=1e-5, rtol=0)


def test_loading_gives_back_what_was_saved(checkpoint, voice, tmp_path):
    _, student, _ = build(checkpoint)
    student.eval().save(tmp_path / "student", texts={"README.md": "# card"})
    again = load_student(tmp_path / "student")
    wave = torch.tensor(voice(0.8))[None]
    torch.testing.assert_close(again.states(wave, predictions=True)[0], student.states(wave, predictions=True)[0])
    torch.testing.assert_close(again.enhance(wave), student.enhance(wave))
    assert (again.layers, again.tap) == (student.layers, student.tap)
    assert (tmp_path / "student" / "README.md").read_text() == "# card"


def test_the_student_starts_as_the_first_layers_of_its_teacher(checkpoint, voice):
    teacher, student, report = build(checkpoint)
    assert not report.random and not report.pruned
    wave = torch.tensor(voice(0.8))[None]
    torch.testing.assert_close(student.eval().states(wave)[0], teacher.states(wave)[0][:, :3])


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_a_deep_student_starts_from_the_layers_that_are_named(checkpoint, voice, kind):
    teacher, student, report = build(checkpoint, kind, layers=2, from_layers=[1, 3])
    assert not report.random and not report.pruned
    mine, theirs = (x.encoder.model.encoder.layers.state_dict() for x in (student, teacher))
    for name, value in mine.items():
        place, _, rest = name.partition(".")
        assert torch.equal(value, theirs[f"{(0, 2)[int(place)]}.{rest}"]), name
    wave = torch.tensor(voice(0.8))[None]
    torch.testing.assert_close(student.eval().states(wave)[0][:, :2], teacher.states(wave)[0][:, :2])


def test_from_layers_must_be_layers_of_the_source(checkpoint):
    for wrong in ([1], [3, 1], [1, 1]):
        with pytest.raises(ValueError, match="2 layers in rising order"):
            StudentConfig(layers=2, from_layers=wrong)
    with pytest.raises(UserError, match="from_layers has 9"):
        build(checkpoint, layers=2, from_layers=[1, 9])


def test_layer_to_layer_each_target_is_predicted_from_its_depth(checkpoint, voice, tmp_path):
    teacher, student, _ = build(checkpoint, layers=3, predict_from="layers")
    assert teacher.layers == (1, 2, 3) and student.heads.sources == (1, 2, 3)
    student.eval().save(tmp_path / "student")
    again, wave = load_student(tmp_path / "student"), torch.tensor(voice(0.6))[None]
    predicted = again(wave, enhance=False).predictions
    torch.testing.assert_close(predicted, student(wave, enhance=False).predictions)
    for target in range(3):
        again.zero_grad(set_to_none=True)
        again(wave, enhance=False).predictions[:, target].square().sum().backward()
        layers = again.encoder.model.encoder.layers
        reached = [bool(layer.feed_forward.output_dense.weight.grad.any()) for layer in layers]
        assert reached == [layer <= target for layer in range(3)]


@pytest.mark.parametrize("channels", [16, (16, 16, 16, 24, 24, 32, 32)])
def test_a_pruned_front_end_takes_channels_of_the_teacher_and_keeps_their_energy(checkpoint, channels):
    teacher, student, report = build(checkpoint, conv_channels=channels)
    assert any("conv_layers.0.conv.weight" in name for name in report.pruned)
    first = student.encoder.model.feature_extractor.conv_layers[0].conv.weight
    source = teacher.encoder.model.feature_extractor.conv_layers[0].conv.weight
    rows = [int((source - row).abs().sum((1, 2)).argmin()) for row in first]
    assert len(set(rows)) == 16
    torch.testing.assert_close(first, source[rows])
    projection = student.encoder.model.feature_projection.projection.weight
    full = teacher.encoder.model.feature_projection.projection.weight
    torch.testing.assert_close(projection.square().sum(1), full.square().sum(1))


def distance(teacher, student, wave):
    return float((student.eval().states(wave)[0][:, 0] - teacher.states(wave)[0][:, 0]).square().mean())


@pytest.mark.parametrize("kind, stable", [("hubert", False), ("wav2vec2", True)])
def test_a_pruned_front_end_fitted_on_speech_is_nearer_to_its_teacher(checkpoint, voice, kind, stable):
    teacher = load_teacher(str(checkpoint(kind, stable=stable)), precision="fp32")
    config, heard = StudentConfig(conv_channels=(16, 16, 24, 24, 24, 28, 28)), torch.tensor(voice(1.0, 9))[None]
    chosen, _ = build_student(teacher, config, SMALL)
    fitted, _ = build_student(teacher, config, SMALL, 0, [torch.tensor(voice(2.0, seed)) for seed in range(3)])
    assert distance(teacher, fitted, heard) < 0.7 * distance(teacher, chosen, heard)


def test_a_front_end_of_which_nothing_is_left_out_is_fitted_to_its_teacher_itself(checkpoint, voice):
    teacher, student, _ = build(checkpoint)
    everything = PruningPlan([torch.arange(32)] * 7)
    clips = [torch.tensor(voice(2.0, seed)) for seed in range(2)]
    pruning.fit(student.encoder, teacher.encoder, everything, {}, clips, (1, 2))
    assert distance(teacher, student, torch.tensor(voice(1.0, 9))[None]) < 1e-3


def test_a_short_position_convolution_is_the_middle_of_the_teachers(checkpoint):
    teacher, student, report = build(checkpoint, position_kernel=8)
    mine, theirs = (x.encoder.model.encoder.pos_conv_embed for x in (student, teacher))
    assert len(report.pruned) == 2 and not report.random
    torch.testing.assert_close(mine.conv.weight, theirs.conv.weight[..., 12:20])
    with torch.no_grad():  # frames stay where they are: with nothing outside the middle, both are the same
        theirs.conv.parametrizations.weight.original0[..., :12] = 0
        theirs.conv.parametrizations.weight.original0[..., 20:] = 0
    x = torch.randn(1, 30, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mine(x), theirs(x), atol=1e-5, rtol=0)


def test_other_sizes_can_be_built(checkpoint, voice, tmp_path):
    _, student, report = build(checkpoint, hidden_size=48, heads=3, feed_forward=64, layers=1, conv_channels=24)
    assert report.random
    student.eval().save(tmp_path / "student")
    again = load_student(tmp_path / "student")
    states, frames = again.states(torch.tensor(voice(0.5))[None])
    assert states.shape == (1, 2, 24, 48) and frames.tolist() == [24]
    assert again.states_names == ("cnn", "layer 1")
    with pytest.raises(UserError, match="predictions"):
        again.states(torch.tensor(voice(0.5))[None], predictions=True)


def test_the_paper_student_has_the_published_size(tmp_path):
    from transformers import HubertConfig, HubertModel

    from robustdistiller.models.encoder import ConvEncoder
    from robustdistiller.models.teacher import Teacher

    teacher = Teacher(ConvEncoder(HubertModel(HubertConfig(num_hidden_layers=3))))
    student, _ = build_student(teacher, StudentConfig(projection_norm=False), EnhancementConfig(enabled=False))
    assert round(student.num_parameters / 1e6, 2) == 23.49


@pytest.mark.parametrize(("tap", "frame_rate"), [("last", 50), ("cnn", 50), (1, 100)])
def test_enhancement_does_not_depend_on_the_batch(checkpoint, voice, tap, frame_rate):
    _, student, _ = build(
        checkpoint, enhancement=EnhancementConfig(hidden=16, layers=2, tap=tap, frame_rate=frame_rate)
    )
    student.eval()
    waves = [torch.tensor(voice(seconds, seed)) for seed, seconds in enumerate((0.5, 1.3))]
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    lengths = torch.tensor([len(wave) for wave in waves])
    together = student.enhance(batch, lengths)
    for row, wave in enumerate(waves):
        torch.testing.assert_close(together[row, : len(wave)], student.enhance(wave[None])[0], atol=1e-4, rtol=0)
    assert not together[0, len(waves[0]) :].any()


@pytest.mark.parametrize("frame_rate", [50, 100])
def test_in_training_the_enhancement_head_reads_windows_and_after_it_whole_utterances(frame_rate):
    torch.manual_seed(0)
    windowed = EnhancementHead(6, hidden=4, layers=2, dropout=0.0, frame_rate=frame_rate, window_seconds=0.5)
    whole = EnhancementHead(6, hidden=4, layers=2, dropout=0.0, frame_rate=frame_rate)
    whole.load_state_dict(windowed.state_dict())
    x = torch.randn(2, 104, 6)
    count = round(104 / (0.5 * frame_rate))
    apart = torch.cat([whole.lstm(part)[0] for part in x.split(104 // count, 1)], 1)
    torch.testing.assert_close(windowed._run(x, torch.tensor([104, 90])), apart)  # whatever is valid
    for size in (103, 30, 5):  # what is no multiple, or less than two windows
        assert windowed._run(x[:, :size], torch.tensor([size] * 2)).shape == (2, size, 8)
    windowed.eval(), whole.eval()
    for valid in ([104, 104], [104, 60]):
        assert torch.equal(windowed._run(x, torch.tensor(valid)), whole._run(x, torch.tensor(valid)))


@pytest.mark.parametrize("frame_rate", [50, 100])
def test_a_spectrogram_frame_is_masked_by_the_student_frame_nearest_in_time(frame_rate, monkeypatch):
    head = EnhancementHead(2, hidden=1, layers=1, frame_rate=frame_rate)
    monkeypatch.setattr(head, "_run", lambda x, valid: x)  # the state itself says what the mask is
    torch.nn.init.zeros_(head.mask.bias)
    torch.nn.init.ones_(head.mask.weight)
    samples, frames = 16_000, 49
    state = torch.linspace(-2, 2, frames)
    features = torch.stack([state, torch.zeros(frames)], -1)[None]
    wave = torch.randn(1, samples, generator=torch.Generator().manual_seed(0))
    enhancement = head(features, torch.tensor([frames]), wave, torch.tensor([samples]))
    spectrum, _ = stft(wave, torch.tensor([samples]))
    centres = torch.arange(frames) * 320 + 200
    nearest = [int((centres - 160 * n).abs().argmin()) for n in range(spectrum.shape[-1])]
    torch.testing.assert_close(enhancement.spectrum, spectrum * torch.sigmoid(state[nearest]))


def test_a_folder_that_names_no_frame_rate_has_the_heads_of_the_official_code(checkpoint, voice, tmp_path):
    _, student, _ = build(checkpoint, enhancement=EnhancementConfig(hidden=16, layers=1, frame_rate=100))
    student.eval().save(tmp_path / "student")
    described = json.loads((tmp_path / "student" / "heads.json").read_text())
    assert described["enhancement"].pop("frame_rate") == 100
    (tmp_path / "student" / "heads.json").write_text(json.dumps(described))
    wave = torch.tensor(voice(0.6))[None]
    torch.testing.assert_close(load_student(tmp_path / "student").enhance(wave), student.enhance(wave))


def test_a_mask_of_ones_gives_the_input_back(checkpoint, voice):
    _, student, _ = build(checkpoint)
    torch.nn.init.zeros_(student.enhancer.mask.weight)
    torch.nn.init.constant_(student.enhancer.mask.bias, 50.0)
    wave = torch.tensor(voice(1.01))[None]
    torch.testing.assert_close(student.eval().enhance(wave), wave, atol=1e-5, rtol=0)


def test_gradient_of_the_enhancement_reaches_the_transformer_only_when_tapped_there(checkpoint, voice):
    for tap, reached in (("last", True), (1, False), ("cnn", False)):
        _, student, _ = build(checkpoint, enhancement=EnhancementConfig(hidden=16, layers=1, tap=tap))
        output = student.train()(torch.tensor(voice(0.5))[None], predict=False)
        output.enhancement.magnitude.sum().backward()
        gradient = student.encoder.model.encoder.layers[1].feed_forward.output_dense.weight.grad
        assert (gradient is not None and bool(gradient.any())) is reached


def test_half_precision_agrees_within_its_bounds(checkpoint, voice):
    _, student, _ = build(checkpoint)
    wave = torch.tensor(voice(1.0))[None]
    exact, _ = student.eval().states(wave)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, _ = student.states(wave)
    assert torch.nn.functional.cosine_similarity(exact, rough, dim=-1).min() > 0.99


def test_compiled_layers_compute_the_same_and_what_cannot_be_compiled_runs_as_it_is(checkpoint, voice, monkeypatch):
    compiled = []

    def backend(graph, example):
        compiled.append(graph)
        if len(compiled) == 2:
            raise NotImplementedError("no compiler")
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    wave, lengths = torch.tensor(np.stack([voice(0.6, 1), voice(0.6, 2)])), torch.tensor([9600, 7000])
    teacher, student, _ = build(checkpoint, dropout=0.0)
    expected = [teacher(wave, lengths).hidden, student.train()(wave, lengths).predictions]
    teacher.encoder.compile_layers()
    student.encoder.compile_layers()
    found = [teacher(wave, lengths).hidden, student(wave, lengths).predictions]
    found[1].sum().backward()
    assert len(compiled) >= 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_seed_gives_the_same_student(checkpoint):
    first, second = (build(checkpoint, "whisper")[1] for _ in range(2))
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_wrong_students_are_one_sentence(checkpoint, tmp_path, voice):
    with pytest.raises(UserError, match="multiple of"):
        build(checkpoint, hidden_size=50, heads=4)
    with pytest.raises(UserError, match="one width or 7"):
        build(checkpoint, conv_channels=(8, 8))
    with pytest.raises(UserError, match="layer 5, but the student has 2"):
        build(checkpoint, enhancement=EnhancementConfig(hidden=16, tap=5))
    _, student, _ = build(checkpoint, enhancement=EnhancementConfig(enabled=False))
    with pytest.raises(UserError, match="no enhancement head"):
        student.enhance(torch.tensor(voice(0.5))[None])
    student.save(tmp_path / "student")
    heads = tmp_path / "student" / "heads.json"
    description = json.loads(heads.read_text())
    heads.write_text(json.dumps({**description, "targets": 7}))
    with pytest.raises(UserError, match="heads in"):
        load_student(tmp_path / "student")
    assert "heads.shared.weight" in load_file(tmp_path / "student" / "heads.safetensors")


def test_a_student_can_start_from_another_model_than_its_teacher(checkpoint, voice):
    """So a student of Whisper can start from a HuBERT, and an existing student can be made robust."""
    other = checkpoint("hubert", normalize=True)
    teacher, student, report = build(checkpoint, "whisper", init=str(other))
    assert not report.random and student.encoder.normalize and teacher.normalize is False
    wave = torch.tensor(voice(0.8))[None]
    start = load_teacher(str(other), precision="fp32").states(wave)[0][:, :3]
    torch.testing.assert_close(student.eval().states(wave)[0], start)
    assert student.heads.outputs[0].out_features == teacher.hidden_size


def test_threads_may_share_a_student(checkpoint, voice):
    """Also the families that are captured by hooks and silence padding in a stack of convolutions."""
    from concurrent.futures import ThreadPoolExecutor

    for kind in ("hubert", "wavlm", "data2vec-audio"):
        student = load_student(checkpoint(kind))
        batches = [
            (
                torch.tensor(np.stack([voice(0.1 + 0.03 * k, k), voice(0.1 + 0.03 * k, k + 9)])),
                [1600 + 480 * k, 1000 + 200 * k],
            )
            for k in range(8)
        ]
        alone = [student.states(*batch)[0] for batch in batches]
        with ThreadPoolExecutor(4) as pool:
            together = [states for states, _ in pool.map(student.states, *zip(*batches * 6, strict=True))]
        for k, states in enumerate(together):
            torch.testing.assert_close(states, alone[k % 8], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["hubert", "wavlm", "data2vec-audio"])
def test_a_student_can_be_copied_and_pickled(checkpoint, voice, kind):
    _, student, _ = build(checkpoint, kind, layers=1)
    student.eval().encoder.model.feature_extractor.requires_grad_(False)
    wave, stored = torch.tensor(voice(0.5))[None], io.BytesIO()
    torch.save(student, stored)
    stored.seek(0)
    for twin in (pickle.loads(pickle.dumps(student)), copy.deepcopy(student), torch.load(stored, weights_only=False)):
        torch.testing.assert_close(twin.states(wave)[0], student.states(wave)[0])
        torch.testing.assert_close(twin.enhance(wave), student.enhance(wave))
        mine, theirs = dict(student.named_parameters()), dict(twin.named_parameters())
        assert {n: p.requires_grad for n, p in mine.items()} == {n: p.requires_grad for n, p in theirs.items()}
        assert not twin.training and all(mine[name].data_ptr() != theirs[name].data_ptr() for name in mine)


def test_gradients_flow_through_states_in_training_mode_only(checkpoint, voice):
    _, student, _ = build(checkpoint)
    wave = torch.tensor(voice(0.5))[None]
    states, _ = student.train().states(wave)
    states.square().mean().backward()
    assert student.encoder.model.encoder.layers[0].attention.q_proj.weight.grad.abs().max() > 0
    assert student.enhance(wave).requires_grad
    assert not student.eval().states(wave)[0].requires_grad and not student.enhance(wave).requires_grad
    with torch.no_grad():
        assert not student.train().states(wave)[0].requires_grad


@pytest.mark.parametrize(
    "lengths",
    [[8000, 20_000], [8000, 0], [8000, -5], [8000], [8000.0, 4000.0], [True, True], [[8000, 4000]], 8000, ["a", "b"],
     [10**30, 5], torch.tensor([8000.0, float("nan")]), [8000, 399]],
)  # fmt: skip
def test_lengths_that_are_none_are_refused(checkpoint, voice, lengths):
    student = load_student(checkpoint("hubert"))
    batch = torch.tensor(np.stack([voice(0.5, 1), voice(0.5, 2)]))
    with pytest.raises(UserError):
        student.states(batch, lengths)


def test_lengths_may_be_any_integers_and_waves_any_floats(checkpoint, voice):
    student = load_student(checkpoint("hubert"))
    batch = torch.tensor(np.stack([voice(0.5, 1), voice(0.5, 2)]))
    wanted, frames = student.states(batch, torch.tensor([8000, 5000]))
    assert frames.tolist() == [24, 15]
    for lengths in ([8000, 5000], torch.tensor([8000, 5000], dtype=torch.int32), np.array([8000, 5000])):
        assert torch.equal(student.states(batch.double(), lengths)[0], wanted)
    for wave in (
        batch[0],
        batch.numpy(),
        (batch * 32767).short(),
        batch.log(),
        batch[:0],
        batch[:, :0],
        [[0.1] * 8000],
    ):
        with pytest.raises(UserError, match=r"Waveforms are|not numbers"):
            student.states(wave)


@pytest.mark.parametrize(("kind", "stable", "normalize"), [
    ("hubert", False, False), ("hubert", False, True), ("wav2vec2", True, True), ("wavlm", False, False),
])  # fmt: skip
def test_the_saved_extractor_gives_the_better_batch(checkpoint, voice, tmp_path, kind, stable, normalize):
    _, student, _ = build(checkpoint, kind, stable=stable, normalize=normalize)
    student.eval().save(tmp_path / "student")
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "student")
    model, waves = AutoModel.from_pretrained(tmp_path / "student").eval(), [voice(1.5, 1), voice(0.5, 2)]
    alone = student.states(torch.tensor(waves[1])[None])[0][0, -1]
    distance = {}
    for mask in (extractor.return_attention_mask, not extractor.return_attention_mask):
        batch = extractor(waves, sampling_rate=16_000, padding=True, return_tensors="pt", return_attention_mask=mask)
        with torch.no_grad():
            found = model(**batch).last_hidden_state[1, : len(alone)]
        distance[mask] = float((found - alone).square().mean())
    assert distance[extractor.return_attention_mask] <= distance[not extractor.return_attention_mask], distance
    exact, _ = student.states(torch.tensor(np.stack([waves[0], np.pad(waves[1], (0, 16_000))])), [24_000, 8000])
    torch.testing.assert_close(exact[1, -1, : len(alone)], alone, atol=1e-5, rtol=0)


def test_a_preprocessor_that_normalises_in_words_is_refused(checkpoint, tmp_path):
    shutil.copytree(checkpoint("hubert", normalize=True), tmp_path / "m")
    file = tmp_path / "m" / "preprocessor_config.json"
    file.write_text(file.read_text().replace('"do_normalize": true', '"do_normalize": "false"'))
    with pytest.raises(UserError, match="write true or false"):
        load_student(tmp_path / "m")
