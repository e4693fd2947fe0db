"""Laws of the exact stream: equal to the chunk-masked offline pass for any cut, constant in memory, unharmed by bad input."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from robustdistiller.audio.io import write_audio
from robustdistiller.cli import application
from robustdistiller.config import EnhancementConfig, StreamingConfig, StudentConfig
from robustdistiller.deployment.export import ExportOptions, export_student
from robustdistiller.deployment.parity import voice_like
from robustdistiller.deployment.stream_export import StreamJob, open_detector, open_stream, streamed
from robustdistiller.deployment.stream_graph import DetectorGraph, LayerNormBlock, StreamGraph
from robustdistiller.deployment.task_head import TaskHead, find_head
from robustdistiller.errors import AudioError, UserError
from robustdistiller.evaluation.evaluated import open_models
from robustdistiller.evaluation.false_alarms import DetectionHead, part_means
from robustdistiller.evaluation.probes import save_heads
from robustdistiller.evaluation.task_heads import Trained, UtteranceHead
from robustdistiller.models.building import build_student
from robustdistiller.models.streaming import Chunking
from robustdistiller.models.student import load_student
from robustdistiller.models.teacher import load_teacher
from robustdistiller.runtime import Detector, Stream, Trigger


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    """A streaming student with a position kernel of 16 frames."""
    teacher = load_teacher(str(checkpoint("hubert")), layers=(1, 3))
    config = StudentConfig(layers=2, position_kernel=16, streaming=StreamingConfig(left_ms=120))
    student, _ = build_student(teacher, config, EnhancementConfig(enabled=False))
    path = tmp_path_factory.mktemp("run") / "student"
    student.save(path)
    return path


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "onnx"
    export_student(f"{folder}@80+40", out, ExportOptions(int8=True, force=True, clips=6))
    return out


def reference(folder, chunking, head=None):
    student = load_student(folder).double()
    student.chunking = chunking
    fresh = load_student(folder).double()
    network = StreamGraph(fresh, chunking) if head is None else DetectorGraph(fresh, chunking, head)
    return StreamJob(network.double(), student, head), network


@pytest.mark.parametrize(
    ("chunking", "cuts"),
    [
        (Chunking(4, 2, 6), (320,)),  # a frame at a time
        (Chunking(4, 2, 6), (1, 7, 4000)),
        (Chunking(1, 0, 3), (160,)),
        (Chunking(3, 11, 0), (16_000,)),  # a look-ahead beyond the kernel's, and no left context
        (Chunking(5, 4, 100), (999,)),
    ],
)
@pytest.mark.parametrize("samples", [399, 400, 1679, 24_001])
def test_a_stream_is_the_chunk_masked_offline_pass(folder, chunking, cuts, samples):
    job, network = reference(folder, chunking)
    wave = voice_like(samples, 1) * (np.arange(samples) > samples // 3)  # silence, then a voice
    found = streamed(open_stream(job.description, network), wave.astype(np.float32), cuts)
    if samples < 400:
        assert found.shape == (3, 0, 64)
        return
    wanted = job.reference(torch.from_numpy(wave.astype(np.float32)))
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=1e-9)  # both in float64: equal but for the order of sums


@pytest.mark.parametrize("precision", ["", ".int8"])
def test_the_file_computes_what_pytorch_computes(folder, exported, precision):
    stream = Stream(exported / f"encoder.stream{precision}.onnx")
    assert (stream.chunk, stream.look_ahead, stream.latency) == (4, 2, pytest.approx((5 * 320 + 400) / 16_000))
    wave = voice_like(40_123, 2)
    found = streamed(stream, wave)
    student = load_student(f"{folder}@80+40")
    wanted = student.states(torch.from_numpy(wave)[None])[0][0].numpy()
    if precision:
        cosine = (found * wanted).sum(-1) / np.sqrt(np.square(found).sum(-1) * np.square(wanted).sum(-1))
        assert cosine.mean() > 0.99
    else:
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_minutes_drift_from_neither_offline_pass(folder, exported):
    size, piece = 40 * 16_000, 10 * 16_000
    loud = np.repeat([1.0, 0.0, 0.01, 1.0], piece)  # a voice, silence, the voice far away, and the voice again
    wave = (loud * voice_like(size, 8)).astype(np.float32)
    found = streamed(Stream(exported / "encoder.stream.onnx"), wave)
    student = load_student(f"{folder}@80+40")
    for network in (student, copy.deepcopy(student).double()):  # in the same precision, and exactly
        wanted = network.states(torch.from_numpy(wave)[None])[0][0].numpy()
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_bias_that_the_norm_takes_away_costs_no_digits(folder):
    student = load_student(folder)
    layer = student.encoder.model.feature_extractor.conv_layers[1]
    torch.manual_seed(0)
    with torch.no_grad():  # as a fitted front end has it: a pattern stronger than the signal, and a shift against it
        layer.conv.bias.copy_(30 * torch.randn(len(layer.conv.bias)))
        layer.layer_norm.bias.copy_(-layer.conv.bias / layer.conv.bias.std())
        x = torch.randn(1, layer.conv.in_channels, 500)
        exact = copy.deepcopy(layer).double()(x.double())
        plain = (layer(x) - exact).square().mean().sqrt()
        block = LayerNormBlock(copy.deepcopy(layer).double())
        torch.testing.assert_close(block(x.double()), exact, rtol=1e-12, atol=1e-12)
        assert (LayerNormBlock(layer)(x) - exact).square().mean().sqrt() < 0.3 * plain


def test_times_and_latency_are_kept(exported):
    stream, wave, heard = Stream(exported / "encoder.stream.onnx"), voice_like(32_000, 3), []
    for end in range(160, len(wave) + 1, 160):
        features = stream.push(wave[end - 160 : end])
        heard += list(features.times)
        # Every frame is out once its latency has passed, and none before its samples were heard.
        assert all(time + 0.0125 <= end / 16_000 for time in features.times)
        assert not len(features.times) or end / 16_000 <= features.times[0] - 0.0125 + stream.latency + 0.01
    heard += list(stream.close().times)
    np.testing.assert_allclose(heard, (np.arange(99) * 320 + 200) / 16_000)


def test_the_state_stays_as_small_as_it_was_and_goes_on_elsewhere(exported):
    stream, wave = Stream(exported / "encoder.stream.onnx"), voice_like(64_000, 4)
    sizes = []
    for start in range(0, 48_000, 1600):
        stream.push(wave[start : start + 1600])
        sizes.append(sum(value.nbytes for name, value in stream.state.items() if name not in ("waiting", "model")))
    assert len(set(sizes)) == 1
    other = Stream(exported / "encoder.stream.onnx", state=stream.state)
    np.testing.assert_array_equal(stream.push(wave[48_000:]).states, other.push(wave[48_000:]).states)
    np.testing.assert_array_equal(stream.close().states, other.close().states)


NOT_CHUNKS = (
    ([], "0 samples"),
    (np.zeros(0, np.float32), "0 samples"),
    (np.full(100, np.nan, np.float32), "not numbers"),
    (np.array([0.1, np.inf]), "not numbers"),
    (np.full(9000, 1e30), "too loud"),  # finite, and infinite once it is squared
    (np.zeros(9, np.int16), "int16"),
    (np.zeros(9, bool), "bool"),
    (np.zeros(9, complex), "complex"),
    (np.zeros((2, 9)), "shape"),
    ([[0.1], [0.1, 0.2]], "shape"),
    ("speech.wav", "shape"),
    (None, "shape"),
)


@pytest.mark.parametrize(("bad", "told"), NOT_CHUNKS)
def test_what_is_no_chunk_is_one_sentence_and_harms_nothing(exported, bad, told):
    stream, wave = Stream(exported / "encoder.stream.onnx"), voice_like(20_000, 5)
    stream.push(wave[:8000], time=5.0)
    before = stream.state
    with pytest.raises(AudioError, match=told):
        stream.push(bad, time=5.5)
    for name, value in stream.state.items():
        np.testing.assert_array_equal(value, before[name])
    other = Stream(exported / "encoder.stream.onnx", state=before)
    np.testing.assert_array_equal(stream.push(wave[8000:], time=5.51).states, other.push(wave[8000:]).states)


def test_a_clock_that_jumps_is_refused(exported):
    stream, wave = Stream(exported / "encoder.stream.onnx"), voice_like(8000, 5)
    for time in (float("inf"), float("nan"), "noon", np.zeros(2)):
        with pytest.raises(AudioError, match="seconds of a clock"):
            stream.push(wave, time=time)
    stream.push(wave, time=5.0)
    stream.push(wave)  # half a second without a time
    before = stream.state
    for time in (5.5, 6.2, 5.0, -6.0, 1e12):
        with pytest.raises(AudioError, match=r"was due at 6\.00 s"):
            stream.push(wave, time=time)
    np.testing.assert_array_equal(stream.state["samples"], before["samples"])
    stream.push(wave, time=6.05)


def test_a_closed_stream_and_another_rate_are_refused(exported, folder, tmp_path):
    path, wave = exported / "encoder.stream.onnx", voice_like(8000, 5)
    stream = Stream(path)
    stream.push(wave)
    stream.close()
    for act in (stream.close, lambda: stream.push(wave), lambda: stream.state):
        with pytest.raises(AudioError, match="closed"):
            act()
    for rate in (8000, 0, "16000"):
        with pytest.raises(AudioError, match=f"{rate} samples a second"):
            Stream(path, rate=rate)
    student = load_student(folder)
    student.streaming = None
    student.save(tmp_path / "plain")
    with pytest.raises(UserError, match="was not trained to stream"):
        export_student(f"{tmp_path / 'plain'}@80+40", tmp_path / "out")


def test_a_state_of_another_file_or_version_or_a_damaged_one_is_refused(exported, tmp_path):
    path, wave = exported / "encoder.stream.onnx", voice_like(8000, 5)
    stream = Stream(path)
    stream.push(wave)
    state = stream.state
    np.savez(tmp_path / "state.npz", **state)  # as a device would keep it
    other = Stream(path, state=dict(np.load(tmp_path / "state.npz")))
    np.testing.assert_array_equal(stream.push(wave).states, other.push(wave).states)
    with pytest.raises(UserError, match="another file"):
        Stream(exported / "encoder.stream.int8.onnx", state=state)
    described = json.loads(str(state["model"]))
    described[2]["left"] += 1
    older = {**state, "model": np.array(json.dumps(described, sort_keys=True))}
    for bad in (older, {"keys": state["keys"]}, {}, 3, "state.npz", [state]):
        with pytest.raises(UserError, match="another file or version"):
            Stream(path, state=bad)
    keys, waiting = state["keys"], state["waiting"]
    assert len(waiting)
    for name, value in (
        ("keys", keys[:, :1]), ("keys", keys.astype(np.float64)), ("keys", np.full_like(keys, np.nan)),
        ("waiting", waiting[:-1]), ("waiting", np.full_like(waiting, np.inf)), ("waiting", np.array(["a"])),
        ("samples", state["samples"] + 1), ("samples", np.array(-8000)), ("samples", np.array("a")), ("samples", waiting),
        ("position", state["position"] + 1), ("position", state["position"] - (1 << 40)),
    ):  # fmt: skip
        with pytest.raises(UserError, match="damaged"):
            Stream(path, state={**state, name: value})


def test_a_detector_scores_the_last_second(folder):
    labels = ("no", "yes", "_unknown_")
    torch.manual_seed(0)
    wave = voice_like(40_000, 6)
    states = load_student(f"{folder}@80+40").states(torch.from_numpy(wave)[None])[0][:, :, -50:].detach()
    for head, clip in (
        (UtteranceHead(3, 64, [3]).eval(), states.mean(2)),
        (DetectionHead(3, 64, [3]).eval(), torch.from_numpy(part_means(states[0].transpose(0, 1).numpy(), [49]))),
    ):
        task = TaskHead(head, "words", {"word": labels}, None, ("cnn", "layer 1", "layer 2"), "")
        job, network = reference(folder, Chunking(4, 2, 6), task)
        found = streamed(open_stream(job.description, network), wave)
        np.testing.assert_allclose(found, job.reference(torch.from_numpy(wave)), atol=1e-6)
        np.testing.assert_allclose(found[0, -1], head(clip)[0].softmax(-1)[0].detach(), atol=1e-5)


def test_a_trigger_is_the_same_for_any_cut():
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(4), 500)
    scores[100:130] = (0.97, 0.01, 0.01, 0.01)
    scores[200:230] = (0.01, 0.01, 0.01, 0.97)
    make = lambda: Trigger(("yes", "no", "go", "_unknown_"), threshold=0.9, smooth=10, refractory=50)  # noqa: E731
    whole, pieces = make()(scores), []
    trigger = make()
    for start in range(0, 500, 7):
        pieces += trigger(scores[start : start + 7])
    assert whole == pieces
    assert [(frame // 10, column) for frame, column, _ in whole] == [(10, 0)]  # once, and never the background


def write_head(model: str, kind: str, head: type, path: Path) -> Path:
    """A head of three words for a model, as the benchmark writes it."""
    (subject,) = open_models([model])
    torch.manual_seed(0)
    about = {
        "task": "words", "kind": kind, "slots": ["label"], "classes": [["_unknown_", "no", "yes"]],
        "states": list(subject.state_names), "level_dbfs": None, "model": subject.digest,
    }  # fmt: skip
    weights = head(len(subject.state_names), 64, [3]).state_dict()
    save_heads(path, [Trained(weights, 1e-3, 1e-2, 0.5)], "key", about)
    return path


@pytest.fixture(scope="module")
def head_file(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "heads" / "words" / "student.safetensors"
    return write_head(f"{folder}@80+40", "classification", UtteranceHead, path)


def test_a_head_that_reads_a_stream_is_exported_with_an_operating_point_alone(folder, tmp_path):
    head = write_head(str(folder), "detection", DetectionHead, tmp_path / "heads" / "words" / "student.safetensors")
    with pytest.raises(UserError, match="name the operating point"):
        export_student(str(folder), tmp_path / "onnx", ExportOptions(task=str(head)))
    assert not (tmp_path / "onnx").exists()


def test_the_exported_detector_tells_what_pytorch_tells(folder, head_file, tmp_path):
    export_student(f"{folder}@80+40", tmp_path / "onnx", ExportOptions(task=str(head_file)))
    wave = voice_like(50_000, 7)
    exported = Detector(tmp_path / "onnx" / "words.stream.onnx", 0.3, refractory=0.5)
    ours = open_detector(f"{folder}@80+40", str(head_file), 0.3, 0.2, 0.5)
    cuts = [wave[start : start + 1234] for start in range(0, len(wave), 1234)]
    told = [[*(d for cut in cuts for d in detector.push(cut)), *detector.close()] for detector in (exported, ours)]
    assert told[0]
    assert [d.label for d in told[0]] == [d.label for d in told[1]]
    assert [d.time for d in told[0]] == [d.time for d in told[1]]
    # A refractory time of 0.5 s, told at the ends of chunks of 0.08 s.
    assert all(b.time - a.time >= 0.5 - 0.08 for a, b in zip(told[0], told[0][1:], strict=False))


def test_a_folder_of_heads_gives_that_of_the_operating_point(folder, head_file, tmp_path):
    heads = tmp_path / "heads"
    for name, kind in (("a", DetectionHead), ("b", UtteranceHead)):  # of two points
        point = "@80+0" if name == "a" else "@80+40"
        write_head(
            f"{folder}{point}", "detection" if name == "a" else "classification", kind, heads / f"{name}.safetensors"
        )
    assert isinstance(find_head(heads, f"{folder}@80+40", load_student(f"{folder}@80+40")).head, UtteranceHead)
    assert open_detector(f"{folder}@80+0", str(heads), 0.3, 0.2, 0.5).latency == 0.085
    for student, where, told in (
        (str(folder), head_file, "operating point"),
        (f"{folder}@80+20", head_file, "was trained on"),
        (f"{folder}@80+20", heads, "None of the heads"),
        (f"{folder}@80+40", tmp_path, "holds no heads"),
        ("mini-edge", heads, "not trained to stream: give a streaming student"),
    ):
        with pytest.raises(UserError, match=told):
            open_detector(student, str(where), 0.3, 0.2, 0.5)
    (heads / "c.safetensors").write_bytes((heads / "b.safetensors").read_bytes())
    with pytest.raises(UserError, match="several heads"):
        open_detector(f"{folder}@80+40", str(heads), 0.3, 0.2, 0.5)


@pytest.mark.parametrize(
    ("point", "told"),
    [
        ("80", "such as mini-stream@160\\+160"),
        ("chunks", "such as mini-stream@160\\+160"),
        ("170+0", "multiples of a frame"),
        ("0+0", "multiples of a frame"),
        ("99980+0", "up to 60000"),
    ],
)
def test_what_is_no_operating_point_is_told_how_to_write_one(point, told):
    with pytest.raises(UserError, match=told):
        load_student(f"mini-stream@{point}")


def test_chunks_that_training_never_had_are_remarked(folder, caplog):
    load_student(f"{folder}@80+0")
    assert not caplog.records
    load_student(f"{folder}@20+0")
    assert "shorter than any in the student's training (80 ms)" in caplog.text


def test_listen_tells_the_keywords_of_a_file(folder, head_file, tmp_path):
    wave = voice_like(50_000, 7)
    write_audio(tmp_path / "speech.wav", wave)
    command = ["listen", f"{folder}@80+40", str(tmp_path / "speech.wav"), "--head", str(head_file), "--json"]
    done = CliRunner().invoke(application(), [*command, "--threshold", "0.3"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["detections"][0].keys() == {"label", "score", "time"}
    assert told["seconds"] == 3.125
    assert told["latency"] == pytest.approx(0.125)
