"""The law of hostile files: whatever a user's file holds, it ends in a result or in one sentence."""

import contextlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_targets import TARGETS, try_seed

QUICK = 24


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The folder of sound files of a target, made once."""
    made = {}

    def get(target):
        if target.name not in made:
            made[target.name] = tmp_path_factory.mktemp(target.name.replace(" ", "-"))
            target.make(made[target.name])
        return made[target.name]

    return get


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_sound_files_are_opened(target, sound, tmp_path):
    import shutil

    shutil.copytree(sound(target), tmp_path / "work")
    target.open(tmp_path / "work")


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_a_spoilt_file_is_a_result_or_a_sentence(target, sound, tmp_path):
    outcomes = [
        try_seed(target, sound(target), tmp_path / "work", seed) for seed in range(max(4, int(QUICK / target.cost)))
    ]
    assert any(outcomes), "nothing was ever refused: the files are not spoilt"


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_thousands_of_spoilt_files_are_results_or_sentences(target, sound, tmp_path):
    for seed in range(1000, 1000 + max(40, int(600 / target.cost))):
        try_seed(target, sound(target), tmp_path / "work", seed)


ABSURD = """
import json, resource, sys, time
from pathlib import Path
import torch, transformers
from robustdistiller.audio.io import read_audio
from robustdistiller.errors import UserError
from robustdistiller.models.student import load_student
resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
for place in json.loads(sys.argv[1]):
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        (read_audio if Path(place).is_file() else load_student)(place)
        outcome = "result"
    except UserError as error:
        outcome = str(error)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    print(json.dumps([outcome, grown, time.process_time() - begin]))
"""

CLAIMS = [
    {"hidden_size": 10**9}, {"hidden_size": 8192}, {"num_hidden_layers": 10**9}, {"intermediate_size": 100_000},
    {"conv_dim": [16_000] * 7}, {"num_conv_pos_embeddings": 100_000}, {"conv_kernel": [10**8] * 7},
]  # fmt: skip
HEADS = [
    {"targets": 10**9},
    {"targets": 16_000},
    {"layers": [1] * 200},
    {"enhancement": {"hidden": 16_000, "layers": 16}},
]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are measured as Linux does")
def test_what_claims_terabytes_is_refused_before_memory_is_spent(sound, tmp_path):
    import shutil

    student = sound(next(t for t in TARGETS if t.name == "student")) / "student"
    places = []

    def variant(**files):
        place = tmp_path / str(len(places))
        shutil.copytree(student, place)
        for name, content in files.items():
            (place / name.replace("_dot_", ".")).write_bytes(content)
        places.append(str(place))

    for name, claims in (("config.json", CLAIMS), ("heads.json", HEADS)):
        values = json.loads((student / name).read_text())
        for claim in claims:
            variant(**{name.replace(".", "_dot_"): json.dumps(values | claim).encode()})
    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    for content in (struct.pack("<Q", 1 << 62) + b"{}", struct.pack("<Q", len(header)) + header):
        variant(model_dot_safetensors=content)
        variant(heads_dot_safetensors=content)
    hours = tmp_path / "hours.wav"  # 16 bits, 192 kHz, 4 GB by its header, 44 bytes on the disk
    riff = (
        b"RIFF"
        + struct.pack("<I", 0xFFFFFFF0)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 2, 192_000, 768_000, 4, 16)
    )
    hours.write_bytes(riff + b"data" + struct.pack("<I", 0xFFFFFF00))
    places.append(str(hours))
    done = subprocess.run(
        [sys.executable, "-c", ABSURD, json.dumps(places)],
        capture_output=True, text=True, timeout=250, env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(outcomes) == len(places)
    for place, (outcome, grown, seconds) in zip(places, outcomes, strict=True):
        assert outcome != "result", place
        assert grown < 400 and seconds < 20, (place, outcome, grown, seconds)  # megabytes


def test_nothing_in_a_file_is_executed(tmp_path, sound):
    """Pickles, remote code and YAML tags: what they would run never runs."""
    import pickle
    import shutil

    from robustdistiller.config import load_recipe
    from robustdistiller.errors import UserError
    from robustdistiller.models.student import load_student

    trap = tmp_path / "executed"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (trap,)

    student = sound(next(t for t in TARGETS if t.name == "student")) / "student"
    for case in ("pickle", "remote code", "remote extractor"):
        place = shutil.copytree(student, tmp_path / case)
        if case == "pickle":
            (place / "model.safetensors").unlink()
            (place / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
        else:
            (place / "evil.py").write_text(f"import pathlib\npathlib.Path({str(trap)!r}).touch()\nclass A: pass\n")
            name = "config.json" if case == "remote code" else "preprocessor_config.json"
            values = json.loads((place / name).read_text())
            values["auto_map"] = {k: "evil.A" for k in ("AutoConfig", "AutoModel", "AutoFeatureExtractor")}
            if case == "remote code":
                values["model_type"] = "evil"
            (place / name).write_text(json.dumps(values))
        with contextlib.suppress(UserError):
            load_student(place)
        assert not trap.exists(), case
    (tmp_path / "r.yaml").write_text(f"name: !!python/object/apply:pathlib.Path.touch [{trap}]\n")
    with pytest.raises(UserError):
        load_recipe(tmp_path / "r.yaml")
    assert not trap.exists()
