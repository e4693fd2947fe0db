"""Laws of the heads: they agree with an independent computation, find the telling state, and repeat themselves exactly."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from robustdistiller.evaluation.ctc import CTCHead, decode, fit_ctc_heads, frames_of
from robustdistiller.evaluation.features import StoredFeatures
from robustdistiller.evaluation.metrics import RankedTrials
from robustdistiller.evaluation.task_heads import (
    MIX_RATE,
    HeadConfig,
    Mix,
    SpeakerHead,
    UtteranceHead,
    builder,
    by_answers,
    embeddings,
    fit_averaged,
    load_head,
    predict,
    shuffled,
    train_heads,
)
from robustdistiller.evaluation.verification import make_trials, trial_similarities
from robustdistiller.randomness import integer

FAST = HeadConfig(learning_rates=(1e-3,), weight_decays=(1e-2,), epochs=10, steps=120, seeds=2)


def averaged(rows):
    return StoredFeatures(np.asarray(rows, dtype=np.float32), np.ones(len(rows), dtype=np.int64))


def material(states=1, dims=20, classes=4, count=300, seed=0, spread=1.6):
    """Classes around random centres in the last state; the other states are noise of a larger scale."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, dims))
    labels = rng.integers(0, classes, count)
    rows = 30 * rng.standard_normal((count, states, dims))
    rows[:, -1] = centres[labels] + spread * rng.standard_normal((count, dims))
    return averaged(rows), labels[:, None]


def fit_utterance_heads(train, targets, valid, valid_targets, classes, config, seed):
    return fit_averaged(UtteranceHead, train, targets, classes, by_answers(valid, valid_targets), config, seed)


def test_the_head_agrees_with_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    train, valid, test = (material(seed=k, count=600) for k in range(3))
    trained = fit_utterance_heads(*train, *valid, [4], FAST, 0)
    ours = np.mean([(predict(load_head(t, UtteranceHead, (1, 20), [4]), test[0]) == test[1]).mean() for t in trained])
    theirs = linear_model.LogisticRegression(C=0.1, max_iter=1000).fit(train[0].rows[:, 0], train[1][:, 0])
    assert 0.5 < ours < 0.98
    assert abs(ours - theirs.score(test[0].rows[:, 0], test[1][:, 0])) < 0.04


def test_the_weights_find_the_state_that_tells():
    trained = fit_utterance_heads(*material(states=3), *material(states=3, seed=1), [4], FAST, 0)
    assert trained[0].state["mix.weights"].softmax(0)[2] > 0.6


def test_the_same_seed_gives_the_same_head_and_another_seed_another():
    first, again = (fit_utterance_heads(*material(), *material(seed=1), [4], FAST, 0) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        for name in a.state:
            assert torch.equal(a.state[name], b.state[name])
    assert not torch.equal(first[0].state["project.weight"], first[1].state["project.weight"])


def test_global_randomness_is_left_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    fit_utterance_heads(*material(count=40), *material(count=20, seed=1), [4], FAST, 0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_pair_with_the_best_validation_is_taken():
    config = HeadConfig(learning_rates=(1e-9, 1e-3), weight_decays=(0.0,), epochs=5, steps=100, seeds=1)
    trained = fit_utterance_heads(*material(), *material(seed=1), [4], config, 0)
    assert trained[0].learning_rate == 1e-3 and trained[0].validation > 0.5


def test_every_slot_has_its_own_answer():
    (train, labels), (valid, valid_labels) = material(), material(seed=1)
    both, valid_both = (np.concatenate([y, y % 2], 1) for y in (labels, valid_labels))
    trained = fit_utterance_heads(train, both, valid, valid_both, [4, 2], FAST, 0)
    found = predict(load_head(trained[0], UtteranceHead, (1, 20), [4, 2]), valid)
    assert found.shape == (300, 2) and trained[0].validation == pytest.approx((found == valid_both).all(1).mean())


def test_standardisation_is_that_of_the_training_rows():
    rows = np.random.default_rng(0).normal(3.0, 5.0, (2500, 2, 4))
    mix = Mix(2, 4)
    mix.fit(averaged(rows))
    np.testing.assert_allclose(mix.mean.numpy(), rows.mean(0), atol=1e-4)
    np.testing.assert_allclose(mix.deviation.numpy(), rows.std(0), rtol=1e-4)
    assert torch.isfinite(_constant().deviation).all() and (_constant().deviation > 0).all()


def _constant():
    mix = Mix(1, 3)
    mix.fit(averaged(np.full((10, 1, 3), 7.0)))
    return mix


def test_unseen_speakers_can_be_told_apart():
    rng = np.random.default_rng(0)
    people = rng.standard_normal((30, 16))
    said = np.repeat(np.arange(30), 8)
    rows = (people[said] + 0.4 * rng.standard_normal((len(said), 16)))[:, None]
    voices = [averaged(rows[part]) for part in (slice(0, 160), slice(160, 200), slice(200, 240))]
    targets = np.repeat(np.arange(20), 8)[:, None]
    trials = [make_trials([str(k) for k in np.repeat(np.arange(n), 8)], 400) for n in (5, 5)]

    def rate(values, which):
        left, right, same = trials[which]
        return RankedTrials(trial_similarities(values, left, right), same).equal_error_rate()

    def validate(head):
        return -rate(embeddings(head, voices[1]), 0), 0.0

    trained = fit_averaged(SpeakerHead, voices[0], targets, [20], validate, FAST, 0)
    assert rate(embeddings(load_head(trained[0], SpeakerHead, (1, 16), [20]), voices[2]), 1) < 0.15


def test_trials_are_balanced_bounded_and_always_the_same():
    names = [str(k // 6) for k in range(60)]
    left, right, same = make_trials(names, 200)
    assert len(left) == 200 and same.sum() == 100
    assert all((names[a] == names[b]) == s and a != b for a, b, s in zip(left, right, same, strict=True))
    np.testing.assert_array_equal(left, make_trials(names, 200)[0])


def utterances(count, seed):
    """Frames that spell a sequence of units, each held for a few frames, separated by silence."""
    rng = np.random.default_rng(seed)
    code = np.random.default_rng(5).standard_normal((4, 12))
    frames, rows, targets = [], [], []
    for _ in range(count):
        units = rng.integers(1, 4, rng.integers(2, 6))
        held = [code[u] for unit in units for u in [0, 0, *[unit] * rng.integers(3, 6)]] + [code[0]]
        rows.append(np.array(held) + 0.15 * rng.standard_normal((len(held), 12)))
        frames.append(len(held))
        targets.append(units.astype(np.int64))
    return StoredFeatures(np.concatenate(rows)[:, None].astype(np.float16), np.array(frames)), targets


@pytest.mark.parametrize("recurrent", [False, True])
def test_ctc_learns_to_spell(recurrent):
    (train, targets), (valid, valid_targets) = utterances(60, 0), utterances(20, 1)
    config = HeadConfig(learning_rates=(5e-3,), weight_decays=(0.0,), epochs=12 if recurrent else 40, steps=0, seeds=1)
    trained = fit_ctc_heads(train, targets, valid, valid_targets, 3, recurrent, config, 0)
    assert trained[0].validation > -0.25  # an untrained head is at -1
    head = CTCHead(1, 12, 3, recurrent)
    head.load_state_dict(trained[0].state)
    found = decode(head.eval(), valid)
    assert sum(path == list(wanted) for path, wanted in zip(found, valid_targets, strict=True)) >= 8


@pytest.mark.parametrize("counts", [[3, 5, 4], [4, 4, 4]])
def test_the_learning_rate_falls_to_nothing_and_never_below(counts):
    """However many batches an epoch has; while the gradient is the same, Adam moves a weight by the rate."""
    seen = []

    def losses(head, weights, batch):
        seen.append(weights["project.bias"][0, 0].item())
        return weights["project.bias"].sum(1)

    def validate(head):
        return head.project.bias[0].item(), 0.0

    def batches(seed, epoch):
        return [np.arange(2)] * counts[epoch]

    config = HeadConfig(learning_rates=(1e-2,), weight_decays=(0.0,), epochs=3, steps=0, seeds=1)
    (trained,) = train_heads(lambda: UtteranceHead(1, 4, [2]), losses, batches, validate, config, 0)
    rates = -np.diff([*seen, trained.validation])
    np.testing.assert_allclose(rates, 1e-2 * (1 - np.arange(sum(counts)) / sum(counts)), rtol=1e-3)


def trained_alone(kind, loss, train, targets, classes, seed, rate, decay, config):
    """A head by itself, with what torch has for it."""
    torch.manual_seed(seed)
    head = builder(kind, train, classes)()
    rest = [p for name, p in head.named_parameters() if name != "mix.weights"]
    mix = {"params": [head.mix.weights], "lr": MIX_RATE * rate, "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([{"params": rest}, mix], lr=rate, weight_decay=decay)
    batches = shuffled(len(train), config.batch)
    steps = [batch for epoch in range(config.epochs) for batch in batches(seed, epoch)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / len(steps))
    for batch in steps:
        optimizer.zero_grad()
        loss(head, torch.from_numpy(train.rows[batch]), torch.from_numpy(targets[batch])).backward()
        torch.nn.utils.clip_grad_norm_(rest, 5.0)
        optimizer.step()
        schedule.step()
    return head


def slots_loss(head, rows, targets):
    return sum(functional.cross_entropy(x, targets[:, k]) for k, x in enumerate(head(rows))) / targets.shape[1]


def margin_loss(head, rows, targets):
    cosine = head.embed(rows) @ functional.normalize(head.answers[0].weight, dim=-1).T
    right = functional.one_hot(targets[:, 0], cosine.shape[1])
    return functional.cross_entropy(30 * (cosine - 0.2 * right), targets[:, 0])


@pytest.mark.parametrize("kind, loss, classes", [
    (UtteranceHead, slots_loss, [4]), (UtteranceHead, slots_loss, [4, 2]), (UtteranceHead, slots_loss, [70]),
    (SpeakerHead, margin_loss, [4]),
])  # fmt: skip
def test_heads_that_learn_side_by_side_learn_what_each_learns_alone(kind, loss, classes):
    """The cells of the grid, which share seed and batches, and the other seeds, which do not."""
    train, labels = material(states=3, count=100)
    targets = np.concatenate([labels % n for n in classes], 1)
    config = HeadConfig(learning_rates=(1e-3, 1e-2), weight_decays=(1e-2, 1.0), epochs=8, steps=0, seeds=3)
    found = []

    def validate(head):
        found.append(head)
        return -len(found), 0.0  # the first cell is the best

    fit_averaged(kind, train, targets, classes, validate, config, 5)
    cells = [(0, 1e-3, 1e-2), (0, 1e-3, 1.0), (0, 1e-2, 1e-2), (0, 1e-2, 1.0), (1, 1e-3, 1e-2), (2, 1e-3, 1e-2)]
    for head, (number, rate, decay) in zip(found, cells, strict=True):
        alone = trained_alone(kind, loss, train, targets, classes, integer(5, "head", number), rate, decay, config)
        start = builder(kind, train, classes)()
        for name, value in alone.named_parameters():
            if kind is not SpeakerHead or name != "answers.0.bias":  # which it does not use
                assert not torch.equal(value, start.get_parameter(name))
                torch.testing.assert_close(head.get_parameter(name), value, rtol=1e-3, atol=1e-5)


def test_frames_come_back_in_the_order_asked():
    features, _ = utterances(5, 0)
    states, frames = frames_of(features, np.array([3, 1]))
    start = features.starts[1]
    assert frames.tolist() == features.frames[[3, 1]].tolist()
    np.testing.assert_allclose(states[1, : frames[1]], features.rows[start : start + frames[1]].astype(np.float32))
