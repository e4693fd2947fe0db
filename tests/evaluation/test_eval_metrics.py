"""Laws of the measures, each against an independent computation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustdistiller.evaluation.metrics import (
    ACCURACY,
    EER,
    WER,
    RankedTrials,
    Scores,
    TrialScores,
    unit_errors,
)
from robustdistiller.objectives.quality import available_quality, speech_quality


def rate_by_brute_force(similarity, same):
    """Where the piecewise linear curves of false acceptance and false rejection over all thresholds meet."""
    thresholds = np.r_[np.inf, np.unique(similarity)[::-1]]
    accepted = np.array([(similarity[~same] >= t).mean() for t in thresholds])
    missed = np.array([(similarity[same] < t).mean() for t in thresholds])
    fine = np.linspace(0, len(thresholds) - 1, 200_001)
    a, m = (np.interp(fine, np.arange(len(thresholds)), curve) for curve in (accepted, missed))
    return a[np.argmin(np.abs(a - m))]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.booleans())
def test_the_equal_error_rate_is_where_both_errors_meet(seed, size, ties):
    rng = np.random.default_rng(seed)
    same = rng.random(size) < 0.5
    same[:2] = [True, False]
    similarity = rng.normal(same * 1.0)
    similarity = similarity.round(1) if ties else similarity
    assert RankedTrials(similarity, same).equal_error_rate() == pytest.approx(
        rate_by_brute_force(similarity, same), abs=1e-3
    )


def test_a_weight_counts_a_pair_so_many_times():
    rng = np.random.default_rng(1)
    same = rng.random(60) < 0.4
    similarity, weights = rng.normal(same * 1.0), rng.integers(0, 4, 60)
    repeated = RankedTrials(np.repeat(similarity, weights), np.repeat(same, weights)).equal_error_rate()
    assert RankedTrials(similarity, same).equal_error_rate(weights.astype(float)) == pytest.approx(repeated)


def test_perfect_and_hopeless_verification():
    same = np.array([True, True, False, False])
    assert RankedTrials(np.array([4.0, 3.0, 2.0, 1.0]), same).equal_error_rate() == 0
    assert RankedTrials(np.array([1.0, 2.0, 3.0, 4.0]), same).equal_error_rate() == 1
    assert np.isnan(RankedTrials(np.ones(2), np.array([True, True])).equal_error_rate())


def levenshtein(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b c", "'", " "]), max_size=8),
    st.lists(st.sampled_from(["a", "b c", " "]), max_size=8),
)
def test_unit_errors_are_the_edit_distance(reference, hypothesis):
    assert unit_errors(reference, hypothesis) == (levenshtein(reference, hypothesis), len(reference))


@pytest.mark.parametrize("level", [-5.0, 0.0, 12.0])
def test_si_sdr_is_the_ratio_that_was_mixed_whatever_the_gain(level):
    rng = np.random.default_rng(0)
    clean, noise = rng.standard_normal((2, 16_000))
    clean, noise = clean - clean.mean(), noise - noise.mean()
    noise -= (noise @ clean) / (clean @ clean) * clean
    noise *= np.sqrt((clean @ clean) / (noise @ noise)) * 10 ** (-level / 20)
    assert speech_quality(0.3 * (clean + noise), clean, ["si_sdr"])["si_sdr"] == pytest.approx(level, abs=1e-6)


def test_quality_measures_order_more_and_less_noise(voice):
    clean = voice(3.0).astype(np.float64)
    noise = 0.05 * np.random.default_rng(0).standard_normal(len(clean))
    wanted = [name for name in available_quality() if name != "dnsmos"]
    little, much = (speech_quality(clean + gain * noise, clean, wanted) for gain in (0.05, 1.0))
    for name in wanted:
        assert little[name] > much[name]
    assert np.isnan(speech_quality(clean[:900], clean[:900], ["stoi"])["stoi"])


def test_figures_are_ratios_averaged_over_seeds():
    assert Scores(ACCURACY, np.array([[1.0, 0, 1, 1], [1, 0, 0, 0]]), np.ones(4)).value() == 0.5
    assert Scores(WER, np.array([[1.0, 3.0]]), np.array([2.0, 6.0])).value() == 0.5
    pairs = (np.array([0, 0]), np.array([1, 2]), np.array([True, False]))
    assert TrialScores(EER, np.array([[0.9, 0.1], [0.1, 0.9]]), *pairs).value() == 0.5
