"""The examples keep what they say."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from robustdistiller import load_student, write_audio
from robustdistiller.runtime import Trigger

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_no_keyword_is_spotted_before_a_whole_window_was_heard():
    sure = np.tile((0.99, 0.01), (130, 1))
    assert [frame for frame, _, _ in Trigger(("right", "left"), 0.6, refractory=40)(sure)] == [50, 90]


@pytest.mark.parametrize(("arguments", "told"), [([], "usage"), (["missing.onnx"], "There is no file missing.onnx")])
def test_a_mistake_at_the_keyword_example_is_a_sentence(monkeypatch, arguments, told):
    monkeypatch.setattr(sys, "argv", ["keyword_spotting.py", *arguments])
    with pytest.raises(SystemExit, match=told):
        runpy.run_path(str(EXAMPLES / "keyword_spotting.py"))


def test_the_minimal_loop_brings_the_student_nearer_to_its_teacher_and_leaves_it_in_a_folder(tmp_path, voice, capsys):
    for number in range(12):
        write_audio(tmp_path / f"speech/{number}.wav", voice(0.6, seed=number))
    example = runpy.run_path(str(EXAMPLES / "minimal_distill.py"))
    arguments = ["--speech", str(tmp_path / "speech"), "--out", str(tmp_path / "student"), "--simulated-rooms", "1"]
    before, after = example["train"](example["parse"]([*arguments, "--steps", "8", "--batch", "2", "--seconds", "0.5"]))
    assert after > before + 0.05, capsys.readouterr().out
    student = load_student(tmp_path / "student")
    assert student.enhance(torch.from_numpy(voice(0.5))[None]).shape == (1, 8000)
    assert student.layers == (4, 8, 12)
