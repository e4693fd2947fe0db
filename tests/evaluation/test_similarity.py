"""Laws of the label-free score: streamed sums equal the textbook formula, and only real changes lower it."""

import numpy as np
import pytest
import torch

from robustdistiller.evaluation.features import Plan
from robustdistiller.evaluation.similarity import CleanStates, Similarity

GENERATOR = torch.Generator().manual_seed(0)


def random(*shape):
    return torch.randn(*shape, generator=GENERATOR)


class Given:
    """A model whose states are known."""

    def __init__(self, states, frames):
        self.given, self.frames = states, frames

    def states(self, wave, lengths):
        return self.given[lengths], self.frames[lengths]


def compared(clean, noisy, frames):
    """Both figures of all states, from batches of two utterances out of order, among others that do not count."""
    order = torch.randperm(len(clean), generator=GENERATOR).tolist()
    plan = Plan((tuple(tuple(order[k : k + 2]) for k in range(0, len(order), 2)),))
    model, numbers = Given(clean, frames), list(range(10, 10 + len(clean)))
    known = CleanStates(model, numbers, plan, lambda batch: (torch.zeros(1), torch.tensor(batch)), torch.device("cpu"))
    running = Similarity(known)
    running.add(range(10), range(3), random(3, *clean.shape[1:]), torch.full((3,), clean.shape[2]))
    for batch in plan.batches[::-1]:
        running.add(numbers, batch, noisy[list(batch)], frames[list(batch)])
    return running.values()


def cka_of(clean, noisy, frames):
    return compared(clean, noisy, frames)["cka"]


def test_streamed_cka_equals_the_formula_on_all_frames():
    clean, frames = random(6, 2, 9, 5), torch.tensor([9, 4, 9, 1, 6, 9])
    noisy = clean + random(6, 2, 9, 5) + 3
    for s, value in enumerate(cka_of(clean, noisy, frames)):
        x, y = (np.concatenate([t[k, s, :n].double().numpy() for k, n in enumerate(frames)]) for t in (clean, noisy))
        x, y = x - x.mean(0), y - y.mean(0)
        formula = np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
        assert value == pytest.approx(formula, abs=1e-5)


def test_cka_forgives_rotation_and_scale_and_cosine_does_not():
    clean, frames = random(4, 1, 30, 6), torch.tensor([30, 30, 20, 10])
    rotation = torch.linalg.qr(random(6, 6))[0]
    turned = 5 * clean @ rotation + 2
    assert cka_of(clean, turned, frames) == pytest.approx([1.0])
    assert compared(clean, turned, frames)["cosine"][0] < 0.9


def test_untouched_features_score_one_and_padding_does_not_count():
    clean, frames = random(3, 2, 8, 4), torch.tensor([8, 5, 2])
    noisy = clean.clone()
    noisy[1, :, 5:], noisy[2, :, 2:] = 99.0, -99.0
    assert compared(clean, noisy, frames) == {"cosine": [1.0, 1.0], "cka": [1.0, 1.0]}


def test_a_large_constant_part_does_not_hide_a_change():
    clean, frames = random(2, 1, 50, 4) + 100, torch.tensor([50, 50])
    noisy = random(2, 1, 50, 4) + 100
    assert abs(compared(clean, noisy, frames)["cosine"][0]) < 0.3
