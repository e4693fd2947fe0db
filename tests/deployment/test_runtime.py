"""The runtime needs nothing of PyTorch, and says in one sentence what is wrong with a file or with audio."""

import ast
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch

import robustdistiller.runtime
from robustdistiller.apply import enhanced, features_of
from robustdistiller.deployment.onnx_file import write_model
from robustdistiller.errors import AudioError, UserError
from robustdistiller.models.student import load_student
from robustdistiller.runtime import Classifier, Encoder, Enhancer, describe, read_wave, windows

FOLDER = Path(robustdistiller.runtime.__file__).parent


def test_the_runtime_imports_only_what_a_device_has():
    allowed = {*sys.stdlib_module_names, "numpy", "onnxruntime", "openvino", "soundfile", "sounddevice"}
    for file in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, file
            elif isinstance(node, ast.ImportFrom):
                inside = node.level == 1 or (node.level == 2 and node.module in ("errors", "channels"))
                assert inside or (node.level == 0 and str(node.module).split(".")[0] in allowed), (file, node.module)


def test_a_model_runs_in_a_process_without_pytorch(exported):
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["torch", "transformers", "scipy", "onnx", "safetensors", "soxr"]))
import numpy as np
from robustdistiller.runtime import Encoder
print(Encoder({str(exported[0] / "encoder.int8.onnx")!r}, threads=1)(np.zeros(1000, np.float32)).states.shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 2, 64)"


def test_the_runtime_alone_is_a_package_that_shares_no_file_with_the_full_one(exported, tmp_path):
    """What runtime/pyproject.toml puts into a wheel, put together by hand and imported without the full package."""
    project = FOLDER.parents[2] / "runtime"
    if not project.is_dir():
        pytest.skip("needs a checkout")
    text = (project / "pyproject.toml").read_text()
    included = dict(re.findall(r'^"(\.\./src/.*?)" = "(.*?)"$', text, flags=re.M))
    assert {target.split("/")[0] for target in included.values()} == {"robustdistiller_runtime"}
    shutil.copytree(project / "robustdistiller_runtime", tmp_path / "robustdistiller_runtime")
    for source, target in included.items():
        copy = shutil.copytree if (project / source).is_dir() else shutil.copy
        copy(project / source, tmp_path / target)
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["torch", "transformers", "robustdistiller"]))
import numpy as np
from robustdistiller_runtime import Encoder, UserError
print(Encoder({str(exported[0] / "encoder.int8.onnx")!r}, threads=1)(np.zeros(1000, np.float32)).states.shape)
"""
    path = {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "(2, 2, 64)"


def test_times_are_the_centres_of_frames(exported):
    features = Encoder(exported[0] / "encoder.onnx")(np.zeros(400 + 320 * 4, np.float32))
    np.testing.assert_allclose(features.times, (np.arange(5) * 320 + 200) / 16_000)


def test_a_file_of_another_kind_is_named(exported):
    with pytest.raises(UserError, match="open it with Enhancer, not Encoder"):
        Encoder(exported[0] / "enhancer.onnx")
    with pytest.raises(UserError, match="open it with Encoder, not Classifier"):
        Classifier(exported[0] / "encoder.onnx")


def test_a_device_without_soundfile_is_told_to_install_it_alone(tmp_path, monkeypatch):
    (tmp_path / "a.wav").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(UserError, match="run  pip install soundfile"):
        read_wave(tmp_path / "a.wav")


def test_a_file_cut_anywhere_is_refused(exported, tmp_path):
    whole = (exported[0] / "encoder.int8.onnx").read_bytes()
    file = tmp_path / "cut.onnx"
    for share in (0.0, 0.0001, 0.01, 0.3, 0.7, 0.97, 0.999):
        file.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match=r"cut short|no ONNX file|not one that"):
            describe(file)
    file.write_bytes(whole[:-3])
    with pytest.raises(UserError, match="cut short"):
        describe(file)


def test_a_changed_byte_is_noticed(exported, tmp_path):
    whole = bytearray((exported[0] / "encoder.int8.onnx").read_bytes())
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(whole), 40):
        changed = bytearray(whole)
        changed[at] ^= 0x55
        (tmp_path / "changed.onnx").write_bytes(changed)
        try:
            told = describe(tmp_path / "changed.onnx")
        except UserError:
            continue
        # Only the description's own text is not covered by the digest.
        assert told != describe(exported[0] / "encoder.int8.onnx") or at > len(whole) - 3000


def test_other_files_are_refused(tmp_path, exported):
    from onnx import TensorProto, helper

    node = helper.make_node("Identity", ["x"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]))
    onnx.save(model, tmp_path / "other.onnx")
    model.metadata_props.append(onnx.StringStringEntryProto(key="robustdistiller", value='{"format": 99}'))
    onnx.save(model, tmp_path / "newer.onnx")
    model.metadata_props[0].value = '{"format": 1, "digest": "0"}'
    onnx.save(model, tmp_path / "forged.onnx")
    (tmp_path / "text.onnx").write_text("This is not a model, but a text that goes on for a while." * 9)
    for name, sentence in {
        "other.onnx": "not one that `robustdistiller export` wrote",
        "newer.onnx": "newer version",
        "forged.onnx": "damaged or was edited",
        "text.onnx": "no ONNX file",
        "missing.onnx": "There is no file",
    }.items():
        with pytest.raises(UserError, match=sentence) as caught:
            describe(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"cannot be understood"):
        describe(tmp_path / "forged.onnx", verify=False)
    with pytest.raises(UserError, match=r"is a folder: give one of its files \(encoder"):
        Encoder(exported[0])
    with pytest.raises(UserError, match="OpenVINO gives wrong numbers"):
        Encoder(exported[0] / "encoder.int8.onnx", engine="openvino")
    with pytest.raises(UserError, match="There is no engine 'tpu'"):
        Encoder(exported[0] / "encoder.onnx", engine="tpu")


@pytest.mark.parametrize(
    "wave, reason",
    [
        (np.zeros((2, 16_000), np.float32), "shape"),
        (np.zeros(16_000, np.int16), "type"),
        (np.zeros(399, np.float32), "too-short"),
        (np.full(16_000, np.nan, np.float32), "nan"),
        (np.full(16_000, np.inf), "nan"),
    ],
)
def test_what_is_no_audio_is_refused(exported, wave, reason):
    with pytest.raises(AudioError) as caught:
        Encoder(exported[0] / "encoder.onnx", verify=False)(wave)
    assert caught.value.reason == reason


def test_audio_files_are_read_as_they_are_or_refused(tmp_path, voice):
    wave = voice(0.5)
    soundfile.write(tmp_path / "good.wav", np.stack([wave, 0 * wave], 1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(read_wave(tmp_path / "good.wav"), wave / 2, atol=1e-7)
    soundfile.write(tmp_path / "opposite.wav", np.stack([wave, -wave], 1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(read_wave(tmp_path / "opposite.wav"), wave, atol=1e-7)
    soundfile.write(tmp_path / "slow.wav", wave, 8_000)
    soundfile.write(tmp_path / "empty.wav", wave[:0], 16_000)
    soundfile.write(tmp_path / "nan.wav", np.full(800, np.nan), 16_000, subtype="FLOAT")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "good.wav").read_bytes()[:20])
    for name, reason in {
        "slow.wav": "rate", "empty.wav": "too-short", "nan.wav": "nan", "cut.wav": "corrupt", "none.wav": "missing",
    }.items():  # fmt: skip
        with pytest.raises(AudioError) as caught:
            read_wave(tmp_path / name)
        assert caught.value.reason == reason and str(caught.value).count("\n") == 0


@pytest.mark.parametrize("seconds", [3.9, 4.05, 4.5])
def test_the_device_and_pytorch_cut_a_long_recording_the_same_way(
    exported, student_folder, voice, monkeypatch, seconds
):
    monkeypatch.setattr(windows, "WINDOW_SECONDS", 1)
    monkeypatch.setattr(windows, "CONTEXT_SECONDS", 0.5)
    wave, student = voice(seconds), load_student(student_folder)
    features = Encoder(exported[0] / "encoder.onnx", threads=1)(wave)
    assert features.states.shape[1] == len(features.times) == (len(wave) - 400) // 320 + 1
    np.testing.assert_allclose(np.diff(features.times), 0.02)
    np.testing.assert_allclose(features.states, features_of(student, torch.from_numpy(wave)).numpy(), atol=1e-4)
    clean = Enhancer(exported[0] / "enhancer.onnx", threads=1)(wave)
    np.testing.assert_allclose(clean, enhanced(student, torch.from_numpy(wave)).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "times", [(0, 0.5, 0.3), (-1, 0.5, 0.3), (float("nan"), 0, 0), (1, -0.1, 0), (1, 0, float("inf"))]
)
def test_a_stream_needs_a_hop_and_contexts(exported, times):
    for model in (Encoder(exported[0] / "encoder.onnx"), Enhancer(exported[0] / "enhancer.onnx")):
        with pytest.raises(AudioError, match="hop above 0 s"):
            model.stream(*times)


def test_the_engine_leaves_nothing_in_the_home_folder(exported, tmp_path):
    code = f"from robustdistiller.runtime import Encoder; Encoder({str(exported[0] / 'encoder.onnx')!r})"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", code], env=environment | {"HOME": str(tmp_path)}, check=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [
    {"kind": "enhancer"}, {"states": ("cnn",)}, {"hidden": 63}, {"sampling_rate": 0}, {"field": 1 << 40}, {"stride": True},
])  # fmt: skip
def test_a_graph_that_is_not_what_its_description_says_is_refused(exported, tmp_path, change):
    model, sound = onnx.load(exported[0] / "encoder.onnx"), describe(exported[0] / "encoder.onnx")
    write_model(tmp_path / "a.onnx", model, replace(sound, **change))
    with pytest.raises(UserError, match=r"not what its description says|cannot be understood"):
        (Enhancer if "kind" in change else Encoder)(tmp_path / "a.onnx")
