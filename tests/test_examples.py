"""The examples keep what they say."""

import runpy
from pathlib import Path

import numpy as np

from robustdistiller.runtime import Answer

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_no_keyword_is_spotted_before_a_whole_window_was_heard():
    spotter = runpy.run_path(str(EXAMPLES / "keyword_spotting.py"))["Spotter"](("right", "left"), 0.6, window=1.0)
    sure = {"label": np.array([1.0, 0.0])}
    events = [spotter.update(Answer({"label": "right"}, 1.0, time, sure)) for time in (0.25, 0.5, 0.75, 1.0, 1.25, 2.0)]
    assert [event is not None for event in events] == [False, False, False, True, False, True]
