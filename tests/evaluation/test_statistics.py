"""Laws of the intervals: they hold what they promise, know about speakers, and pair what was measured together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustdistiller.evaluation.conditions import CLEAN, Condition
from robustdistiller.evaluation.metrics import ACCURACY, EER, Scores, TrialScores
from robustdistiller.evaluation.results import averaged, figures
from robustdistiller.evaluation.statistics import Bootstrap, difference, holm, interval


def scores(right):
    right = np.atleast_2d(np.asarray(right, dtype=np.float64))
    return Scores(ACCURACY, right, np.ones(right.shape[1]))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    hits = 0
    for trial in range(120):
        rng = np.random.default_rng(trial)
        right = rng.random(80) < 0.7
        found = interval(right.mean(), Bootstrap([str(k) for k in range(80)], 400, trial).replicate(scores(right)))
        hits += found.low <= 0.7 <= found.high
    assert 0.88 * 120 <= hits <= 119


def test_speakers_who_differ_make_the_interval_wider_than_their_utterances_alone():
    rng = np.random.default_rng(0)
    speakers = np.repeat(np.arange(15), 20)
    right = rng.random(300) < np.repeat(rng.choice([0.3, 0.95], 15), 20)
    together = interval(right.mean(), Bootstrap([f"s{k}" for k in speakers]).replicate(scores(right)))
    alone = interval(right.mean(), Bootstrap([f"u{k}" for k in range(300)]).replicate(scores(right)))
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_the_replicates_are_those_of_a_plain_loop():
    rng = np.random.default_rng(3)
    clusters = rng.integers(0, 5, 30)
    total, count = rng.random((1, 30)), rng.integers(1, 4, 30).astype(float)
    bootstrap = Bootstrap([f"s{k}" for k in clusters], 50, 7)
    expected = []
    for weights in bootstrap.weights:
        drawn = [i for i in range(30) for _ in range(weights[bootstrap.cluster[i]])]
        expected.append(total[0, drawn].sum() / count[drawn].sum())
    np.testing.assert_allclose(bootstrap.replicate(Scores(ACCURACY, total, count)), expected)


def test_the_same_draws_serve_every_model_and_condition():
    a, b = np.random.default_rng(0).random((2, 1, 40))
    bootstrap = Bootstrap([str(k // 2) for k in range(40)], 200)
    sums = bootstrap.replicate(scores(a)) + bootstrap.replicate(scores(b))
    np.testing.assert_allclose(sums, bootstrap.replicate(scores(a + b)))
    np.testing.assert_array_equal(
        bootstrap.replicate(scores(a)), Bootstrap([str(k // 2) for k in range(40)], 200).replicate(scores(a))
    )


def test_a_small_but_constant_advantage_is_found_only_because_it_is_paired():
    rng = np.random.default_rng(0)
    base = (rng.random(200) < 0.6).astype(float)
    better = base.copy()
    better[np.flatnonzero(base == 0)[:8]] = 1
    bootstrap = Bootstrap([str(k) for k in range(200)], 2000)
    a, b = bootstrap.replicate(scores(base)), bootstrap.replicate(scores(better))
    assert difference(0.04, b - a).p < 0.05
    assert interval(0.6, a).high > better.mean()  # the two intervals overlap all the same


def test_lucky_heads_widen_the_interval():
    rng = np.random.default_rng(0)
    steady = (rng.random((1, 300)) < 0.5).repeat(4, 0)
    lucky = np.stack([rng.random(300) < p for p in (0.3, 0.45, 0.55, 0.7)])
    bootstrap = Bootstrap([str(k) for k in range(300)], 2000)
    widths = [np.ptp(np.percentile(bootstrap.replicate(scores(s)), [2.5, 97.5])) for s in (steady, lucky)]
    assert widths[1] > 1.5 * widths[0]


def test_verification_resamples_speakers_not_pairs():
    rng = np.random.default_rng(0)
    speakers = np.repeat(np.arange(8), 3)
    left, right = np.triu_indices(24, 1)
    same = speakers[left] == speakers[right]
    trials = TrialScores(EER, rng.normal(same * 1.5)[None], left, right, same)
    replicates = Bootstrap([f"s{k}" for k in speakers], 300).replicate(trials)
    assert 0 <= np.nanmin(replicates) < trials.value() < np.nanmax(replicates) <= 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_step_down_rule(p_values):
    named = {str(k): p for k, p in enumerate(p_values)}
    corrected = holm(named)
    for level in (0.01, 0.05, 0.2):
        rejected, remaining = set(), sorted(named, key=lambda k: named[k])
        for rank, name in enumerate(remaining):
            if named[name] * (len(named) - rank) > level:
                break
            rejected.add(name)
        assert {name for name, p in corrected.items() if p <= level} == rejected


CONDITIONS = [
    CLEAN,
    Condition("white_0dB", "white 0 dB", "noise", "white", 0.0, seen="seen"),
    Condition("room", "room", "reverb", rooms="r", t60=(0.2, 0.4), seen="unseen"),
]


def test_averages_and_reductions_are_computed_on_the_replicates():
    rng = np.random.default_rng(0)
    measured = {
        model: {c.name: scores(rng.random((2, 50)) < p) for c in CONDITIONS} for model, p in (("a", 0.5), ("b", 0.8))
    }
    bootstrap = Bootstrap([str(k // 5) for k in range(50)], 500)
    found = {(f.model, f.condition): f for f in figures("t", ACCURACY, measured, CONDITIONS, bootstrap, "a")}
    mean = found["b", "mean:contaminated"]
    parts = [found["b", c].estimate.value for c in ("white_0dB", "room")]
    assert mean.estimate.value == pytest.approx(np.mean(parts))
    assert mean.difference.value == pytest.approx(mean.estimate.value - found["a", "mean:contaminated"].estimate.value)
    expected = 1 - (1 - mean.estimate.value) / (1 - found["a", "mean:contaminated"].estimate.value)
    assert mean.error_reduction.value == pytest.approx(expected)
    assert found["a", "clean"].difference is None and mean.difference.p_holm >= mean.difference.p
    assert set(averaged(CONDITIONS)) == {"noise", "reverb", "contaminated", "seen", "unseen"}
