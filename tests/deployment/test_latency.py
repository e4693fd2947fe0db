"""Latency: counts that agree with arithmetic, honest factors, and one sentence for what cannot be measured."""

import json
import os

import numpy as np
import pytest

from robustdistiller.deployment.cost import SECONDS, macs_per_second
from robustdistiller.deployment.latency import (
    Candidate,
    Latency,
    LatencyResult,
    Timing,
    describe_machine,
    measure_latency,
    named,
)
from robustdistiller.deployment.tradeoff import plot_tradeoff, robustness
from robustdistiller.errors import UserError
from robustdistiller.models.hub import load_encoder


def test_operations_are_those_of_the_equations(checkpoint):
    encoder = load_encoder(checkpoint("hubert"))
    c = encoder.model.config
    frames, size, total = SECONDS * 16_000, 1, 0
    for width, kernel, stride in zip(c.conv_dim, c.conv_kernel, c.conv_stride, strict=True):
        frames = (frames - kernel) // stride + 1
        total += frames * width * size * kernel
        size = width
    total += frames * size * c.hidden_size
    d, k = c.hidden_size, c.num_conv_pos_embeddings
    total += (frames + 1) * d * (d // c.num_conv_pos_embedding_groups) * k  # an even kernel gives a frame more
    total += c.num_hidden_layers * frames * (4 * d * d + 2 * d * c.intermediate_size + 2 * frames * d)
    assert macs_per_second(encoder) == pytest.approx(total / SECONDS, rel=1e-3)


def example(times, name="reference", form="torch"):
    candidate = Candidate(name, form, "x", 1_000_000, 1e9, 4_000_000)
    return LatencyResult(candidate, {1: Timing(1, list(times), list(times), 10, 5)})


def test_factors_compare_minima():
    slow, fast = example([0.4, 0.5, 0.9]), example([0.3, 0.1, 0.8], "fast", "int8")
    latency = Latency([slow, fast], 5.0, 3, describe_machine())
    assert latency.factor(fast, 1) == pytest.approx(4.0) and latency.factor(slow, 1) == 1.0
    row = latency.to_dict()["rows"][1]["threads"]["1"]
    assert row["rtf_minimum"] == pytest.approx(0.02) and row["rtf_median"] == pytest.approx(0.06)
    json.dumps(latency.to_dict())


def test_models_are_named_by_the_telling_part_of_their_path():
    assert named("runs/rd-hubert/student") == ("rd-hubert", "runs/rd-hubert/student")
    assert named("exported/edge/encoder.int8.onnx")[0] == "edge"
    assert named("facebook/hubert-base-ls960")[0] == "hubert-base-ls960"
    assert named("small=runs/a/student") == ("small", "runs/a/student")


def test_exported_files_are_measured_in_turns_without_pytorch(exported):
    files = [f"fp32={exported[0] / 'encoder.onnx'}", f"int8={exported[0] / 'encoder.int8.onnx'}"]
    seen = []
    result = measure_latency(files, threads=(1,), audio=0.5, repeats=3, progress=lambda *step: seen.append(step))
    assert [(r.candidate.name, r.candidate.format) for r in result.rows] == [("fp32", "onnx"), ("int8", "int8")]
    for row in result.rows:
        timing = row.timings[1]
        assert len(timing.seconds) == 3 and 0 < timing.minimum <= timing.median
        # With PyTorch in the process it would be several hundred megabytes.
        assert timing.model < timing.peak < 250e6
        assert row.candidate.macs_per_second > 1e6 and row.candidate.parameters > 1e4
    assert seen[-1] == ("measuring", 3, 3)


@pytest.mark.slow
def test_a_student_is_measured_in_all_formats(student_folder, exported):
    result = measure_latency([str(student_folder), f"done={exported[0]}"], audio=0.5, repeats=2)
    assert [r.candidate.format for r in result.rows] == ["torch", "onnx", "int8", "onnx", "int8"]


def test_what_cannot_be_measured_is_said(exported, tmp_path):
    stream = tmp_path / "stream"  # what the export of an operating point leaves
    stream.mkdir()
    (stream / "export.json").write_text("{}")
    for arguments, sentence in (
        (dict(models=[]), "nothing to measure"),
        (dict(models=["x"], formats=["tflite"]), "no format tflite"),
        (dict(models=["x"], repeats=0), "at least"),
        (dict(models=[str(exported[0] / "enhancer.onnx")]), "holds an enhancer"),
        (dict(models=[str(stream)]), "no encoder.onnx"),
        (dict(models=[str(exported[0])] * 2), "Two models are called"),
        (dict(models=[str(tmp_path)]), r"config\.json"),
    ):
        with pytest.raises(UserError, match=sentence):
            measure_latency(**arguments)


@pytest.fixture
def benchmark(tmp_path):
    figures = [
        {"model": model, "condition": condition, "metric": "accuracy", "value": value}
        for model, clean, noisy in (("reference", 0.9, 0.6), ("fast", 0.8, 0.7))
        for condition, value in (("clean", clean), ("mean:contaminated", noisy), ("noise 5 dB", 0.1))
    ]
    file = tmp_path / "benchmark.json"
    file.write_text(json.dumps({"tasks": [{"figures": figures}, {"figures": [{**figures[0], "value": 0.7}]}]}))
    return file


def test_the_picture_shows_accuracy_against_speed(benchmark, tmp_path):
    pytest.importorskip("matplotlib")
    assert robustness(benchmark)["reference"] == {"clean": pytest.approx(0.8), "contaminated": 0.6}
    latency = Latency([example([0.4]), example([0.1], "fast", "int8")], 5.0, 1, describe_machine())
    plot_tradeoff(latency, benchmark, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    with pytest.raises(UserError, match="None of the measured models"):
        plot_tradeoff(Latency([example([0.4], "other")], 5.0, 1, describe_machine()), benchmark, tmp_path / "x.png")
    (tmp_path / "wrong.json").write_text('{"tasks": [{}]}')
    with pytest.raises(UserError, match="no result of `evaluate`"):
        robustness(tmp_path / "wrong.json")


def test_the_machine_is_described():
    machine = describe_machine()
    assert machine["cores"] >= 1 and isinstance(machine["flags"], list) and np.isfinite(machine["load"] or 0)


def test_an_engine_that_is_missing_is_one_sentence(exported, tmp_path, monkeypatch):
    (tmp_path / "openvino.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    with pytest.raises(UserError, match=r"cannot be measured: The OpenVINO engine needs the package 'openvino'"):
        measure_latency([f"a={exported[0] / 'encoder.onnx'}"], formats=("openvino",), audio=0.2, repeats=1)
