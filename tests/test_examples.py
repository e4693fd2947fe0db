"""The examples keep what they say."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

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
