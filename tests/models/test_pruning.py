"""Laws of pruning: what can be told from the rest is left out first, and what is left out is made up for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustdistiller.config import EnhancementConfig, StudentConfig
from robustdistiller.models.building import build_student
from robustdistiller.models.pruning import select_channels
from robustdistiller.models.teacher import load_teacher


def told(x, y, columns):
    """The energy of y that its best linear guess from some columns of x has, both centred: by plain least squares."""
    x, y = x[:, columns] - x[:, columns].mean(0), y - y.mean(0)
    return float((x @ torch.linalg.lstsq(x, y).solution).square().sum())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 5))
def test_every_channel_is_the_one_that_adds_most_to_those_before_it(seed, count):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 6, generator=g).double() @ torch.randn(6, 8, generator=g).double()  # redundant: rank 6
    x = x + 0.1 * torch.randn(200, 8, generator=g)
    weights = torch.randn(8, 5, generator=g).double()
    found = select_channels(torch.cov(x.T, correction=0), weights, count)
    chosen: list[int] = []
    for _ in range(count):
        rest = [k for k in range(8) if k not in chosen]
        chosen.append(max(rest, key=lambda k: told(x, x @ weights, [*chosen, k])))
    assert found.tolist() == sorted(chosen)


def test_a_copy_of_a_channel_is_left_out_however_strong_it_is():
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([9.0, 1.0, 1.0, 1.0])
    x = torch.cat([x, x[:, :1]], 1)  # channel 4 says what channel 0 says
    kept = select_channels(torch.cov(x.T), torch.eye(5), 4).tolist()
    assert len({0, 4} & set(kept)) == 1 and {1, 2, 3} <= set(kept)


def test_silent_channels_are_kept_where_as_many_are_asked_for():
    covariance = torch.diag(torch.tensor([1.0, 0.0, 2.0, 0.0])).double()
    assert select_channels(covariance, torch.ones(4, 3), 2).tolist() == [0, 2]
    assert len(select_channels(covariance, torch.ones(4, 3), 3)) == 3


@pytest.fixture
def repetitive(checkpoint):
    """A teacher whose feed-forward units come in threes that say the same, and whose layer 3 is not looked at."""
    teacher = load_teacher(str(checkpoint("hubert")), (2,), precision="fp32")
    with torch.no_grad():
        for layer in teacher.encoder.model.encoder.layers:
            inner = layer.feed_forward.intermediate_dense
            for values in (inner.weight, inner.bias):
                values.copy_(values[:32].repeat(3, *(1,) * (values.dim() - 1)))
    return teacher


def test_feed_forward_units_that_repeat_others_cost_nothing(repetitive, voice):
    clips = [torch.tensor(voice(2.0, seed)) for seed in range(4)]
    config = StudentConfig(feed_forward=32)
    small = EnhancementConfig(hidden=16, layers=1)
    student, report = build_student(repetitive, config, small, 0, clips)
    unheard, _ = build_student(repetitive, config, small, 0, ())
    assert len(report.pruned) == 8 and not report.random
    assert all(len(set((units % 32).tolist())) == 32 for units in report.kept.units)
    wave = torch.tensor(voice(1.0, 9))[None]
    wanted = repetitive.encoder.eval()(wave).states[2]
    near, far = ((s.encoder.eval()(wave).states[2] - wanted).abs().max() for s in (student, unheard))
    assert near < 0.01 and near < 0.1 * far  # the ridge leaves a little


def test_pruned_layers_are_fitted_to_the_layers_they_come_from(repetitive, voice):
    config = StudentConfig(feed_forward=32, from_layers=(1, 3))
    student, _ = build_student(
        repetitive, config, EnhancementConfig(enabled=False), 0, [torch.tensor(voice(2.0, seed)) for seed in range(4)]
    )
    before = repetitive.encoder.eval()(torch.tensor(voice(1.0, 9))[None]).states[2]
    mine, theirs = (x.encoder.eval().model.encoder.layers for x in (student, repetitive))
    torch.testing.assert_close(mine[1](before)[0], theirs[2](before)[0], atol=0.01, rtol=0)


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_a_thin_student_chosen_and_fitted_on_speech_is_nearer_than_one_chosen_by_its_weights(checkpoint, voice, kind):
    teacher = load_teacher(str(checkpoint(kind)), (3,), precision="fp32")
    config = StudentConfig(conv_channels=(8, 8, 12, 12, 16, 32, 32), feed_forward=48)
    clips = [torch.tensor(voice(2.0, seed)) for seed in range(6)]
    wave = torch.tensor(voice(1.0, 9))[None]
    wanted = teacher.encoder.eval()(wave).states
    distances = []
    for heard in (clips, ()):
        student, _ = build_student(teacher, config, EnhancementConfig(enabled=False), 0, heard)
        states = student.encoder.eval()(wave).states
        distances.append(sum(float((a - b).detach().square().mean()) for a, b in zip(states, wanted, strict=False)))
    assert distances[0] < 0.75 * distances[1]  # random weights repeat little
