"""What the tests of deployment share: a tiny student with both heads, a head of a task, and one export of all of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robustdistiller.audio.io import write_audio
from robustdistiller.config import EnhancementConfig, StudentConfig
from robustdistiller.deployment.export import ExportOptions, export_student
from robustdistiller.deployment.parity import voice_like
from robustdistiller.evaluation.evaluated import open_models
from robustdistiller.evaluation.probes import save_heads
from robustdistiller.evaluation.task_heads import Trained, UtteranceHead
from robustdistiller.models.building import build_student
from robustdistiller.models.teacher import load_teacher

LABELS = {"action": ("off", "on"), "room": ("bath", "hall", "kitchen")}


@pytest.fixture(scope="session")
def student_folder(checkpoint, tmp_path_factory):
    """A student folder with prediction heads and an enhancement head."""
    enhancement = EnhancementConfig(hidden=16, layers=2)
    teacher = load_teacher(str(checkpoint("hubert", normalize=True)), layers=(1, 3))
    student, _ = build_student(teacher, StudentConfig(layers=1), enhancement)
    folder = tmp_path_factory.mktemp("run") / "student"
    card = "---\nlicense: cc-by-4.0\n---\n# A tiny student\n"
    with torch.no_grad():  # norms of 1 and 0 would hide a mistake in them
        for name, value in student.encoder.named_parameters():
            if "norm" in name:
                value.add_(0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))))
    student.save(folder, {"README.md": card})
    return folder


@pytest.fixture(scope="session")
def speech_folder(tmp_path_factory, voice):
    """A folder with a dozen speech-like files."""
    folder = tmp_path_factory.mktemp("speech")
    for k in range(12):
        write_audio(folder / f"speaker{k % 3}" / f"{k}.wav", voice_like(16_000 + 1600 * k, k))
    return folder


@pytest.fixture(scope="session")
def head_file(student_folder, tmp_path_factory):
    """Heads of two seeds, as the benchmark writes them; the second is the better one."""
    (subject,) = open_models([str(student_folder)])
    torch.manual_seed(0)
    trained = []
    for validation in (0.5, 0.75):
        head = UtteranceHead(len(subject.state_names), 64, [len(labels) for labels in LABELS.values()])
        for name, value in head.state_dict().items():
            value.copy_(torch.rand(value.shape) + 0.5 if "deviation" in name else torch.randn(value.shape))
        trained.append(Trained(head.state_dict(), 1e-3, 1e-2, validation))
    path = tmp_path_factory.mktemp("results") / "heads" / "smart-home" / "student.safetensors"
    about = {
        "task": "smart-home", "kind": "slots", "slots": list(LABELS), "classes": [list(v) for v in LABELS.values()],
        "level_dbfs": -24.0, "states": list(subject.state_names), "model": subject.digest,
    }  # fmt: skip
    save_heads(path, trained, "key", about)
    return path


@pytest.fixture(scope="session")
def exported(student_folder, head_file, speech_folder, tmp_path_factory):
    """Everything that can be exported of the student: (folder, results by file name)."""
    out = tmp_path_factory.mktemp("exported") / "out"
    # Random weights need not survive 8 bits; what was measured is checked instead.
    options = ExportOptions(
        int8=True, enhance=True, task=str(head_file), force=True, speech=(str(speech_folder),), clips=9
    )
    return out, {file.path.name: file for file in export_student(student_folder, out, options)}


@pytest.fixture
def random_waves():
    """The function (lengths, seed) → waves of noise, one of each length."""

    def make(lengths, seed=0):
        rng = np.random.default_rng(seed)
        return [(0.1 * rng.standard_normal(n)).astype(np.float32) for n in lengths]

    return make
