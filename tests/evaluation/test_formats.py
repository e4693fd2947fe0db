"""Stored results are used again as long as their producer's FORMAT is the same: its output must then be the same, too.

Where one of these tests fails, numbers changed: raise the FORMAT in the module that it names and put the new numbers here.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from robustdistiller.evaluation import enhancement_scores, features, rendering, similarity, task_heads
from robustdistiller.evaluation.conditions import ConditionsConfig
from robustdistiller.evaluation.evaluated import open_models

GRID = {
    "noise": {"sources": [{"name": "babble", "kind": "babble"}, {"name": "wind", "kind": "wind"}], "snr_db": [5]},
    "rooms": {"sources": [{"name": "simulated", "simulated": 2}], "t60": [[0.3, 0.5]]},
    "both": {"noise": ["wind"], "snr_db": [0]},
}


def summary(values):
    """A few numbers that any change of `values` moves."""
    values = np.asarray(values, dtype=np.float64).ravel()
    weights = np.random.default_rng(len(values)).standard_normal(len(values))
    return [values.std(), values @ weights / np.sqrt(len(values))]


def test_conditions_sound_as_their_format_says(keywords):
    renderer = rendering.ConditionRenderer(ConditionsConfig.model_validate(GRID))
    found = {}
    for condition in renderer.conditions:
        wave, _ = renderer.render(condition, keywords, "test", keywords.test)(range(3))
        found[condition.name] = summary(100 * wave)
    assert rendering.FORMAT == 1
    assert found == {name: pytest.approx(values, rel=1e-3, abs=1e-3) for name, values in SOUND.items()}


def test_states_are_what_their_format_says(keywords):
    wave = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 8000)).astype(np.float32) * 0.1)
    lengths = torch.tensor([8000, 6000])
    models = open_models(["log-mel", "mfcc", "mini-edge", "mini-hubert"])
    found = {m.name: summary(features.reduce_states(*m.states(wave, lengths), True)[0]) for m in models}
    assert features.FORMAT == 2
    assert found == {name: pytest.approx(values, rel=1e-3, abs=1e-3) for name, values in STATES.items()}


def test_heads_are_what_their_format_says():
    rng = np.random.default_rng(0)
    rows, labels = rng.standard_normal((120, 2, 8)).astype(np.float32), rng.integers(0, 3, (120, 1))
    rows[:, 1, :3] += 2 * np.eye(3)[labels[:, 0]]
    part = features.StoredFeatures(rows, np.ones(120, np.int64))
    config = task_heads.HeadConfig(learning_rates=(1e-3,), weight_decays=(1e-2,), epochs=2, steps=20, seeds=1)
    better = task_heads.by_answers(part, labels)
    (trained,) = task_heads.fit_averaged(task_heads.UtteranceHead, part, labels, [3], better, config, 0)
    assert task_heads.FORMAT == 1
    assert [*trained.state["mix.weights"].tolist(), trained.validation] == pytest.approx(HEAD, rel=1e-2)


def test_scores_without_labels_are_what_their_formats_say():
    clean, noisy = (torch.from_numpy(np.random.default_rng(k).standard_normal((2, 1, 30, 5))) for k in range(2))
    frames, every = torch.tensor([30, 20]), SimpleNamespace(states=lambda wave, lengths: (clean, frames))
    known = similarity.CleanStates(every, (0, 1), features.Plan((((0, 1),),)), lambda _: (frames,) * 2, "cpu")
    score = similarity.Similarity(known)
    score.add((0, 1), (0, 1), clean + noisy, frames)
    assert (similarity.FORMAT, enhancement_scores.FORMAT) == (1, 2)
    assert score.values() == {name: pytest.approx(value, rel=1e-4) for name, value in SCORES.items()}


HEAD = [0.1383, -0.1383, 0.675]
SCORES = {"cka": [0.58064], "cosine": [0.6873]}
SOUND = {
    "clean": [5.31352, -1.65144],
    "babble_5dB": [6.00401, -1.31072],
    "wind_5dB": [6.05019, 4.0471],
    "simulated_0.3-0.5s": [5.31273, -7.78816],
    "wind_0dB_simulated_0.3-0.5s": [7.54038, 2.34543],
}
STATES = {
    "log-mel": [0.68795, 0.10016],
    "mfcc": [1.98474, -0.15227],
    "mini-edge": [0.75002, -0.53196],
    "mini-hubert": [0.72247, 0.67313],
}
